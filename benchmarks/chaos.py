"""Random faults against the running product: after each round the service is ready or gone.

Two kinds of rounds, chosen at random from a seed. A *running* round injures one deployment that
stays up for the whole run: the service must be ready again, restarted exactly when a fault called
for it, with no process of an earlier attempt left. A *start* round interrupts a start of its own:
the exit status must be a documented one, and after `raylaunch stop` no process and no record may be
left. All with the stand-in for vLLM of the tests, on embedded Ray clusters.

Not injected: a step of the wall clock, which would hit the whole machine; and whatever needs root
(a full log disk, read-only bundles) when this is not root. A round that failed is repeated with the
same seed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil
from recovery import User, actors
from report import publish, table

from raylaunch import api
from raylaunch.errors import ClusterError, RaylaunchError
from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked
from raylaunch.runtime.cluster.local_cleanup import stop_local
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.state import Phase

RUNNING_KINDS = (
    "kill-server",
    "kill-engine",
    "kill-guard",
    "kill-keeper",
    "kill-agent",
    "kill-controller",
    "kill-server-then-agent",
    "full-log-disk",
    "read-only-bundles",
)
START_KINDS = ("stop-during-start", "signal-during-start", "start-with-256-files")
MOUNTING_KINDS = ("full-log-disk", "read-only-bundles")
LEFT_OUT = {"clock-step": "a step of the wall clock would hit the whole machine"}
QUICK = {
    "health.max_restarts": 1000,
    "health.backoff_first_s": 0,
    "health.canary_idle_s": 1,
    "health.canary_timeout_s": 4,
}
"""A round waits for the recovery, not for the back-off."""
ROUNDS = 200
SHORT_ROUNDS = 20
READY_S = 90.0
COMMAND_S = 120.0
SETTLE_S = 2.0
"""A restart without a fault would begin within this time after the recovery."""
GONE_S = 20.0
POLL_S = 0.2
REFILL_S = 0.005
LOG_DISK_MB = 32
FILES_LIMIT = 256
BUG = ("Traceback (most recent call last)", "this is a bug in raylaunch")


@dataclass(frozen=True)
class Draw:
    """One round as the seed decides it. `moment` is 0 to 1, of the time that a start takes."""

    number: int
    kind: str
    moment: float
    server: int
    signal: int


@dataclass(frozen=True)
class Outcome:
    """One round as it went. `problems` is empty when everything was as expected."""

    number: int
    kind: str
    what: str
    seconds: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """A command that has exited."""

    code: int
    text: str


class UnexpectedError(Exception):
    """The product did something else than it promises."""


def draw(seed: int, rounds: int, kinds: Sequence[str]) -> list[Draw]:
    """Return the rounds for a seed; every kind comes up before any is repeated."""
    dice = random.Random(seed)
    drawn: list[Draw] = []
    while len(drawn) < rounds:
        for kind in dice.sample(kinds, len(kinds)):
            moment = dice.random()
            number = dice.choice((signal.SIGTERM, signal.SIGHUP))
            drawn.append(Draw(len(drawn), kind, moment, dice.randrange(2), number))
    return drawn[:rounds]


def possible_kinds(can_mount: bool) -> tuple[list[str], dict[str, str]]:
    """Return the kinds for this machine, and why others are left out."""
    left_out = dict(LEFT_OUT)
    kinds = [*RUNNING_KINDS, *START_KINDS]
    if not can_mount:
        for kind in MOUNTING_KINDS:
            kinds.remove(kind)
            left_out[kind] = "needs root that may mount a tmpfs"
    return kinds, left_out


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return the table: one row per kind, in order of first appearance."""
    by_kind: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_kind.setdefault(one.kind, []).append(one)
    made = []
    for kind, same in by_kind.items():
        wrong = [one for one in same if one.problems]
        texts = [_cell(f"round {one.number}: {'; '.join(one.problems)}") for one in wrong]
        slowest = max(one.seconds for one in same)
        expected = str(len(same) - len(wrong))
        made.append([kind, str(len(same)), expected, f"{slowest:.1f}", "<br>".join(texts) or "-"])
    return made


def _cell(text: str) -> str:
    """Return a text as it can stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def missed_goals(outcomes: Sequence[Outcome], seed: int) -> list[str]:
    """Return a sentence per round that was not as expected."""
    return [
        f"chaos: seed {seed}, round {one.number}, {one.kind}: {problem}"
        for one in outcomes
        for problem in one.problems
    ]


def start_exit_problem(kind: str, code: int, number: int) -> str:
    """Return why the exit status of a `raylaunch start` is not a documented one; "" when it is.

    Args:
        kind: Of the round.
        code: As `subprocess` reports it.
        number: The signal that was sent, in a round that sends one.
    """
    allowed: dict[str, tuple[int, ...]] = {
        # 0: ready before the stop or the signal; 7: stopped while it started; 9: stopped since.
        "stop-during-start": (0, 7, 9),
        # 130: interrupted; the signal itself: before or after the part that must not be cut off.
        "signal-during-start": (0, 130, -number),
        # 4, 5, 7: refused, with a reason.
        "start-with-256-files": (0, 4, 5, 7),
    }
    if code in allowed[kind]:
        return ""
    return f"start exited with {code}, expected one of {allowed[kind]}"


class Product:
    """`raylaunch` for one user with a home, and one deployment of local-dual."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        user = User(home, standin=True)
        self.user = user
        self._following: ProcessPoolExecutor | None = None
        self.env = {
            variable: value
            for variable, value in user.env.items()
            if not variable.startswith("RAY_")
        }
        self.port = _free_port()
        settings = {
            "network.http_port": self.port,
            "network.rpc_port": _free_port(),
            **QUICK,
        }
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self.start_words = ("start", "local-dual", "--name", self.name, *words)

    def command(self, *words: str) -> list[str]:
        """Return the command line of `raylaunch` with these words."""
        return [sys.executable, "-m", "raylaunch", *words]

    def run(self, *words: str) -> Done:
        """Run a command; never raises for its exit status.

        Raises:
            UnexpectedError: it hung, or printed a traceback.
        """
        try:
            done = subprocess.run(
                self.command(*words),
                env=self.env,
                capture_output=True,
                text=True,
                check=False,
                timeout=COMMAND_S,
            )
        except subprocess.TimeoutExpired as error:
            raise UnexpectedError(f"`{words[0]}` took over {COMMAND_S:.0f} s") from error
        text = done.stdout + done.stderr
        refuse_bug(words[0], text)
        return Done(done.returncode, text)

    def begin(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Begin a command in a session of its own."""
        return subprocess.Popen(
            command,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def status(self) -> Status | None:
        """Return the status; None while nothing answers."""
        return self._follower().submit(_ask_status, self.name).result()

    def events(self, after: int = 0) -> list[Event]:
        """Return the events after number `after`."""
        return self._follower().submit(_ask_events, self.name, after).result()

    def _follower(self) -> ProcessPoolExecutor:
        """Return a process that stays connected to the cluster.

        A command for each question would take seconds on a small machine. This process cannot be
        the one: Ray reads the cluster's token once, and each cluster has a token of its own.
        """
        if self._following is None:
            os.environ["RAYLAUNCH_HOME"] = str(self.home)
            self._following = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._following

    def unfollow(self) -> None:
        """Disconnect from the cluster."""
        if self._following is not None:
            self._following.shutdown()
            self._following = None

    def processes(self, *, but_attempt: int | None = None) -> list[str]:
        """Return the marked processes of the deployment, and of its cluster unless it runs."""
        found = []
        for process in find_marked():
            if but_attempt is None and process.deployment.startswith(f"@{self.name}-"):
                found.append(f"pid {process.pid} {process.command[:60]}")
            if process.deployment == self.name and process.attempt != but_attempt:
                found.append(f"pid {process.pid} {process.command[:60]}")
        return found

    def records(self) -> list[str]:
        """Return the files that record embedded clusters of this home."""
        return sorted(path.name for path in (self.home / "clusters").glob("*"))

    def answers(self) -> bool:
        """Return whether a client gets a completion."""
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        try:
            return httpx.post(url, json=body, timeout=30, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def remove(self) -> None:
        """Kill whatever is left, by the markers of this deployment and cluster only."""
        self.unfollow()
        stop_local(self.home, self.name)
        markers = {one.deployment for one in find_marked()}
        for marker in markers:
            if marker == self.name or marker.startswith(f"@{self.name}-"):
                terminate_marked(marker, instance=ANY_INSTANCE, grace_s=0)


def _ask_status(name: str) -> Status | None:
    try:
        return api.attach(name).status()
    except RaylaunchError:
        return None


def _ask_events(name: str, after: int) -> list[Event]:
    return api.attach(name).events(after)


class RunningRounds:
    """Rounds against one deployment, which is started again only when a round has lost it."""

    def __init__(self, folder: Path, *, can_mount: bool) -> None:
        self.product = Product(folder / "home", f"chaos-{secrets.token_hex(3)}")
        self.logs = self.product.home / "logs"
        self.bundles = self.product.home / "bundles"
        self.can_mount = can_mount
        self.attempt = 0
        self.start_s = 10.0
        self.is_up = False

    def run(self, one: Draw) -> str:
        """Injure the deployment and await its recovery; return what was done.

        Raises:
            UnexpectedError: something else happened than is promised.
        """
        self._ensure_up()
        before = self._status_of(self.attempt, "before the round")
        try:
            what, restarts = self._injure(one, before)
            self._await_recovery(before.attempt, restarts)
        except UnexpectedError:
            self.close()  # the next round gets a deployment of its own
            raise
        return what

    def close(self) -> None:
        """Stop the deployment."""
        self.product.unfollow()
        if self.is_up:
            self.is_up = False
            try:
                stopped = self.product.run("stop", self.product.name)
                if stopped.code:
                    raise UnexpectedError(f"stop exited with {stopped.code}: {stopped.text[-300:]}")
                require_nothing_left(self.product)
            finally:
                self.product.remove()

    def stop(self) -> str:
        """Stop the deployment as the last round."""
        self.close()
        return "stopped"

    def _ensure_up(self) -> None:
        if self.is_up:
            return
        began = time.monotonic()
        started = self.product.run(*self.product.start_words)
        if started.code == ClusterError.exit_code:
            # Ray gives its own daemons a fixed time to start, which a busy machine may exceed. The
            # start is not the fault of this round.
            print(f"start exited with {started.code}, tried again: {started.text[-200:]}")
            require_nothing_left(self.product)
            began = time.monotonic()
            started = self.product.run(*self.product.start_words)
        if started.code:
            self.product.remove()
            raise UnexpectedError(f"start exited with {started.code}: {started.text[-400:]}")
        self.is_up = True
        self.start_s = time.monotonic() - began
        self.attempt = 1

    def _status_of(self, attempt: int, when: str) -> Status:
        status = self.product.status()
        if status is None:
            raise UnexpectedError(f"no status {when}")
        if (status.phase, status.attempt) != (Phase.READY, attempt):
            raise UnexpectedError(
                f"a restart without a fault {when}: {status.phase}, "
                f"attempt {status.attempt} instead of {attempt}"
            )
        return status

    def _injure(self, one: Draw, status: Status) -> tuple[str, tuple[int, ...]]:
        """Do the harm; return what was done, and how many restarts may follow."""
        server = _server_process(status, one.server)
        if one.kind == "kill-controller":
            controller, _ = actors(self.product.user)
            return kill("the controller", controller), (0,)
        if one.kind == "kill-server-then-agent":
            agent = _agent_of(server)
            pause_s = 0.1 + 0.5 * one.moment
            kill("the server", server)
            time.sleep(pause_s)
            kill("the agent", agent)
            return f"SIGKILL to server {one.server}, {pause_s:.2f} s later to its agent", (1, 2)
        if one.kind in MOUNTING_KINDS:
            return self._kill_without_disk(one, server, status), (1,)
        role = one.kind.removeprefix("kill-")
        return kill(f"the {role} of server {one.server}", _target(role, server)), (1,)

    def _kill_without_disk(self, one: Draw, server: psutil.Process, status: Status) -> str:
        """Kill the server while a disk cannot be written; the failed write must be an event."""
        last = max(event.number for event in self.product.events())
        spoiled = full_disk(self.logs)
        reported = "log-failed"
        if one.kind == "read-only-bundles":
            spoiled = read_only(self.bundles)
            reported = "bundle-failed"
        with spoiled:
            what = kill(f"server {one.server}", server)
            self._await_recovery(status.attempt, (1,))
            kinds = {event.kind for event in self.product.events(last)}
            if reported not in kinds:
                raise UnexpectedError(f"recovered, and no {reported} event")
        return f"{what}, {one.kind}"

    def _await_recovery(self, before: int, restarts: Sequence[int]) -> None:
        allowed = [before + count for count in restarts]
        deadline = time.monotonic() + READY_S
        status = self.product.status()
        while not _is_recovered(status, allowed):
            if time.monotonic() > deadline:
                raise UnexpectedError(f"not ready again within {READY_S:.0f} s: {_brief(status)}")
            time.sleep(POLL_S)
            status = self.product.status()
        time.sleep(SETTLE_S)
        settled = self.product.status()
        if settled is None or not _is_recovered(settled, allowed):
            raise UnexpectedError(f"{_brief(status)} after the recovery, then {_brief(settled)}")
        self.attempt = settled.attempt
        if not self.product.answers():
            raise UnexpectedError("ready, and a completion failed")
        old = self.product.processes(but_attempt=self.attempt)
        if old:
            raise UnexpectedError(f"{len(old)} processes of an earlier attempt: {old}")


def run_start_round(one: Draw, folder: Path, start_s: float) -> str:
    """Interrupt a start; afterwards nothing may be left. Returns what was done.

    Raises:
        UnexpectedError: something else happened than is promised.
    """
    product = Product(folder / f"round-{one.number}", f"chaos-{secrets.token_hex(3)}")
    try:
        if one.kind == "start-with-256-files":
            return _start_with_few_files(product)
        return _interrupt_start(one, product, start_s)
    finally:
        product.remove()
        shutil.rmtree(product.home, ignore_errors=True)


def _start_with_few_files(product: Product) -> str:
    script = f'ulimit -n {FILES_LIMIT} && exec "$@"'
    command = ["sh", "-c", script, "start", *product.command(*product.start_words)]
    code, text = _finish(product.begin(command))
    _stop_until_gone(product, must_exist=code == 0)
    _require(start_exit_problem("start-with-256-files", code, 0), text)
    return f"started with {FILES_LIMIT} files: exit status {code}"


def _interrupt_start(one: Draw, product: Product, start_s: float) -> str:
    # Beyond the usual duration too: the machine may be slower this time, and 0 is a valid outcome.
    pause_s = 1.1 * one.moment * start_s
    starting = product.begin(product.command(*product.start_words))
    time.sleep(pause_s)
    if one.kind == "stop-during-start":
        was_recorded = bool(product.records())
        stopped = product.run("stop", product.name)
        code, text = _finish(starting)
        what = f"stop after {pause_s:.1f} s: {stopped.code}, start: {code}"
        if stopped.code and (stopped.code != 9 or was_recorded):
            raise UnexpectedError(f"{what}: {stopped.text[-300:]}")
        if stopped.code == 0:
            require_nothing_left(product)
    else:
        starting.send_signal(one.signal)
        code, text = _finish(starting)
        what = f"{signal.Signals(one.signal).name} after {pause_s:.1f} s, start: {code}"
    _stop_until_gone(product, must_exist=False)
    _require(start_exit_problem(one.kind, code, one.signal), text)
    return what


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the exit of a start; return its status and output.

    Raises:
        UnexpectedError: it hung, or printed a traceback.
    """
    try:
        text, _ = process.communicate(timeout=COMMAND_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise UnexpectedError(f"start took over {COMMAND_S:.0f} s") from error
    refuse_bug("start", text)
    return process.returncode, text


def _stop_until_gone(product: Product, *, must_exist: bool) -> None:
    stopped = product.run("stop", product.name)
    allowed = (0,) if must_exist else (0, 9)
    if stopped.code not in allowed:
        raise UnexpectedError(f"stop exited with {stopped.code}: {stopped.text[-300:]}")
    require_nothing_left(product)


def _require(problem: str, text: str) -> None:
    if problem:
        raise UnexpectedError(f"{problem}: {text[-300:]}")


def refuse_bug(verb: str, text: str) -> None:
    """Refuse an output that is a traceback.

    Raises:
        UnexpectedError: it is one.
    """
    for sign in BUG:
        if sign in text:
            raise UnexpectedError(f"`{verb}` ended in a traceback: {text[-600:]}")


def require_nothing_left(product: Product) -> None:
    """Wait until no process and no record is left.

    Raises:
        UnexpectedError: something is left.
    """
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        left = [*product.processes(), *product.records()]
        if not left:
            return
        time.sleep(0.2)
    raise UnexpectedError(f"left behind: {left}")


def kill(name: str, process: psutil.Process) -> str:
    """SIGKILL a process; it may have exited by itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return f"SIGKILL to {name} (pid {process.pid})"


def _target(role: str, server: psutil.Process) -> psutil.Process:
    """Return a process of a server's tree: agent, keeper, guard, server, engine."""
    if role == "server":
        return server
    if role == "engine":
        for child in server.children(recursive=True):
            if child.cmdline()[0].startswith("VLLM::EngineCore"):
                return child
        raise UnexpectedError("the server has no engine")
    guard = _parent(server)
    if role == "guard":
        return guard
    keeper = _parent(guard)
    return keeper if role == "keeper" else _parent(keeper)


def _server_process(status: Status, index: int) -> psutil.Process:
    pid = status.servers[index].seen.pid
    if pid is None:
        raise UnexpectedError(f"server {index} is ready without a pid")
    return psutil.Process(pid)


def _is_recovered(status: Status | None, allowed: Sequence[int]) -> bool:
    """Return whether the deployment is ready, on one of these attempts.

    Raises:
        UnexpectedError: it failed for good.
    """
    if status is None:
        return False
    if status.phase is Phase.FAILED:
        raise UnexpectedError(f"failed for good: {(status.error or {}).get('what', '')}")
    return status.phase is Phase.READY and status.attempt in allowed


def _brief(status: Status | None) -> str:
    return "no status" if status is None else f"{status.phase}, attempt {status.attempt}"


def _agent_of(server: psutil.Process) -> psutil.Process:
    return _target("agent", server)


def _parent(process: psutil.Process) -> psutil.Process:
    found = process.parent()
    if found is None:
        raise UnexpectedError(f"pid {process.pid} has no parent")
    return found


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Keep the file system of `folder` full: a new attempt prunes old logs, which frees space."""
    filler = folder / "filler"
    stopping = threading.Event()

    def keep_full() -> None:
        with filler.open("wb", buffering=0) as file:
            while not stopping.is_set():
                try:
                    file.write(b"\0" * 65536)
                except OSError:
                    stopping.wait(REFILL_S)

    thread = threading.Thread(target=keep_full, daemon=True)
    thread.start()
    while shutil.disk_usage(folder).free:
        time.sleep(REFILL_S)
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Cover `folder` with a file system that cannot be written, not even by root."""
    folder.mkdir(parents=True, exist_ok=True)
    with mounted(folder, "ro,size=1m"):
        yield


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs on `folder`. Lazily unmounted: servers may hold files on it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    """Return whether this user may mount a tmpfs below `folder`."""
    if os.geteuid() != 0:
        return False
    try:
        with mounted(folder / "try", "size=1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _free_port() -> int:
    """Return a free port below those that the kernel hands out by itself."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_rounds(
    draws: Sequence[Draw], folder: Path, *, can_mount: bool, limit_s: float
) -> tuple[list[Outcome], int]:
    """Run the rounds one after the other; return the outcomes and how many had no time left."""
    deadline = time.monotonic() + limit_s
    running = RunningRounds(folder, can_mount=can_mount)
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        if can_mount:
            stack.enter_context(mounted(running.logs, f"size={LOG_DISK_MB}m"))
        stack.callback(running.product.remove)
        for one in draws:
            if time.monotonic() > deadline:
                break
            outcomes.append(_timed(one, _action(one, running, folder)))
            print(_line(outcomes[-1]), flush=True)
        closing = Draw(len(outcomes), "stop", 0, 0, 0)
        skipped = len(draws) - len(outcomes)
        outcomes.append(_timed(closing, running.stop))
    return outcomes, skipped


def _action(one: Draw, running: RunningRounds, folder: Path) -> Callable[[], str]:
    if one.kind in START_KINDS:
        return lambda: run_start_round(one, folder, running.start_s)
    return lambda: running.run(one)


def _timed(one: Draw, act: Callable[[], str]) -> Outcome:
    began = time.monotonic()
    what = ""
    problems: tuple[str, ...] = ()
    try:
        what = act()
    except (UnexpectedError, RaylaunchError, psutil.Error, StopIteration) as error:
        problems = (f"{type(error).__name__}: {error}".removeprefix("UnexpectedError: "),)
    return Outcome(one.number, one.kind, what, time.monotonic() - began, problems)


def _line(one: Outcome) -> str:
    result = "; ".join(one.problems) or "as expected"
    return f"{one.number:4} {one.kind:24} {one.seconds:6.1f} s  {one.what}  {result}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120, help="begin no round after this")
    parser.add_argument("--kind", action="append", default=[], help="only this kind")
    parser.add_argument("--short", action="store_true", help="20 rounds; the page stays as it is")
    given = parser.parse_args()
    rounds = given.rounds or (SHORT_ROUNDS if given.short else ROUNDS)
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        can_mount = may_mount(folder)
        kinds, left_out = possible_kinds(can_mount)
        chosen = [kind for kind in kinds if kind in given.kind] or kinds
        draws = draw(given.seed, rounds, chosen)
        outcomes, skipped = run_rounds(
            draws, folder, can_mount=can_mount, limit_s=60 * given.minutes
        )
    missed = missed_goals(outcomes, given.seed)
    head = ["fault", "rounds", "as expected", "slowest, s", "what went wrong"]
    notes = [f"Left out: {kind}: {why}." for kind, why in left_out.items()]
    if skipped:
        notes.append(f"{skipped} rounds were not begun within {given.minutes:g} minutes.")
    intro = (
        f"`raylaunch start local-dual` with the stand-in of the tests, seed {given.seed}. "
        "After each round: the service is ready or gone, no process or record is left, no restart "
        "without a fault, documented exit statuses."
    )
    text = "\n\n".join([intro, table(head, rows(outcomes)), *notes])
    publish(
        "chaos",
        "Random faults",
        text,
        {"seed": given.seed, "rounds": [asdict(one) for one in outcomes], "left_out": left_out},
        missed=missed,
        short=given.short,
        arguments=" ".join(sys.argv[1:]),
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
