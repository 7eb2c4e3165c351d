"""Unix sockets in the gateway's folder, however long its path is, for this user only."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from raylaunch.node.process.guard import peer_of, short_path

BACKLOG = 4096


def listen_unix(path: Path) -> socket.socket:
    """Listen on a path; a socket that a dead process left there is replaced.

    Raises:
        OSError: The folder is missing or not writable.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(os.fspath(path.parent), path.name) as address:
            listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a path; `timeout_s` stays in force for what follows.

    Raises:
        OSError: Nothing listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with short_path(os.fspath(path.parent), path.name) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def is_trusted(connection: socket.socket) -> bool:
    """Return whether the other side is a process of this user, or of root."""
    _, uid = peer_of(connection)
    return uid in (os.geteuid(), 0)
