"""The relay's owners: the keeper that started it and, after that one's death, the next keeper.

The relay holds copies of both listening sockets. The next keeper gets them with its connection
(SCM_RIGHTS), so the gateway's port is never closed. A relay that has no owner for
`orphan_grace_s` stops what is left of the gateway, HAProxy first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylaunch.errors import BusyError
from raylaunch.gateway.gateway_messages import MESSAGE_LIMIT
from raylaunch.gateway.keeper_socket import lock_folder
from raylaunch.gateway.unix_socket import is_trusted, listen_unix

log = logging.getLogger(__name__)

OWNER_SOCKET = "relay-owner.sock"
Greeting = Callable[[], Mapping[str, Any]]
OnCommand = Callable[[Mapping[str, Any]], Awaitable[object]]
GraceS = Callable[[], float]


class Owners:
    """Follows one owner after the other.

    Args:
        folder: The gateway's.
        sockets: Descriptors that the next keeper gets.
        greeting: Makes what the next keeper is greeted with.
        on_command: Runs one command and returns its result as JSON.
        grace_s: Returns how long the relay lives without an owner.
    """

    def __init__(
        self,
        folder: Path,
        sockets: Sequence[int],
        greeting: Greeting,
        on_command: OnCommand,
        grace_s: GraceS,
    ) -> None:
        self._folder = folder
        self._sockets = list(sockets)
        self._greeting = greeting
        self._on_command = on_command
        self._grace_s = grace_s
        self._running: set[asyncio.Task[None]] = set()

    async def follow(self, first: socket.socket) -> None:
        """Run the commands of each owner; return when there was none for the grace.

        The folder is locked then: no keeper can start any more.
        """
        listener = listen_unix(self._folder / OWNER_SOCKET)
        listener.setblocking(False)
        with listener:
            owner: socket.socket | None = first
            while owner is not None:
                await self._follow_one(owner)
                log.warning("the keeper is gone: waiting %.0f s for another", self._grace_s())
                owner = await self._next_owner(listener)

    async def _follow_one(self, owner: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=owner, limit=MESSAGE_LIMIT)
        with contextlib.suppress(ConnectionError):  # it was killed with replies on their way
            while line := await reader.readline():
                task = asyncio.create_task(self._run(json.loads(line), writer))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        writer.close()

    async def _run(self, message: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            reply = {"id": message["id"], "result": await self._on_command(message)}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"id": message["id"], "error": str(error)}
        if not writer.is_closing():
            writer.write(json.dumps(reply).encode() + b"\n")

    async def _next_owner(self, listener: socket.socket) -> socket.socket | None:
        """Wait for the next keeper; None when the grace is over and the folder is locked."""
        while True:
            try:
                async with asyncio.timeout(self._grace_s()):
                    owner, _ = await asyncio.get_running_loop().sock_accept(listener)
            except TimeoutError:
                if self._lock():
                    return None
                continue  # a keeper has the lock: it is on its way
            if is_trusted(owner) and self._greet(owner):
                return owner
            owner.close()

    def _lock(self) -> bool:
        """Lock the folder for the rest of this process's life."""
        try:
            lock_folder(self._folder)
        except BusyError:
            return False
        return True

    def _greet(self, owner: socket.socket) -> bool:
        greeting = {**self._greeting(), "pid": os.getpid()}
        line = json.dumps(greeting).encode() + b"\n"
        try:
            socket.send_fds(owner, [line], self._sockets)
        except OSError as error:  # it went away again
            log.warning("a keeper could not be greeted: %s", error)
            return False
        return True
