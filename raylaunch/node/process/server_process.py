"""The owner's side of a server process: argv, environment, and the handle on its guard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from raylaunch.node.process.guard import DISK_ERRORS
from raylaunch.node.process.log_files import set_aside_old_log
from raylaunch.node.process.process_markers import (
    ATTEMPT,
    DEPLOYMENT,
    INSTANCE,
    MARKER,
    SERVER,
    terminate_marked,
)
from raylaunch.plan.facts import MarkedProcess

log = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
KEEPER_TIMEOUT_S = 15.0
"""The keeper gives up on what a killed guard left behind after 10 s."""
ANSWER_S = 5.0
"""What `terminate` allows the guard beyond the times it was given."""
RAY_SETS = frozenset({"ASCEND_RT_VISIBLE_DEVICES", "OMP_NUM_THREADS"})
"""Ray sets these in its workers: the devices in an order of its own, and one thread (measured, Ray
2.60)."""


@dataclass(frozen=True)
class ServerSpec:
    """What the guard runs. Times in seconds.

    `env` is complete and holds secrets: it is never printed. The marker in it (`child_env`) names
    the deployment's instance; what this server leaves behind is found by that marker.
    """

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
    """From SIGTERM to SIGKILL for what an exited server leaves below it: it delays a restart."""
    kill_timeout_s: float = 20.0
    """How long to wait for killed processes to vanish; one inside a driver call takes its time."""
    niceness: int | None = 0
    """Below the inherited niceness it is set only where permitted. None: inherit."""


@dataclass(frozen=True)
class ProcessState:
    """What the owner knows of a server. `at` times in seconds since the epoch on this node."""

    pid: int | None = None
    guard: int | None = None
    niceness: int | None = None
    spawned_at: float | None = None
    error: str = ""
    """Why it could not be started."""
    log_error: str = ""
    """Why its output cannot be written to the log now; "" while it can."""
    exit_code: int | None = None
    exit_signal: int | None = None
    exited_at: float | None = None
    keeper_lost: bool = False
    """The keeper was killed, so the guard stops the server."""
    guard_lost: bool = False
    """The guard died first; the server's exit status is then unknown."""
    clean: bool = False
    """The teardown is over; `left` names the pids that resisted it."""
    left: tuple[int, ...] = ()

    @property
    def running(self) -> bool:
        """The server was spawned, and no event reports that it has exited."""
        if self.pid is None or self.exited_at is not None:
            return False
        return not (self.guard_lost or self.clean)


def child_env(
    base: Mapping[str, str],
    plan_env: Mapping[str, str],
    unset: Iterable[str] = (),
    *,
    deployment: str,
    instance: str,
    attempt: int,
    server: int,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Build the complete environment of a server.

    That is the inherited one without Ray's part, then the plan's variables, secrets, marker.

    Args:
        base: The inherited environment.
        plan_env: Variables of the plan.
        unset: Inherited names to remove. Names of the plan are kept.
        deployment: Name for the marker.
        instance: Random id of this start of the deployment (`process_markers.new_instance`), made
            once and kept over restarts and adoption.
        attempt: For the marker.
        server: Index of the server, for the marker.
        secrets: Values that the recipe only names.

    SPT_NOENV keeps setproctitle, with which vLLM renames its processes, from writing the title over
    the environment block, where the marker is read from (measured, setproctitle 1.3.8).
    """
    marker = {
        DEPLOYMENT: deployment,
        INSTANCE: instance,
        ATTEMPT: str(attempt),
        SERVER: str(server),
        "SPT_NOENV": "1",
    }
    return {**unmarked_env(base, plan_env, unset), **(secrets or {}), **marker}


def unmarked_env(
    base: Mapping[str, str], plan_env: Mapping[str, str], unset: Iterable[str] = ()
) -> dict[str, str]:
    """Build the environment of a server without secrets and marker; arguments as for `child_env`.

    What runs with it is no process of the deployment: a search for orphans passes it by.
    """
    dropped = RAY_SETS | frozenset(unset)
    inherited = {
        name: value
        for name, value in base.items()
        if name not in dropped and not name.startswith("RAY_")
    }
    return {**inherited, **plan_env}


def put_first_in_path(env: Mapping[str, str], program: str) -> dict[str, str]:
    """Return an environment in whose PATH the folder of `program` comes first."""
    inherited_path = env.get("PATH", os.defpath)
    return {**env, "PATH": f"{Path(program).parent}{os.pathsep}{inherited_path}"}


class ServerProcess:
    """One server under its guard.

    `on_event` is called on a thread of this object, one event at a time: spawned, failed, log,
    log_failed, log_recovered, keeper_lost (the guard then stops the server), exit, guard_lost (the
    guard died before its work was done), and always last clean. It must not call `wait` or
    `terminate`.
    """

    def __init__(self, spec: ServerSpec, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.spec = spec
        self._on_event = on_event
        self._state = ProcessState()
        self._done = threading.Event()
        self._write = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Set an older log aside, start the guard, send it the spec; `spawned` or `failed` follows.

        On a full or read-only disk the server starts without a log: `log_failed` is then an event.

        Raises:
            NodeError: The log's path is longer than the file system allows.
            OSError: The log folder could not be created or the guard not be started.
        """
        try:
            set_aside_old_log(Path(self.spec.log))
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            log.warning("cannot prepare the log %s: %s", self.spec.log, error)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *self._title()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # once it has opened the log, its stderr goes there
            env=self._guard_env(),
            cwd="/",
            start_new_session=True,  # Ray kills the process group of a worker that dies
        )
        log.debug("guard of %s started below keeper pid %d", self.spec.log, self._guard.pid)
        spec = asdict(replace(self.spec, env=dict(self.spec.env)))
        self._send(spec)
        reader = threading.Thread(
            target=self._read_events,
            name="guard-events",
            daemon=True,
        )
        reader.start()

    @property
    def state(self) -> ProcessState:
        """The state as of the last event; never blocks."""
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
        """Request SIGTERM, then SIGKILL after `term_timeout_s` (None: the spec's); do not wait."""
        seconds = self.spec.term_timeout_s if term_timeout_s is None else term_timeout_s
        self._send({"do": "stop", "term_timeout_s": seconds})

    def kill(self) -> None:
        """Request SIGKILL of everything below the guard; do not wait."""
        self._send({"do": "kill"})

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds until teardown is over and the guard gone; False if not."""
        return self._done.wait(timeout)

    def terminate(self, term_timeout_s: float | None = None) -> list[MarkedProcess]:
        """Stop, wait, then kill what still carries this server's marker; return what resisted."""
        seconds = self.spec.term_timeout_s if term_timeout_s is None else term_timeout_s
        self.stop(seconds)
        allowed_s = seconds + self.spec.kill_timeout_s + ANSWER_S
        self.wait(allowed_s)
        return self._kill_marked()

    def _read_events(self) -> None:
        guard = self._running_guard()
        assert guard.stdout is not None
        try:
            with guard.stdout:
                for line in guard.stdout:
                    self._handle(json.loads(line))
            if not self._state.clean:
                self._on_guard_lost()
        finally:
            self._close(guard)
            self._done.set()

    def _handle(self, event: dict[str, Any]) -> None:
        _log_event(event, self.spec.log)
        if event["event"] == "clean":  # the guard must be gone before the caller acts on "clean"
            self._close(self._running_guard())
        self._state = _apply(self._state, event)
        self._on_event(event)

    def _on_guard_lost(self) -> None:
        """Report it first; then the keeper kills what it inherits, the marker finds the rest."""
        self._handle({"event": "guard_lost", "at": time.time()})
        self._close(self._running_guard())
        left = [process.pid for process in self._kill_marked()]
        self._handle({"event": "clean", "left": left})

    def _kill_marked(self) -> list[MarkedProcess]:
        env = self.spec.env
        if DEPLOYMENT not in env:
            return []
        return terminate_marked(
            env[DEPLOYMENT],
            int(env[ATTEMPT]),
            int(env[SERVER]),
            instance=env.get(INSTANCE, ""),
            grace_s=0,
        )

    def _close(self, guard: subprocess.Popen[bytes]) -> None:
        """Reap the keeper, which exits right after the guard."""
        with self._write:
            assert guard.stdin is not None
            _close_quietly(guard.stdin)
        assert guard.stdout is not None
        if self._state.keeper_lost and not guard.stdout.closed:
            # There is no keeper to wait for; end of file means that the guard has exited.
            guard.stdout.read()
        try:
            guard.wait(KEEPER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("keeper pid %d did not exit in %g s: killed", guard.pid, KEEPER_TIMEOUT_S)
            guard.kill()
            guard.wait()

    def _send(self, message: dict[str, Any]) -> None:
        guard = self._running_guard()
        assert guard.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        with self._write:
            if guard.stdin.closed:
                return
            try:
                guard.stdin.write(line)
                guard.stdin.flush()
            except BrokenPipeError:  # the guard is gone: the reading thread reports that
                _close_quietly(guard.stdin)

    def _running_guard(self) -> subprocess.Popen[bytes]:
        if self._guard is None:
            raise RuntimeError("the server process was not started")
        return self._guard

    def _guard_env(self) -> dict[str, str]:
        """Return the marker, and what this Python may need to find its libraries. No secrets."""
        env = self.spec.env
        names = (*MARKER, "LD_LIBRARY_PATH")
        return {name: env[name] for name in names if name in env}

    def _title(self) -> list[str]:
        """Return arguments for people who read `ps`; the guard ignores them."""
        env = self.spec.env
        return [f"{name}={env[name]}" for name in MARKER if name in env]


def _apply(state: ProcessState, event: dict[str, Any]) -> ProcessState:
    match event:
        case {"event": "spawned", "pid": pid, "guard": guard, "niceness": niceness, "at": at}:
            return replace(state, pid=pid, guard=guard, niceness=niceness, spawned_at=at)
        case {"event": "failed", "error": error}:
            return replace(state, error=error)
        case {"event": "log_failed", "error": error}:
            return replace(state, log_error=error)
        case {"event": "log_recovered"}:
            return replace(state, log_error="")
        case {"event": "keeper_lost"}:
            return replace(state, keeper_lost=True)
        case {"event": "exit", "code": code, "signal": signal, "at": at}:
            return replace(state, exit_code=code, exit_signal=signal, exited_at=at)
        case {"event": "guard_lost"}:
            return replace(state, guard_lost=True)
        case {"event": "clean", "left": left}:
            return replace(state, clean=True, left=tuple(left))
    return state


def _log_event(event: dict[str, Any], path: str) -> None:
    """Log what an operator would want to read; `log` events come with every line of the server."""
    match event:
        case {"event": "log"}:
            return
        case {"event": "log_failed", "error": error}:
            log.warning("cannot write the log %s: %s; output is dropped", path, error)
        case {"event": "log_recovered", "lost_bytes": lost}:
            log.warning("the log %s works again; %d bytes of output were lost", path, lost)
        case {"event": "keeper_lost"}:
            log.warning(
                "the keeper of the server with log %s was killed: stopping the server", path
            )
        case {"event": "guard_lost"}:
            log.warning("the guard of the server with log %s was killed", path)
        case {"event": "clean", "left": [_, *_] as left}:
            log.warning("processes below the guard resisted SIGKILL: pids %s", left)
        case _:
            log.debug("guard event for %s: %s", path, event)


def _close_quietly(pipe: IO[bytes]) -> None:
    """Close even when unsent bytes remain for a reader that is gone."""
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
