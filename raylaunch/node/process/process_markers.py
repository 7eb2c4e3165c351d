"""Finds and terminates processes by the marker variables in their environment, and by nothing else.

An agent sets the marker for its children only. Names of deployments repeat: another cluster, or
another home of the same user, may run a deployment of the same name on this machine. So the marker
carries the id of the deployment's instance, and `terminate_marked` has to be given that id. The
processes of an embedded Ray cluster carry the marker of that cluster, which is random itself.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import select
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raylaunch.node.process.guard import Process, processes, read_process, send_signal
from raylaunch.plan.facts import MarkedProcess

DEPLOYMENT = "RAYLAUNCH_DEPLOYMENT"
GROUP = "RAYLAUNCH_GROUP"
INSTANCE = "RAYLAUNCH_INSTANCE"
ATTEMPT = "RAYLAUNCH_ATTEMPT"
SERVER = "RAYLAUNCH_SERVER"
EMBEDDED_IN = "RAYLAUNCH_EMBEDDED_IN"
"""The marker of the embedded Ray cluster from which the process was started, if it was from one."""
MARKER = (DEPLOYMENT, GROUP, INSTANCE, ATTEMPT, SERVER, EMBEDDED_IN)
"""All variables of the marker."""
KILL_TIMEOUT_S = 10.0
COMMAND_CHARS = 200
POLL_S = 0.05
"""Only without pidfds (before Linux 5.3): there the exit of a process that is not our child has to
be polled."""


class AnyInstance(enum.Enum):
    """The type of `ANY_INSTANCE`."""

    ANY = "any"


ANY_INSTANCE: Final = AnyInstance.ANY
"""Matches every instance. To terminate with it is right only where a person named the processes, or
where the deployment's marker is random itself (embedded clusters)."""


def new_instance() -> str:
    """Return a random id for one start of a deployment.

    Made once per start and kept over restarts, attempts and adoption by a new controller.
    """
    return secrets.token_hex(8)


def find_marked(
    deployment: str | None = None,
    attempt: int | None = None,
    server: int | None = None,
    *,
    instance: str | AnyInstance = ANY_INSTANCE,
) -> list[MarkedProcess]:
    """Return living processes with raylaunch's marker, narrowed by what is given.

    Zombies are left out. Processes of other users are not found: their environment is not readable.
    """
    wanted = _Wanted(deployment, attempt, server, instance)
    return [_describe(found) for found in _search(wanted)]


def terminate_marked(
    deployment: str,
    attempt: int | None = None,
    server: int | None = None,
    *,
    instance: str | AnyInstance,
    grace_s: float = 5.0,
    kill_timeout_s: float = KILL_TIMEOUT_S,
    pids: Collection[int] | None = None,
) -> list[MarkedProcess]:
    """Terminate exactly the marked processes of one instance; return those that are left.

    SIGTERM, `grace_s` seconds, then SIGKILL until none is found or `kill_timeout_s` has passed.
    Guards handle SIGTERM as a request to stop their server. The calling process is never a target.

    Args:
        deployment: Name in the marker.
        attempt: Only of this attempt.
        server: Only of this server.
        instance: Id in the marker; "" matches only processes without one.
        grace_s: 0 skips SIGTERM.
        kill_timeout_s: How long to wait for killed processes to vanish.
        pids: Only those of the matching processes that are listed here.
    """
    wanted = _Wanted(deployment, attempt, server, instance, pids)
    if grace_s > 0:
        targets = _search(wanted)
        # A stopped process (state T) handles SIGTERM only once it is continued.
        for number in (signal.SIGTERM, signal.SIGCONT):
            _signal_all(targets, number)
        _await_exits(targets, time.monotonic() + grace_s)
    deadline = time.monotonic() + kill_timeout_s
    while targets := _search(wanted):
        if time.monotonic() >= deadline:
            break
        _signal_all(targets, signal.SIGKILL)
        _await_exits(targets, deadline)
    return [_describe(found) for found in targets]


@dataclass(frozen=True)
class _Found:
    process: Process
    deployment: str
    group: str
    instance: str
    attempt: int
    server: int | None
    cluster: str


@dataclass(frozen=True)
class _Wanted:
    """Which marked processes are meant. None matches all."""

    deployment: str | None
    attempt: int | None
    server: int | None
    instance: str | AnyInstance
    pids: Collection[int] | None = None

    def matches(self, found: _Found) -> bool:
        """Return whether every given part agrees with the marker."""
        if self.pids is not None and found.process.pid not in self.pids:
            return False
        return (
            self.deployment in (None, found.deployment)
            and self.attempt in (None, found.attempt)
            and self.server in (None, found.server)
            and self.instance in (ANY_INSTANCE, found.instance)
        )


def _search(wanted: _Wanted) -> list[_Found]:
    matching = []
    for process in processes():
        if process.pid == os.getpid():
            continue
        found = _read_marked(process)
        if found is not None and wanted.matches(found):
            matching.append(found)
    return matching


def _read_marked(process: Process) -> _Found | None:
    marker = _read_marker(process.pid)
    if DEPLOYMENT not in marker:
        return None
    # Read again, so that the environment is known to belong to this process, not to a recycled pid.
    now = read_process(process.pid)
    if now is None or now.started != process.started:
        return None
    return _Found(
        process=process,
        deployment=marker[DEPLOYMENT],
        group=marker.get(GROUP, ""),
        instance=marker.get(INSTANCE, ""),
        attempt=_number(marker.get(ATTEMPT)) or 0,
        server=_number(marker.get(SERVER)),
        cluster=marker.get(EMBEDDED_IN, ""),
    )


def _read_marker(pid: int) -> dict[str, str]:
    """Read raylaunch's variables; empty when the process is gone, or another user's."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    marker = {}
    for entry in block.split(b"\0"):
        if entry.startswith(b"RAYLAUNCH_"):
            name, _, value = entry.decode(errors="replace").partition("=")
            marker[name] = value
    return marker


def _number(text: str | None) -> int | None:
    if text is None or not text.isdecimal():
        return None
    return int(text)


def _describe(found: _Found) -> MarkedProcess:
    started_s = found.process.started / os.sysconf("SC_CLK_TCK")
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    return MarkedProcess(
        pid=found.process.pid,
        deployment=found.deployment,
        attempt=found.attempt,
        age_s=max(0.0, age_s),
        command=_command(found.process.pid),
        instance=found.instance,
        group=found.group,
        cluster=found.cluster,
    )


def _command(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = command.rstrip(b"\0").replace(b"\0", b" ")
    return words.decode(errors="replace")[:COMMAND_CHARS]


def _signal_all(targets: list[_Found], number: int) -> None:
    for target in targets:
        # Not permitted: it has changed its user. It stays in the list of what is left.
        with contextlib.suppress(PermissionError):
            send_signal(target.process, number)


def _await_exits(targets: list[_Found], deadline: float) -> None:
    for target in targets:
        await_exit(target.process, deadline)


def await_exit(process: Process, deadline: float) -> None:
    """Wait until a process, of whichever parent, is a zombie or gone, or for the deadline.

    Args:
        process: As it was read.
        deadline: On the monotonic clock.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:
        _poll_exit(process, deadline)
        return
    try:
        if is_alive(process):
            await_readable(handle, deadline)
    finally:
        os.close(handle)


def await_readable(handle: int, deadline: float) -> bool:
    """Wait for a descriptor, such as a pidfd, until the deadline (monotonic clock)."""
    poller = select.poll()  # not select: file descriptors above 1023 are common in a Ray worker
    poller.register(handle, select.POLLIN)
    remaining_s = max(0.0, deadline - time.monotonic())
    return bool(poller.poll(remaining_s * 1000))


def _poll_exit(process: Process, deadline: float) -> None:
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def is_alive(process: Process) -> bool:
    """Return whether this very process runs; a zombie does not, nor one that has its pid."""
    now = read_process(process.pid)
    return now is not None and now.started == process.started
