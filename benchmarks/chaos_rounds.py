"""The rounds of the chaos benchmark: injure a deployment, or interrupt a start."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos_draw import MOUNTING_KINDS, START_KINDS, Draw, start_exit_problem
from chaos_faults import (
    Shim,
    UnexpectedError,
    full_disk,
    kill,
    mounted,
    read_only,
    require_preloaded,
    server_process,
    target,
)
from chaos_product import Product, Server, refuse_bug, require_nothing_left
from recovery import actors

from raylaunch.errors import ClusterError, RaylaunchError
from raylaunch.runtime.cluster.ray_start import TOO_LATE
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase

SETTLE_S = 2.0
"""A restart without a fault would begin within this time after the recovery."""
STEP_S = 60
STEP_SETTLE_S = 3.0
"""A step is noticed at the next of the heartbeats, which come every second."""
WRITE_DELAY_US = 50_000
POLL_S = 0.2
ADOPTED_S = 60.0
"""Another agent must own the guard by then."""
LOG_DISK_MB = 32
FILES_LIMIT = 256
START_TRIES = 10


@dataclass(frozen=True)
class Outcome:
    """One round as it went. `problems` is empty when everything was as expected."""

    number: int
    kind: str
    what: str
    seconds: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Rounds:
    """A run: its outcomes, the rounds that had no time left, the starts that were begun again."""

    outcomes: list[Outcome]
    skipped: int
    slow_starts: int


@dataclass(frozen=True)
class World:
    """What the rounds have in common: their folder, what they start, and what they can do to it."""

    folder: Path
    server: Server
    can_mount: bool
    shim: Shim | None
    """None without a compiler."""


class RunningRounds:
    """Rounds against one deployment, which is started again only when a round has lost it."""

    def __init__(self, world: World) -> None:
        preload = world.shim.env if world.shim else {}
        self.product = Product(world.folder / "home", world.server, preload)
        self.logs = self.product.home / "logs"
        self.bundles = self.product.home / "bundles"
        self.shim = world.shim
        self.attempt = 0
        self.start_s = 10.0
        self.is_up = False
        self.slow_starts = 0
        """Starts that were begun again: the machine was too busy for Ray."""

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
        for _ in range(START_TRIES):
            began = time.monotonic()
            started = self.product.run(*self.product.start_words)
            is_late = started.code == ClusterError.exit_code and TOO_LATE in started.text
            if not is_late:
                break
            # The start is not the fault of this round, but nothing of it may be left.
            self.slow_starts += 1
            print("the machine was too busy for Ray: `start` is tried again", flush=True)
            require_nothing_left(self.product)
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
        server = server_process(status, one.server)
        if one.kind == "kill-controller":
            controller, _ = actors(self.product.user)
            return kill("the controller", controller), (0,)
        if one.kind == "kill-server-then-agent":
            agent = target("agent", server, self.product.home)
            pause_s = 0.1 + 0.5 * one.moment
            kill("the server", server)
            time.sleep(pause_s)
            kill("the agent", agent)
            return f"SIGKILL to server {one.server}, {pause_s:.2f} s later to its agent", (1, 2)
        if one.kind in MOUNTING_KINDS:
            return self._kill_without_disk(one, server, status), (1,)
        if one.kind == "clock-step":
            return self._step_clock(one, status), (0,)
        if one.kind == "slow-disk":
            assert self.shim is not None
            require_preloaded(actors(self.product.user))
            with self.shim.set(delay_us=WRITE_DELAY_US):
                what = kill(f"server {one.server}", server)
                self._await_recovery(status.attempt, (1,))
            return f"{what}, each write takes {WRITE_DELAY_US / 1000:.0f} ms longer", (1,)
        role = one.kind.removeprefix("kill-")
        process = target(role, server, self.product.home)
        if role == "agent":
            what = kill(f"the agent of server {one.server}", process)
            self._await_adoption(server, process)
            return what, (0,)
        return kill(f"the {role} of server {one.server}", process), (1,)

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

    def _await_adoption(self, server: psutil.Process, old: psutil.Process) -> None:
        """Wait until another agent owns the guard of a server, which runs on meanwhile."""
        deadline = time.monotonic() + ADOPTED_S
        while time.monotonic() < deadline:
            with contextlib.suppress(UnexpectedError):
                if target("agent", server, self.product.home).pid != old.pid:
                    return
            time.sleep(POLL_S)
        raise UnexpectedError(f"no other agent has adopted the server within {ADOPTED_S:.0f} s")

    def _step_clock(self, one: Draw, status: Status) -> str:
        """Step the wall clock of every process of the deployment and of Ray, and step it back."""
        assert self.shim is not None
        require_preloaded(actors(self.product.user))
        step_s = STEP_S if one.server else -STEP_S
        with self.shim.set(step_s=step_s):
            time.sleep(STEP_SETTLE_S)
            self._status_of(status.attempt, f"after a step of {step_s} s")
        time.sleep(STEP_SETTLE_S)
        return f"the wall clock steps by {step_s} s and back"

    def _await_recovery(self, before: int, restarts: Sequence[int]) -> None:
        allowed = [before + count for count in restarts]
        ready_s = self.product.server.ready_s
        deadline = time.monotonic() + ready_s
        status = self.product.status()
        while not _is_recovered(status, allowed):
            if time.monotonic() > deadline:
                raise UnexpectedError(f"not ready again within {ready_s:.0f} s: {_brief(status)}")
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


def run_start_round(one: Draw, world: World, start_s: float) -> str:
    """Interrupt a start; afterwards nothing may be left. Returns what was done.

    Raises:
        UnexpectedError: something else happened than is promised.
    """
    # One home for all: its model, code and caches are made once.
    product = Product(world.folder / "starts", world.server, {})
    try:
        if one.kind == "start-with-256-files":
            return _start_with_few_files(product)
        return _interrupt_start(one, product, start_s)
    except UnexpectedError:
        shutil.rmtree(product.home, ignore_errors=True)
        raise
    finally:
        product.remove()


def _start_with_few_files(product: Product) -> str:
    script = f'ulimit -n {FILES_LIMIT} && exec "$@"'
    command = ["sh", "-c", script, "start", *product.command(*product.start_words)]
    code, text = _finish(product, product.begin(command))
    _stop_until_gone(product, must_exist=code == 0)
    _require(start_exit_problem("start-with-256-files", code, 0, text), text)
    return f"started with {FILES_LIMIT} files: exit status {code}"


def _interrupt_start(one: Draw, product: Product, start_s: float) -> str:
    # Beyond the usual duration too: the machine may be slower this time, and 0 is a valid outcome.
    pause_s = 1.1 * one.moment * start_s
    starting = product.begin(product.command(*product.start_words))
    time.sleep(pause_s)
    if one.kind == "stop-during-start":
        was_recorded = bool(product.records())
        stopped = product.run("stop", product.name)
        code, text = _finish(product, starting)
        what = f"stop after {pause_s:.1f} s: {stopped.code}, start: {code}"
        if stopped.code and (stopped.code != 9 or was_recorded):
            raise UnexpectedError(f"{what}: {stopped.text[-300:]}")
        if stopped.code == 0:
            require_nothing_left(product)
    else:
        starting.send_signal(one.signal)
        code, text = _finish(product, starting)
        what = f"{signal.Signals(one.signal).name} after {pause_s:.1f} s, start: {code}"
    _stop_until_gone(product, must_exist=False)
    _require(start_exit_problem(one.kind, code, one.signal, text), text)
    return what


def _finish(product: Product, process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the exit of a start; return its status and output.

    Raises:
        UnexpectedError: it hung, or printed a traceback.
    """
    limit_s = product.server.command_s
    try:
        text, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise UnexpectedError(f"start took over {limit_s:.0f} s") from error
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


def _is_recovered(status: Status | None, allowed: Sequence[int]) -> bool:
    """Return whether the deployment is ready, on one of these attempts.

    Raises:
        UnexpectedError: it failed for good, or was restarted once more than the round calls for.
    """
    if status is None:
        return False
    if status.phase is Phase.FAILED:
        raise UnexpectedError(f"failed for good: {(status.error or {}).get('what', '')}")
    if status.attempt > max(allowed):
        raise UnexpectedError(f"a restart without a fault: {_brief(status)}")
    return status.phase is Phase.READY and status.attempt in allowed


def _brief(status: Status | None) -> str:
    return "no status" if status is None else f"{status.phase}, attempt {status.attempt}"


def run_rounds(
    draws: Sequence[Draw],
    world: World,
    *,
    limit_s: float,
    done: Sequence[Outcome] = (),
    keep: Callable[[Outcome], None],
) -> Rounds:
    """Run the rounds one after the other, then stop the deployment.

    Args:
        draws: The whole run.
        world: Where and with what.
        limit_s: No round begins after this time.
        done: The first rounds, from an earlier run of the same draws.
        keep: Called with each outcome.
    """
    deadline = time.monotonic() + limit_s
    running = RunningRounds(world)
    outcomes = list(done)
    with contextlib.ExitStack() as stack:
        if world.can_mount:
            stack.enter_context(mounted(running.logs, f"size={LOG_DISK_MB}m"))
        stack.callback(running.product.remove)
        for one in draws[len(done) :]:
            if time.monotonic() > deadline:
                break
            outcomes.append(_timed(one, _action(one, running, world)))
            keep(outcomes[-1])
            print(_line(outcomes[-1]), flush=True)
        closing = Draw(len(outcomes), "stop", 0, 0, 0)
        skipped = len(draws) - len(outcomes)
        outcomes.append(_timed(closing, running.stop))
    return Rounds(outcomes, skipped, running.slow_starts)


def _action(one: Draw, running: RunningRounds, world: World) -> Callable[[], str]:
    if one.kind in START_KINDS:
        return lambda: run_start_round(one, world, running.start_s)
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
