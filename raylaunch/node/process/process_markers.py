"""Finding and ending processes by the marker variables in their environment, and by nothing else.

An agent sets it for its children only. The processes of an embedded Ray cluster carry the marker of that cluster, which
is no deployment's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from raylaunch.node.process.guard import Process, read_process, send_signal
from raylaunch.plan.facts import MarkedProcess

DEPLOYMENT = "RAYLAUNCH_DEPLOYMENT"
ATTEMPT = "RAYLAUNCH_ATTEMPT"
SERVER = "RAYLAUNCH_SERVER"
KILL_TIMEOUT_S = 10.0
COMMAND_CHARS = 200
POLL_S = 0.05
"""Only without pidfds (before Linux 5.3): the end of somebody else's child then has to be looked for."""


def find_marked(
    deployment: str | None = None, attempt: int | None = None, server: int | None = None
) -> list[MarkedProcess]:
    """Living processes with raylaunch's marker, narrowed by what is given.

    Zombies are dead, and processes of other users cannot be read: neither is found.
    """
    return [_describe(found) for found in _search(deployment, attempt, server)]


def end_marked(
    deployment: str,
    attempt: int | None = None,
    server: int | None = None,
    *,
    grace_s: float = 5.0,
    kill_timeout_s: float = KILL_TIMEOUT_S,
    pids: Collection[int] | None = None,
) -> list[MarkedProcess]:
    """End exactly the marked processes: SIGTERM, `grace_s` seconds, SIGKILL until none is found. Returns what is left.

    A grace of 0 skips SIGTERM. Guards take SIGTERM as a request to stop their server. The calling process is never
    among the targets. With `pids` only those of them that are named there.
    """

    def search() -> list[_Found]:
        return [
            one
            for one in _search(deployment, attempt, server)
            if pids is None or one.process.pid in pids
        ]

    if grace_s > 0:
        targets = search()
        for number in (
            signal.SIGTERM,
            signal.SIGCONT,
        ):  # a stopped process takes SIGTERM only once continued
            _signal_all(targets, number)
        _await_end(targets, time.monotonic() + grace_s)
    deadline = time.monotonic() + kill_timeout_s
    while targets := search():
        if time.monotonic() >= deadline:
            break
        _signal_all(targets, signal.SIGKILL)
        _await_end(targets, deadline)
    return [_describe(found) for found in targets]


@dataclass(frozen=True)
class _Found:
    process: Process
    deployment: str
    attempt: int
    server: int | None


def _search(deployment: str | None, attempt: int | None, server: int | None) -> list[_Found]:
    pids = (int(name.name) for name in Path("/proc").iterdir() if name.name.isdigit())
    every = (_read(pid) for pid in pids if pid != os.getpid())
    return [
        found
        for found in every
        if found is not None
        and deployment in (None, found.deployment)
        and attempt in (None, found.attempt)
        and server in (None, found.server)
    ]


def _read(pid: int) -> _Found | None:
    """Environment between two looks at the process, so that both belong to the same one."""
    before = read_process(pid)
    marker = _read_marker(pid)
    if before is None or marker is None or DEPLOYMENT not in marker or read_process(pid) is None:
        return None
    return _Found(
        before, marker[DEPLOYMENT], _number(marker.get(ATTEMPT)) or 0, _number(marker.get(SERVER))
    )


def _read_marker(pid: int) -> dict[str, str] | None:
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return None
    pairs = (
        entry.partition(b"=") for entry in block.split(b"\0") if entry.startswith(b"RAYLAUNCH_")
    )
    return {
        name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs
    }


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _describe(found: _Found) -> MarkedProcess:
    return MarkedProcess(
        pid=found.process.pid,
        deployment=found.deployment,
        attempt=found.attempt,
        age_s=max(
            0.0,
            time.clock_gettime(time.CLOCK_BOOTTIME)
            - found.process.started / os.sysconf("SC_CLK_TCK"),
        ),
        command=_command(found.process.pid),
    )


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace")[:COMMAND_CHARS]


def _signal_all(targets: list[_Found], number: int) -> None:
    for target in targets:
        with contextlib.suppress(
            PermissionError
        ):  # it changed its user: it stays in the list of what is left
            send_signal(target.process, number)


def _await_end(targets: list[_Found], deadline: float) -> None:
    for target in targets:
        _await_one(target.process, deadline)


def _await_one(process: Process, deadline: float) -> None:
    """Wait for the end of one process, zombie or gone, or for the deadline."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:
        _poll_end(process, deadline)
        return
    try:
        if _alive(process):
            _await_readable(handle, deadline)
    finally:
        os.close(handle)


def _await_readable(handle: int, deadline: float) -> None:
    poller = select.poll()  # not select: file descriptors above 1023 are common in a Ray worker
    poller.register(handle, select.POLLIN)
    poller.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _poll_end(process: Process, deadline: float) -> None:
    while _alive(process) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _alive(process: Process) -> bool:
    now = read_process(process.pid)
    return now is not None and now.started == process.started
