"""The primary's side of the ranks: accepts their handshake, sends them requests in turn, counts
what comes back."""

import queue
import select
import threading
import time
from collections import namedtuple

from standin_link import Link

REASONS = ("stop", "length", "abort", "error", "repetition")
Token = namedtuple("Token", "last garbled")  # noqa: PYI024 (typing would double the start-up time)


class StartError(Exception):
    """The group cannot be formed; the text is vLLM's."""


class Rank:
    """What the router knows of one engine."""

    def __init__(self):
        self.link = None
        self.ready = False
        self.gone = False
        self.running = 0
        self.waiting = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(REASONS, 0)
        self.sent = 0
        self.requests = {}
        self.outputs = queue.SimpleQueue()


class Router:
    """Requests in, tokens out."""

    def __init__(self, command, settings, leave):
        self.command = command
        self.settings = settings
        self.leave = leave  # called with a reason when vLLM would end itself
        self.ranks = [Rank() for _ in range(command.size)]
        self.dead = False
        self._lock = threading.Lock()
        self._next = 0
        self._ids = 0
        self._syncs = {}

    def form(self, listener, failed):
        """Shake hands with every rank. No deadline and not a word while one is missing, as in vLLM.

        Raises:
            StartError: a rank is wrong, or `failed()` returns the text of a local failure.
        """
        fresh = []
        while not all(rank.ready for rank in self.ranks):
            failure = failed()
            if failure:
                raise StartError(failure)
            sources = [link.sock for link in fresh if link.open]
            for source in select.select([listener, *sources], [], [], 0.05)[0]:
                if source is listener:
                    fresh.append(Link(listener.accept()[0]))
                    continue
                link = next(link for link in fresh if link.sock is source)
                for message in link.receive(0):
                    self._shake(link, message)
        listener.close()
        for index, rank in enumerate(self.ranks):
            threading.Thread(target=self._read, args=(index, rank), daemon=True).start()
            threading.Thread(target=self._deliver, args=(index, rank), daemon=True).start()

    def _shake(self, link, message):
        if "status" not in message:
            return
        number, status = message["rank"], message["status"]
        if not 0 <= number < len(self.ranks):
            raise StartError(
                f"RuntimeError: Message from engine with unexpected data parallel rank: {number}"
            )
        rank = self.ranks[number]
        if status == "READY":
            if self.command.moe and message["hash"] != self.command.config_hash:
                raise StartError(self._mismatch(number, message["hash"]))
            rank.ready = True
            return
        self._check_hello(number, rank, message)
        rank.link = link
        link.send({"init": True})

    def _check_hello(self, number, rank, message):
        kinds = ("remote", "local")
        expected = number in self.command.ranks
        if message["local"] != expected:
            text = f"HELLO message from {kinds[message['local']]} engine {number}, expected it to be {kinds[expected]}"
            raise StartError(f"RuntimeError: {text}")
        external = (
            "--data-parallel-start-rank" in self.command.flags
        )  # 0.32: even 0 makes the primary "hybrid"
        if not expected and message["headless"] and external:
            text = (
                f"Remote engine {number} must not use --headless in external or hybrid dp lb mode"
            )
            raise StartError(f"RuntimeError: {text}")
        if rank.link is not None:
            text = f"Unexpected HELLO message for {kinds[expected]} engine {number} in CoreEngineState.CONNECTED state."
            raise StartError(f"RuntimeError: {text}")

    def _mismatch(self, number, theirs):
        return (
            f"RuntimeError: Configuration mismatch detected for engine {number}. All DP workers must have identical "
            "configurations for parameters that affect collective communication (e.g., enable_eplb, "
            f"eplb_config.log_balancedness). Worker hash: {theirs}, Expected hash: {self.command.config_hash}. "
            "Please ensure all workers are started with the same command-line arguments."
        )

    def submit(self, prompt_tokens, tokens, number=None):
        """Send a request to rank `number` (None: the next in turn).

        Returns a queue of Tokens; None: the engine is dead.
        """
        answers = queue.SimpleQueue()
        with self._lock:
            if self.dead:
                answers.put(None)
                return answers
            self._ids += 1
            request = self._ids
            rank = self._choose() if number is None else self.ranks[number]
            rank.sent += 1
            rank.requests[request] = [answers, prompt_tokens]
        if self.command.moe and any(other.gone for other in self.ranks):
            self.end_soon()  # an idle group notices its dead member at the next request
            return answers
        rank.link.send({"id": request, "tokens": tokens})
        return answers

    def _choose(self):
        order = [self.ranks[(self._next + i) % len(self.ranks)] for i in range(len(self.ranks))]
        self._next += 1
        return (
            min(order, key=lambda rank: len(rank.requests))
            if self.settings.least_loaded
            else order[0]
        )

    def _read(self, index, rank):
        while rank.link.open:
            for message in rank.link.receive(None):
                if "synced" in message:
                    self._syncs[message["synced"], index].set()
                elif "dead" in message:
                    self.end_soon()
                elif "out" in message:
                    rank.outputs.put(message)
        rank.gone = True
        if self.command.moe and any(other.requests for other in self.ranks):
            self.end_soon()

    def _deliver(self, index, rank):
        while True:
            message = rank.outputs.get()
            if self.command.moe:
                self._sync(index)
            rank.running, rank.waiting = message["stats"]["running"], message["stats"]["waiting"]
            for request, last in message["out"]:
                self._count(rank, request, Token(last, message["garbled"]))

    def _sync(self, index):
        """Every step of an expert-parallel group needs all ranks: wait until the others have
        answered."""
        for number, other in enumerate(self.ranks):
            if number != index:
                with self._lock:
                    self._ids += 1
                    token = self._ids
                    answered = self._syncs[token, number] = threading.Event()
                other.link.send({"sync": token})
                answered.wait()
                del self._syncs[token, number]

    def _count(self, rank, request, token):
        answers, prompt_tokens = rank.requests.get(request, (None, 0))
        rank.generation_tokens += 1
        if prompt_tokens:
            rank.prompt_tokens += prompt_tokens
            rank.requests[request][1] = 0
        if token.last:
            rank.requests.pop(request, None)
            rank.finished["length"] += 1
        if answers:
            answers.put(token)

    def end_soon(self):
        """An engine is dead: after STANDIN_NOTICE_S fail what is in flight, then let the server end
        itself."""
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self):
        time.sleep(self.settings.notice_s)
        with self._lock:
            self.dead = True
            waiting = [answers for rank in self.ranks for answers, _ in rank.requests.values()]
        for answers in waiting:
            answers.put(None)
        time.sleep(self.settings.notice_s)
        self.leave("engine dead")

    @property
    def in_flight(self):
        return sum(len(rank.requests) for rank in self.ranks)
