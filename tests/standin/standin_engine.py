# ruff: noqa: PTH123, SIM105
# (pathlib and contextlib would double the start-up time)
"""An engine of one data-parallel rank, with its workers: connects to the primary, "loads", then
makes tokens."""

import os
import select
import signal
import time

from standin_link import connect
from standin_process import Log, play, set_title, set_up_signals


def fork(run, *args):
    """Run `run(*args)` in a child; return the child's pid. The child never returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(*args)
        code = 0
    finally:
        if code:
            import traceback

            traceback.print_exc()
        os._exit(code)


def run_coordinator(settings, closing):
    """The DP coordinator: a process that is there."""
    _close(closing)
    set_title("VLLM::DPCoordinator")
    set_up_signals(settings, lambda *_: os._exit(0))
    while True:
        signal.pause()


def run_engine(command, settings, rank, closing):
    """The whole life of an engine process.

    `closing`: the main process' sockets, which a spawned child has not.
    """
    _close(closing)
    name = f"EngineCore_DP{rank}" if command.size > 1 else "EngineCore"
    set_title(f"VLLM::{name}")
    engine = Engine(command, settings, rank, Log(name))
    set_up_signals(settings, engine.terminate)
    engine.connect()
    engine.load()
    engine.serve()


class Engine:
    """One rank."""

    def __init__(self, command, settings, rank, log):
        self.command = command
        self.settings = settings
        self.rank = rank
        self.log = log
        self.main = os.getppid()
        self.link = None
        # read end of a worker's pipe -> (its number, its pid); at its end the worker is dead
        self.alive = {}
        self.running = {}
        self.waiting = []
        self.garbled = settings.plays("engine", "answer", "garble")

    def terminate(self, *_):
        self.log("core.py:1454", "[shutdown] EngineCore: trigger received signal=SIGTERM")
        self.log("core.py:1635", "[shutdown] EngineCore: start mode=abort timeout=0s")
        self.log("core.py:1499", "[shutdown] EngineCore: exiting busy loop")
        os._exit(0)

    def connect(self):
        """HELLO, and wait for the primary's answer; ZMQ reconnects silently, so a lost connection
        is tried again."""
        deadline = time.monotonic() + self.settings.handshake_s
        while True:
            self.link = connect(self.command.rpc, deadline - time.monotonic())
            if self.link and self._shake(deadline):
                return
            if time.monotonic() > deadline:
                self._fail(
                    "RuntimeError: Did not receive response from front-end process within 5 minutes"
                )
            time.sleep(0.05)

    def _shake(self, deadline):
        headless = self.command.headless
        self.link.send(
            {"status": "HELLO", "rank": self.rank, "local": not headless, "headless": headless}
        )
        while self.link.open and time.monotonic() < deadline:
            if self.link.receive(timeout=0.5):
                return True
        return False

    def load(self):
        """Print what a real start prints, spread over STANDIN_START_S, and report READY."""
        settings, log = self.settings, self.log
        log(
            "core.py:133",
            f"Initializing a V1 LLM engine (v0.32.0) with config: model={self.command.model!r}, ...",
        )
        play(settings.fault, "engine", "connect", log)
        time.sleep(0.1 * settings.start_s)
        for number in range(settings.workers):
            self._start_worker(number)
        worker = Log("Worker_TP0" if settings.workers > 1 else "Worker")
        worker("cpu_model_runner.py:68", f"Starting to load model {self.command.model}...")
        self._load_shards()
        self._check_workers()
        worker(
            "default_loader.py:501", f"Loading weights took {0.5 * settings.start_s:.2f} seconds"
        )
        time.sleep(0.4 * settings.start_s)
        play(settings.fault, "engine", "warm-up", log)
        log(
            "kv_cache_utils.py:2327",
            "CPU KV cache size: 2,097,152 tokens, Maximum concurrency for 1,024 tokens: 2048.00x",
        )
        self._check_workers()
        log(
            "core.py:402",
            f"init engine (profile, create kv cache, warmup model) took {0.4 * settings.start_s:.2f} s",
        )
        self.link.send({"status": "READY", "rank": self.rank, "hash": self.command.config_hash})

    def _load_shards(self):
        count = self.settings.shards
        for done in range(count + 1):
            if done == max(1, count // 2):
                play(self.settings.fault, "engine", "weights", self.log)
            bar = f"{100 * done // count:3d}% Completed | {done}/{count} [00:00<00:00, 365.77it/s]"
            self.log.raw(f"\rLoading safetensors checkpoint shards: {bar}", fd=2)
            if done < count:
                time.sleep(0.5 * self.settings.start_s / count)

    def _start_worker(self, number):
        alive_read, alive_write = os.pipe()
        life_read, life_write = os.pipe()
        closing = [
            alive_read,
            life_write,
            self.link.sock.fileno(),
            *self.alive,
            *getattr(self, "lives", []),
        ]
        pid = fork(run_worker, self.settings, number, life_read, closing)
        os.close(alive_write)
        os.close(life_read)
        self.lives = [
            *getattr(self, "lives", []),
            life_write,
        ]  # open for as long as this engine lives
        self.alive[alive_read] = (number, pid)

    def _check_workers(self):
        dead = select.select(list(self.alive), [], [], 0)[0]
        if dead:
            self._lose_worker(dead[0])

    def _lose_worker(self, fd):
        number, pid = self.alive[fd]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        message = f"Worker proc VllmWorker-{number} died unexpectedly (exit code: {code}), shutting down executor."
        self.log("multiproc_executor.py:315", message, "ERROR")
        self._fail("RuntimeError: Executor failed.")

    def _fail(self, text, wrapper="EngineCore encountered a fatal error."):
        self.log.lines("core.py:1443", f"{wrapper}\nTraceback (most recent call last):\n{text}")
        self._tell_dead()
        os._exit(1)

    def _tell_dead(self):
        if self.link:
            self.link.send({"dead": True})

    def serve(self):
        """Continuous batching: one token per step for every running request.

        Never ends by itself.
        """
        ready_at = time.monotonic() + self.settings.fail_after_s
        step_at = 0.0
        fault = self.settings.fault
        fault_pending = bool(fault and fault["where"] == "engine" and fault["at"] == "up")
        while True:
            if fault_pending and time.monotonic() >= ready_at:
                play(fault, "engine", "up", self.log, self._tell_dead)
                fault_pending = False
            timeout = self.settings.token_s if self.running else (0.05 if fault_pending else None)
            self._listen(timeout)
            self._wait_for_main()
            if self.running and time.monotonic() >= step_at:
                self._step()
                step_at = time.monotonic() + self.settings.token_s

    def _listen(self, timeout):
        sources = [*self.alive, *([self.link.sock] if self.link.open else [])]
        ready = select.select(sources, [], [], timeout)[0]
        for fd in ready:
            if fd is not self.link.sock:
                self._lose_worker(fd)
        if self.link.sock in ready:
            for message in self.link.receive(0):
                self._take(message)

    def _take(self, message):
        if "sync" in message:
            self.link.send({"synced": message["sync"]})
        elif "id" in message:
            self.waiting.append([message["id"], message["tokens"]])
            self._admit()
        elif "bye" in message and self.command.moe:
            # An orderly end of the primary takes its rank out of the group, and with it every
            # collective.
            self._fail("RuntimeError: Connection closed by peer")

    def _admit(self):
        room = self.command.number("--max-num-seqs", 128) - len(self.running)
        self.running.update((request, left) for request, left in self.waiting[:room])
        del self.waiting[:room]

    def _step(self):
        out = []
        for request, left in list(self.running.items()):
            out.append([request, left == 1])
            if left == 1:
                del self.running[request]
            else:
                self.running[request] = left - 1
        self._admit()
        stats = {"running": len(self.running), "waiting": len(self.waiting)}
        self.link.send({"out": out, "stats": stats, "garbled": self.garbled})

    def _wait_for_main(self):
        """With STANDIN_FOLLOW_MAIN: while the main process is stopped, so is this rank."""
        while self.settings.follow_main and os.getppid() == self.main and _state(self.main) == "T":
            time.sleep(0.02)


def run_worker(settings, number, life, closing):
    """A worker: it does nothing, and ends when its engine does."""
    _close(closing)
    name = f"Worker_TP{number}" if settings.workers > 1 else "Worker"
    set_title(f"VLLM::{name}")
    set_up_signals(settings, lambda *_: os._exit(0))
    log = Log(name)
    if number == 0:
        play(settings.fault, "worker", "weights", log)
    os.read(life, 1)
    log("multiproc_executor.py:843", "Parent process exited, terminating worker queues")


def _close(descriptors):
    for descriptor in descriptors:
        try:
            os.close(descriptor if isinstance(descriptor, int) else descriptor.fileno())
        except (OSError, ValueError):
            pass


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
