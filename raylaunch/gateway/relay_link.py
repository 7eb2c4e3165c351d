"""The keeper's side of the relay: commands and replies over its standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from raylaunch.errors import NodeError
from raylaunch.gateway.child_process import spawn
from raylaunch.gateway.gateway_messages import MESSAGE_LIMIT, RelayCounters

START_S = 60.0


class RelayExitedError(Exception):
    """The relay exited, and the next one has not answered yet."""


class RelayLink:
    """Survives restarts of the relay: the counters of earlier ones are added."""

    def __init__(
        self,
        command: Sequence[str],
        listener: int,
        state: Mapping[str, Any],
        write_log: Callable[[bytes], None],
    ) -> None:
        self._command = command
        self._listener = listener
        self._state = state
        self._write_log = write_log
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._before = RelayCounters()
        self._last: dict[str, Any] = {"counters": asdict(RelayCounters()), "members": []}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> asyncio.subprocess.Process:
        """Start the relay and send it the last state that was pushed.

        Raises:
            OSError: It cannot be started.
        """
        self._before = _sum(self._last["counters"])
        self._ready.clear()
        process = await spawn(
            [*self._command, str(self._listener)],
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(self._listener,),
            limit=MESSAGE_LIMIT,
        )
        self._process = process
        self._spawn(self._read_replies(process))
        self._spawn(self._copy_log(process))
        self._spawn(self._first())
        return process

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _first(self) -> None:
        with contextlib.suppress(RelayExitedError):  # the next one is on its way
            await self.call({"do": "configure", **self._state})
            self._ready.set()

    async def push(self, state: Mapping[str, Any]) -> None:
        """Send options and members; a relay that is being started gets them as its first.

        Raises:
            NodeError: The relay refuses them.
            TimeoutError: No relay starts.
        """
        self._state = state
        try:
            await self.call({"do": "configure", **state})
        except RelayExitedError:
            await self.ready(START_S)

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
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            raise RelayExitedError
        process.stdin.write(json.dumps(message).encode() + b"\n")

    async def status(self) -> dict[str, Any]:
        """Return counters and members; the last known ones while the relay starts."""
        with contextlib.suppress(RelayExitedError):
            found = cast("dict[str, Any]", await self.call({"do": "status"}))
            self._last = {
                "counters": asdict(_sum(asdict(self._before), found["counters"])),
                "members": found["members"],
            }
        return self._last

    async def _read_replies(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            reply = json.loads(line)
            future = self._waiting.get(reply["id"])
            if future is None or future.done():
                continue
            if "error" in reply:
                future.set_exception(NodeError("the relay refuses", why=reply["error"]))
            else:
                future.set_result(reply["result"])
        self._fail_waiting(process)

    def _fail_waiting(self, process: asyncio.subprocess.Process) -> None:
        """Nothing more comes from this relay; calls of a newer one are not concerned."""
        if process is not self._process:
            return
        self._process = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RelayExitedError())

    async def _copy_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while data := await process.stderr.read(65536):
            with contextlib.suppress(OSError):  # a full disk costs lines, not the gateway
                self._write_log(data)


def _sum(*counters: Mapping[str, Any]) -> RelayCounters:
    """Add counters; `held` is a gauge, of which only the last counts."""
    names = RelayCounters.__dataclass_fields__
    sums = {name: sum(one[name] for one in counters) for name in names}
    return RelayCounters(**{**sums, "held": counters[-1]["held"]})
