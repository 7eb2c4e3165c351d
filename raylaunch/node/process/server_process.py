"""The owner's side of a server process: argv, environment, and the handle on its guard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from raylaunch.node.process.guard import DISK_ERRORS
from raylaunch.node.process.guard_socket import GuardReport, adopt
from raylaunch.node.process.log_files import set_aside_old_log
from raylaunch.node.process.process_markers import (
    ATTEMPT,
    DEPLOYMENT,
    INSTANCE,
    MARKER,
    SERVER,
    await_readable,
    terminate_marked,
)
from raylaunch.plan.facts import MarkedProcess

log = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
KEEPER_TIMEOUT_S = 15.0
"""The keeper gives up on what a killed guard left behind after 10 s."""
ANSWER_S = 5.0
"""What `terminate` allows the guard beyond the times it was given."""


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
    socket: str = ""
    """Where the guard listens for its next owner (`guard_socket.socket_path`); "" for nowhere."""
    owner_wait_s: float = 0.0
    """How long the server runs on without an owner. 0: the guard stops it when the owner goes."""
    memo: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For the next owner. It may hold secrets: the guard keeps it in memory only."""


@dataclass(frozen=True)
class ProcessState:
    """What the owner knows of a server. `at` times in seconds since the epoch on this node."""

    pid: int | None = None
    guard: int | None = None
    niceness: int | None = None
    spawned_at: float | None = None
    error: str = ""
    """Why it could not be started."""
    socket_error: str = ""
    """Why no later owner can adopt it: it then stops its server when its owner goes."""
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


@dataclass(frozen=True)
class _Link:
    """The two directions to a guard: pipes of the one that started it, or a socket."""

    events: IO[bytes]
    commands: IO[bytes]


class ServerProcess:
    """One server under its guard.

    `on_event` is called on a thread of this object, one event at a time: spawned, failed,
    socket_failed, log, log_failed, log_recovered, keeper_lost (the guard then stops the server),
    exit, guard_lost (the guard died before its work was done), and always last clean. It must not
    call `wait` or `terminate`. An adopted guard repeats the events that still count.
    """

    def __init__(self, spec: ServerSpec, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.spec = spec
        self._on_event = on_event
        self._state = ProcessState()
        self._done = threading.Event()
        self._write = threading.Lock()
        self._link: _Link | None = None
        self._keeper: tuple[int, int] | None = None
        """Pid of the keeper, and a pidfd of it."""

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
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), "--detach", *self._title()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # once it has opened the log, its stderr goes there
            env=self._guard_env(),
            cwd="/",
            start_new_session=True,  # Ray kills the process group of a worker that dies
        )
        assert launcher.stdout is not None
        assert launcher.stdin is not None
        self._link = _Link(launcher.stdout, launcher.stdin)
        spec = replace(self.spec, env=dict(self.spec.env), memo=dict(self.spec.memo))
        self._send({**asdict(spec), "owner": os.getpid()})
        self._follow(launcher.wait)

    @classmethod
    def adopt(
        cls, socket: Path, on_event: Callable[[dict[str, Any]], None]
    ) -> tuple[ServerProcess, GuardReport]:
        """Become the next owner of a guard; `follow_adopted` then starts its events.

        Raises:
            BusyError: It has an owner, or it is stopping its server.
            NodeError: No guard listens there, or it does not answer.
        """
        report, connection, events = adopt(socket)
        spec = ServerSpec(
            argv=(),
            env=report.marker,
            log=report.log,
            term_timeout_s=report.term_timeout_s,
            kill_timeout_s=report.kill_timeout_s,
            socket=str(socket),
        )
        process = cls(spec, on_event)
        process._link = _Link(events, connection.makefile("wb"))
        connection.close()  # the two files keep it open
        process._hold_keeper(report.keeper)
        return process, report

    def follow_adopted(self) -> None:
        """Start to pass on the events of an adopted guard."""
        self._follow(lambda: 0)

    def _follow(self, first: Callable[[], int]) -> None:
        def follow() -> None:
            first()
            self._read_events()

        threading.Thread(target=follow, name="guard-events", daemon=True).start()

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
        events = self._running_link().events
        try:
            with events:
                try:
                    for line in events:
                        self._handle(json.loads(line))
                except ConnectionResetError:  # a killed guard had not read all commands
                    log.debug("the guard of %s reset the connection", self.spec.log)
            if not self._state.clean:
                self._on_guard_lost()
        finally:
            self._close()
            self._done.set()

    def _handle(self, event: dict[str, Any]) -> None:
        if event["event"] == "guard":
            self._hold_keeper(event["keeper"])
            return
        _log_event(event, self.spec.log)
        if event["event"] == "clean":  # the guard must be gone before the caller acts on "clean"
            self._close()
        self._state = _apply(self._state, event)
        self._on_event(event)

    def _on_guard_lost(self) -> None:
        """Report it first; then the keeper kills what it inherits, the marker finds the rest."""
        self._handle({"event": "guard_lost", "at": time.time()})
        self._close()
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

    def _close(self) -> None:
        """Close the link and wait for the keeper, which exits right after the guard."""
        link = self._running_link()
        with self._write:
            _close_quietly(link.commands)
        if self._state.keeper_lost and not link.events.closed:
            # There is no keeper to wait for; end of file means that the guard has exited.
            link.events.read()
        self._drop_keeper()

    def _hold_keeper(self, pid: int) -> None:
        """Open a pidfd on the keeper, which lives: its guard has just named it."""
        try:
            self._keeper = (pid, os.pidfd_open(pid))
        except OSError as error:  # before Linux 5.3, or it was killed meanwhile
            log.info("cannot watch the keeper pid %d: %s", pid, error)

    def _drop_keeper(self) -> None:
        """Wait until the keeper is gone; kill it when that takes too long."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        pid, handle = keeper
        try:
            if not await_readable(handle, time.monotonic() + KEEPER_TIMEOUT_S):
                log.warning("keeper pid %d did not exit in %g s: killed", pid, KEEPER_TIMEOUT_S)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)

    def _send(self, message: dict[str, Any]) -> None:
        link = self._running_link()
        line = json.dumps(message).encode() + b"\n"
        with self._write:
            if link.commands.closed:
                return
            try:
                link.commands.write(line)
                link.commands.flush()
            except (BrokenPipeError, ConnectionResetError):
                # The guard is gone: the reading thread reports that.
                _close_quietly(link.commands)

    def _running_link(self) -> _Link:
        if self._link is None:
            raise RuntimeError("the server process was not started")
        return self._link

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
        case {"event": "socket_failed", "error": error}:
            return replace(state, socket_error=error)
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
        case {"event": "socket_failed", "error": error}:
            log.warning("no later agent can adopt the server with log %s: %s", path, error)
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
