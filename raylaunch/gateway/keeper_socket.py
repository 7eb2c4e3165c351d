"""The keeper's sockets: the one for clients, and the one for owners of the same user."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from raylaunch.errors import BusyError, NodeError, RaylaunchError
from raylaunch.gateway.gateway_messages import MESSAGE_LIMIT
from raylaunch.node.process.guard import SOCKET_PATH_BYTES, peer_of

log = logging.getLogger(__name__)

PORTS_TRIED = 64
BACKLOG = 4096
OnMessage = Callable[[Mapping[str, Any]], Awaitable[object]]


def lock_folder(folder: Path) -> int:
    """Make the folder private and lock it for the life of this process.

    Raises:
        BusyError: Another keeper has it.
        NodeError: The path is too long for a socket.
    """
    if len(os.fsencode(folder / "keeper.sock.new")) > SOCKET_PATH_BYTES:
        raise NodeError(
            f"the gateway's folder {folder} has too long a path",
            why=f"the path of a unix socket has at most {SOCKET_PATH_BYTES} bytes",
            todo="set RAYLAUNCH_HOME to a shorter path",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    fd = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"another keeper runs in {folder}") from None
    return fd


def listen_for_clients(address: str, port: int) -> socket.socket:
    """Listen on the port, or on the next free one.

    Raises:
        NodeError: The address is not of this node, or none of the ports is free.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    last = min(port + PORTS_TRIED, 65536)
    error: OSError | None = None
    for candidate in range(port, last):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, candidate))
            listener.listen(BACKLOG)
        except OSError as failed:
            listener.close()
            error = failed
            continue
        return listener
    raise NodeError(
        f"the gateway cannot listen on {address} port {port} to {last - 1}",
        why=str(error),
        todo="free one of the ports, or choose another with gateway.port",
    )


def listen_for_haproxy(path: Path) -> socket.socket:
    """Listen on the relay's socket. The folder is private, so only this user connects."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    listener.listen(BACKLOG)
    return listener


async def serve_owners(path: Path, on_message: OnMessage) -> asyncio.Server:
    """Listen for owners; each message is one JSON line, answered with one."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _, uid = peer_of(writer.get_extra_info("socket"))
            if uid in (os.geteuid(), 0):
                await _answer(reader, writer, on_message)
        except ConnectionError:
            log.info("an owner went away before it had its answer")
        finally:
            writer.close()

    _forget_socket(path)
    return await asyncio.start_unix_server(serve_one, path, limit=MESSAGE_LIMIT)


def _forget_socket(path: Path) -> None:
    """Remove the socket of a keeper that was killed."""
    path.unlink(missing_ok=True)


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_message: OnMessage
) -> None:
    while line := await reader.readline():
        try:
            reply = {"result": await on_message(json.loads(line))}
        except RaylaunchError as error:
            reply = {"error": error.as_dict()}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"error": NodeError("the keeper refuses a message", why=str(error)).as_dict()}
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()
