"""The owner's side of a server process: what to run, in which environment, and the handle on its guard."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raylaunch.node.process.log_files import start_fresh
from raylaunch.node.process.process_markers import ATTEMPT, DEPLOYMENT, SERVER, end_marked
from raylaunch.plan.facts import MarkedProcess

GUARD = Path(__file__).with_name("guard.py")
KEEPER_TIMEOUT_S = 15.0
"""The keeper gives up on what a killed guard left behind after 10 s."""
ANSWER_S = 5.0
"""What `end` allows the guard beyond the times it was given."""
RAY_SETS = frozenset({"ASCEND_RT_VISIBLE_DEVICES", "OMP_NUM_THREADS"})
"""Ray puts these into its workers: the devices in an order of its own, and one thread (measured, Ray 2.60)."""


@dataclass(frozen=True)
class ServerSpec:
    """What the guard runs. `env` is complete and holds secrets: it is never printed. Times in seconds."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    log: str
    cwd: str = "/"
    rotate_bytes: int = 64 << 20
    keep: int = 4
    """Rotated files kept beside the current one."""
    term_timeout_s: float = 30.0
    """From SIGTERM to SIGKILL when the owner goes away, or `stop` names no time of its own."""
    orphan_grace_s: float = 1.0
    """From SIGTERM to SIGKILL for what is left below a server that has ended: it delays a restart."""
    kill_timeout_s: float = 20.0
    """How long to wait for killed processes to vanish; one inside a driver call takes its time."""
    niceness: int | None = 0
    """Wanted niceness; below the inherited one it is taken only where permitted. None: inherit."""


@dataclass(frozen=True)
class ProcessState:
    """What the owner knows of a server. `at` times in seconds since the epoch on this node."""

    pid: int | None = None
    guard: int | None = None
    niceness: int | None = None
    spawned_at: float | None = None
    error: str = ""
    """Why it could not be started."""
    exit_code: int | None = None
    exit_signal: int | None = None
    exited_at: float | None = None
    guard_lost: bool = False
    """The guard died first; how the server ended is then not known."""
    clean: bool = False
    """The teardown is over; `left` names the pids that resisted it."""
    left: tuple[int, ...] = ()

    @property
    def running(self) -> bool:
        """The server was started and nothing says that it has ended."""
        return (
            self.pid is not None and self.exited_at is None and not (self.guard_lost or self.clean)
        )


def child_env(
    base: Mapping[str, str],
    plan_env: Mapping[str, str],
    unset: Iterable[str] = (),
    *,
    deployment: str,
    attempt: int,
    server: int,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The complete environment of a server: the inherited one without Ray's part, then plan, secrets, marker.

    `unset` removes inherited names only. SPT_NOENV keeps setproctitle, with which vLLM renames its processes, from
    writing the title over the environment block, where the marker is looked for (measured, setproctitle 1.3.8).
    """
    dropped = RAY_SETS | frozenset(unset)
    kept = {
        name: value
        for name, value in base.items()
        if name not in dropped and not name.startswith("RAY_")
    }
    marker = {DEPLOYMENT: deployment, ATTEMPT: str(attempt), SERVER: str(server), "SPT_NOENV": "1"}
    return {**kept, **plan_env, **(secrets or {}), **marker}


class ServerProcess:
    """One server under its guard.

    `on_event` is called on a thread of this object, one event at a time: spawned, failed, log, log_failed, exit,
    guard_lost (the guard died before its work was done), and always last clean. It must not call `wait` or `end`.
    """

    def __init__(self, spec: ServerSpec, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.spec = spec
        self._on_event = on_event
        self._state = ProcessState()
        self._done = threading.Event()
        self._write = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Put an older log aside, start the guard, hand it the spec; `spawned` or `failed` follows as an event.

        Raises:
            OSError: The log folder could not be made or the guard not be started.
        """
        start_fresh(Path(self.spec.log))
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *self._title()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # once it has opened the log, its stderr goes there
            env=self._guard_env(),
            cwd="/",
            start_new_session=True,  # Ray ends the process group of a worker that dies
        )
        self._send(asdict(replace(self.spec, env=dict(self.spec.env))))
        threading.Thread(target=self._read_events, name="guard-events", daemon=True).start()

    @property
    def state(self) -> ProcessState:
        """What is known now; never blocks."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The server's pid, None before it was spawned."""
        return self._state.pid

    @property
    def guard_pid(self) -> int | None:
        """The guard's pid, None before the server was spawned."""
        return self._state.guard

    def stop(self, term_timeout_s: float | None = None) -> None:
        """Ask for SIGTERM, then SIGKILL after `term_timeout_s` (None: the spec's). Returns at once."""
        seconds = self.spec.term_timeout_s if term_timeout_s is None else term_timeout_s
        self._send({"do": "stop", "term_timeout_s": seconds})

    def kill(self) -> None:
        """Ask for SIGKILL of everything below the guard. Returns at once."""
        self._send({"do": "kill"})

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the teardown is over and the guard is gone; False when `timeout` seconds were not enough."""
        return self._done.wait(timeout)

    def end(self, term_timeout_s: float | None = None) -> list[MarkedProcess]:
        """Stop, wait, and prove it: whatever carries this server's marker is ended. Returns what resisted."""
        seconds = self.spec.term_timeout_s if term_timeout_s is None else term_timeout_s
        self.stop(seconds)
        self.wait(seconds + self.spec.kill_timeout_s + ANSWER_S)
        return self._sweep()

    def _read_events(self) -> None:
        guard = self._running_guard()
        assert guard.stdout is not None
        try:
            with guard.stdout:
                for line in guard.stdout:
                    self._tell(json.loads(line))
            if not self._state.clean:
                self._lose_guard()
        finally:
            self._close(guard)
            self._done.set()

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] == "clean":  # what follows "clean" must find the guard gone
            self._close(self._running_guard())
        self._state = _apply(self._state, event)
        self._on_event(event)

    def _lose_guard(self) -> None:
        """Say so at once; then the keeper ends what it inherits, and the marker finds the rest."""
        self._tell({"event": "guard_lost", "at": time.time()})
        self._close(self._running_guard())
        self._tell({"event": "clean", "left": [process.pid for process in self._sweep()]})

    def _sweep(self) -> list[MarkedProcess]:
        env = self.spec.env
        if DEPLOYMENT not in env:
            return []
        return end_marked(env[DEPLOYMENT], int(env[ATTEMPT]), int(env[SERVER]), grace_s=0)

    def _close(self, guard: subprocess.Popen[bytes]) -> None:
        """Reap the keeper, which ends right after the guard."""
        with self._write:
            assert guard.stdin is not None
            _close_quietly(guard.stdin)
        try:
            guard.wait(KEEPER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()

    def _send(self, message: dict[str, Any]) -> None:
        guard = self._running_guard()
        assert guard.stdin is not None
        with self._write:
            if guard.stdin.closed:
                return
            try:
                guard.stdin.write(json.dumps(message).encode() + b"\n")
                guard.stdin.flush()
            except BrokenPipeError:  # the guard is gone: the reader finds out and tells
                _close_quietly(guard.stdin)

    def _running_guard(self) -> subprocess.Popen[bytes]:
        if self._guard is None:
            raise RuntimeError("the server process was not started")
        return self._guard

    def _guard_env(self) -> dict[str, str]:
        """The marker, and what this Python may need to find its own libraries. No secrets."""
        names = (DEPLOYMENT, ATTEMPT, SERVER, "LD_LIBRARY_PATH")
        return {name: self.spec.env[name] for name in names if name in self.spec.env}

    def _title(self) -> list[str]:
        """Words for people who read `ps`; the guard does not look at them."""
        return [
            f"{name}={self.spec.env[name]}"
            for name in (DEPLOYMENT, ATTEMPT, SERVER)
            if name in self.spec.env
        ]


def _apply(state: ProcessState, event: dict[str, Any]) -> ProcessState:
    match event:
        case {"event": "spawned", "pid": pid, "guard": guard, "niceness": niceness, "at": at}:
            return replace(state, pid=pid, guard=guard, niceness=niceness, spawned_at=at)
        case {"event": "failed", "error": error}:
            return replace(state, error=error)
        case {"event": "exit", "code": code, "signal": signal, "at": at}:
            return replace(state, exit_code=code, exit_signal=signal, exited_at=at)
        case {"event": "guard_lost"}:
            return replace(state, guard_lost=True)
        case {"event": "clean", "left": left}:
            return replace(state, clean=True, left=tuple(left))
    return state


def _close_quietly(pipe: Any) -> None:  # noqa: ANN401
    """Close even when unsent bytes remain for a reader that is gone."""
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
