"""The keeper's side of the relay: commands and replies over a unix socket, one JSON line each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any, cast

from raylaunch.errors import NodeError
from raylaunch.gateway.child_process import Child
from raylaunch.gateway.gateway_messages import MESSAGE_LIMIT, RelayCounters

START_S = 60.0


class RelayExitedError(Exception):
    """The relay exited, and the next one has not answered yet."""


class RelayLink:
    """Survives restarts of the relay: the counters of earlier ones are added.

    Args:
        start: Starts a relay whose first owner is at the other end of this descriptor.
        state: Returns options, members and what is kept for the next keeper.
    """

    def __init__(
        self, start: Callable[[int], Awaitable[Child]], state: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._start = start
        self._state = state
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._before = RelayCounters()
        self._last: dict[str, Any] = {"counters": asdict(RelayCounters()), "members": []}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Child:
        """Start the relay and send it the state.

        Raises:
            OSError: It cannot be started.
        """
        self._before = _sum(self._last["counters"])
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await self._start(theirs.fileno())
        except OSError:
            ours.close()
            raise
        await self._use(ours)
        return process

    async def adopt(self, connection: socket.socket, before: RelayCounters) -> None:
        """Take over a relay that runs; `before` has the counters of those before it."""
        self._before = before
        await self._use(connection)

    async def _use(self, connection: socket.socket) -> None:
        self._ready.clear()
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MESSAGE_LIMIT)
        self._writer = writer
        self._spawn(self._read_replies(reader, writer))
        self._spawn(self._first())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _first(self) -> None:
        with contextlib.suppress(RelayExitedError):  # the next one is on its way
            await self._configure()
            self._ready.set()

    async def push(self) -> None:
        """Send the state; a relay that is being started gets it as its first.

        Raises:
            NodeError: The relay refuses them.
            TimeoutError: No relay starts.
        """
        try:
            await self._configure()
        except RelayExitedError:
            await self.ready(START_S)

    async def _configure(self) -> None:
        # The relay keeps the counters of those before it for the next keeper.
        await self.call({"do": "configure", **self._state(), "before": asdict(self._before)})

    async def ready(self, timeout_s: float) -> None:
        """Wait until the relay has its configuration.

        Raises:
            TimeoutError: It has not, in this time.
        """
        async with asyncio.timeout(timeout_s):
            await self._ready.wait()

    async def call(self, message: Mapping[str, Any]) -> object:
        """Send a command and return its result.

        Raises:
            NodeError: The relay refuses.
            RelayExitedError: It exited before it had answered, or has not started yet.
        """
        number = next(self._numbers)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send({"id": number, **message})
            return await future
        finally:
            self._waiting.pop(number, None)

    def _send(self, message: Mapping[str, Any]) -> None:
        writer = self._writer
        if writer is None or writer.is_closing():
            raise RelayExitedError
        writer.write(json.dumps(message).encode() + b"\n")

    async def status(self) -> dict[str, Any]:
        """Return counters and members; the last known ones while the relay starts."""
        with contextlib.suppress(RelayExitedError):
            found = cast("dict[str, Any]", await self.call({"do": "status"}))
            self._last = {
                "counters": asdict(_sum(asdict(self._before), found["counters"])),
                "members": found["members"],
            }
        return self._last

    async def _read_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):  # the relay was killed: nothing more comes
            while line := await reader.readline():
                self._settle(json.loads(line))
        writer.close()
        self._fail_waiting(writer)

    def _settle(self, reply: Mapping[str, Any]) -> None:
        future = self._waiting.get(reply["id"])
        if future is None or future.done():
            return
        if "error" in reply:
            future.set_exception(NodeError("the relay refuses", why=reply["error"]))
        else:
            future.set_result(reply["result"])

    def _fail_waiting(self, writer: asyncio.StreamWriter) -> None:
        """Nothing more comes from this relay; calls of a newer one are not concerned."""
        if writer is not self._writer:
            return
        self._writer = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RelayExitedError())


def _sum(*counters: Mapping[str, Any]) -> RelayCounters:
    """Add counters; `held` is a gauge, of which only the last counts."""
    names = RelayCounters.__dataclass_fields__
    sums = {name: sum(one[name] for one in counters) for name in names}
    return RelayCounters(**{**sums, "held": counters[-1]["held"]})
