"""HAProxy and relay of a gateway whose keeper is dead: adopt them, or stop them.

They are found by the gateway's marker in their environment and by their working directory, which is
the gateway's folder. The caller must have the folder's lock, or know that no keeper is wanted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.gateway.child_process import AdoptedProcess
from raylaunch.gateway.gateway_messages import RelayCounters
from raylaunch.gateway.haproxy_config import HaproxyFiles
from raylaunch.gateway.haproxy_files import remove_files
from raylaunch.gateway.haproxy_process import serving_pid
from raylaunch.gateway.keeper_socket import KEEPER_SOCKET
from raylaunch.gateway.log_pipe import LOG_PIPE
from raylaunch.gateway.relay.relay_owners import OWNER_SOCKET
from raylaunch.gateway.unix_socket import connect_unix, is_trusted
from raylaunch.node.process.guard import Process, read_process, send_signal
from raylaunch.node.process.process_markers import (
    await_exit,
    find_marked,
    is_alive,
    terminate_marked,
)

log = logging.getLogger(__name__)

RELAY = "raylaunch.gateway.relay.relay_process"
GREETING_S = 10.0
"""The relay greets within milliseconds; one that was stopped (SIGSTOP) does not."""
GREETING_BYTES = 65536
TERM_S = 1.0


@dataclass(frozen=True)
class FoundRelay:
    """A relay that waits for its next keeper."""

    connection: socket.socket
    process: AdoptedProcess
    clients: socket.socket
    """The listening socket that HAProxy has too."""
    listener: socket.socket
    """The relay's own listening socket."""
    before: RelayCounters
    relay_starts: int
    haproxy_starts: int


def adopt_relay(folder: Path, instance: str) -> FoundRelay | None:
    """Become the owner of the relay in a folder; None when none answers.

    Raises:
        NodeError: It belongs to another start of the deployment.
    """
    try:
        connection = connect_unix(folder / OWNER_SOCKET, GREETING_S)
    except OSError:
        return None
    try:
        found = _read_greeting(connection, instance)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the relay there cannot be adopted: %r", error)
        found = None
    except NodeError:
        connection.close()
        raise
    if found is None:
        connection.close()
    return found


def _read_greeting(connection: socket.socket, instance: str) -> FoundRelay | None:
    if not is_trusted(connection):
        return None
    line, numbers, _, _ = socket.recv_fds(connection, GREETING_BYTES, 2)
    sockets = [socket.socket(fileno=number) for number in numbers]
    try:
        greeting = json.loads(line)
        process = read_process(int(greeting["pid"]))
        if greeting["instance"] != instance:
            raise NodeError(
                "the relay of another start of this deployment still runs",
                why=f"it is pid {greeting['pid']}, its instance {greeting['instance']}",
                todo="`raylaunch clean` with --deployment names it",
            )
        if process is None or len(sockets) != 2:
            raise ValueError(f"it sent {len(sockets)} sockets")
        starts = greeting.get("starts", {})
        found = FoundRelay(
            connection,
            AdoptedProcess(process),
            clients=sockets[0],
            listener=sockets[1],
            before=RelayCounters(**greeting.get("before", {})),
            relay_starts=int(starts.get("relay", 1)),
            haproxy_starts=int(starts.get("haproxy", 1)),
        )
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return found


def adopt_haproxy(files: HaproxyFiles, deployment: str, instance: str) -> AdoptedProcess | None:
    """Return the HAProxy that serves; None when none does. All others finish what they have."""
    serving = serving_pid(files.admin)
    adopted = None
    for process in _find_haproxies(files.folder, deployment, instance):
        if process.pid == serving:
            adopted = AdoptedProcess(process)
        else:
            # One that was replaced when the last keeper died, or has not served yet.
            send_signal(process, signal.SIGUSR1)
    return adopted


def find_orphans(folder: Path, deployment: str, instance: str) -> list[Process]:
    """Return the HAProxy and relay processes of the gateway in a folder."""
    marked = find_marked(deployment, instance=instance)
    here = [read_process(one.pid) for one in marked if _runs_in(one.pid, folder)]
    return [process for process in here if process is not None]


def stop_orphans(folder: Path, deployment: str, instance: str, drain_s: float = 0.0) -> bool:
    """Stop what runs in a folder without a keeper; return whether all requests finished.

    Args:
        folder: The gateway's.
        deployment: Name in the marker.
        instance: Id in the marker.
        drain_s: How long running requests may take.

    Raises:
        NodeError: A process cannot be killed.
    """
    found = find_orphans(folder, deployment, instance)
    if not found:
        return True
    finished = _drain(_find_haproxies(folder, deployment, instance), drain_s)
    pids = [process.pid for process in found]
    left = terminate_marked(deployment, instance=instance, grace_s=TERM_S, pids=pids)
    if left:
        raise NodeError(
            "processes of a gateway cannot be killed",
            evidence="\n".join(f"pid {one.pid}: {one.command}" for one in left),
        )
    return finished


def remove_all(folder: Path) -> None:
    """Remove what only a gateway that runs needs; its log stays."""
    remove_files(HaproxyFiles(folder))
    for name in (KEEPER_SOCKET, OWNER_SOCKET, LOG_PIPE):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def _drain(haproxies: Sequence[Process], drain_s: float) -> bool:
    if drain_s <= 0:
        return not haproxies
    for process in haproxies:
        send_signal(process, signal.SIGUSR1)
    deadline = time.monotonic() + drain_s
    for process in haproxies:
        await_exit(process, deadline)
    return not any(map(is_alive, haproxies))


def _find_haproxies(folder: Path, deployment: str, instance: str) -> list[Process]:
    found = find_orphans(folder, deployment, instance)
    return [process for process in found if not _is_relay(process.pid)]


def _is_relay(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return RELAY.encode() in command.split(b"\0")


def _runs_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:  # it has exited
        return False
