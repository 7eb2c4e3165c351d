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
from raylaunch.gateway.unix_socket import BACKLOG, is_trusted, listen_unix

log = logging.getLogger(__name__)

PORTS_TRIED = 64
KEEPER_SOCKET = "keeper.sock"
OnMessage = Callable[[Mapping[str, Any]], Awaitable[object]]


def lock_folder(folder: Path) -> int:
    """Make the folder private and lock it for the life of this process.

    Raises:
        BusyError: Another keeper has it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    fd = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
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


def move_socket(moved: socket.socket, number: int) -> socket.socket:
    """Move a socket to a number that is the same in each keeper.

    HAProxy's configuration names the listening socket by its number, so the text stays the same.
    """
    with moved:
        os.dup2(moved.fileno(), number, inheritable=False)
    return socket.socket(fileno=number)


async def serve_owners(folder: Path, on_message: OnMessage) -> asyncio.Server:
    """Listen for owners; each message is one JSON line, answered with one.

    An owner that only connects learns of the keeper's exit: the kernel closes the connection.
    """

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if is_trusted(writer.get_extra_info("socket")):
                await _answer(reader, writer, on_message)
        except ConnectionError:
            log.info("an owner went away before it had its answer")
        finally:
            writer.close()

    listener = listen_unix(folder / KEEPER_SOCKET)
    return await asyncio.start_unix_server(serve_one, sock=listener, limit=MESSAGE_LIMIT)


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
