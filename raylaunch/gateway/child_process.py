"""A child of the keeper that is started again when it exits."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

from raylaunch.node.process.guard import prepare_child

log = logging.getLogger(__name__)

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
POLL_S = 0.01
STABLE_S = 10.0
"""After so long without an exit the next restart comes without a pause."""

Start = Callable[[], Awaitable[asyncio.subprocess.Process]]


async def spawn(
    command: Sequence[str],
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    limit: int = 1 << 20,
) -> asyncio.subprocess.Process:
    """Start a program with pipes for its output; the kernel kills it when the keeper dies."""
    parent = os.getpid()
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=tuple(pass_fds),
        preexec_fn=lambda: prepare_child(parent),
        limit=limit,
        cwd="/",
    )


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that no event announces.

    Raises:
        TimeoutError: It does not come true.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


class KeptProcess:
    """One program, kept running until `stop`."""

    def __init__(self, name: str, start: Start) -> None:
        self.name = name
        self.starts = 0
        self._start = start
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Its pid; None between an exit and the next start."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Start it, and again after each exit, until `stop` was called."""
        pause_s = 0.0
        while not self._stopping:
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            try:
                process = await self.launch()
            except OSError as error:
                log.error("cannot start %s: %s", self.name, error)
                pause_s = PAUSE_MAX_S
                continue
            await self._until_exit(process)
            stable = time.monotonic() - began > STABLE_S
            pause_s = 0.0 if stable else min(PAUSE_MAX_S, 2 * pause_s or PAUSE_FIRST_S)

    async def launch(self) -> asyncio.subprocess.Process:
        """Start it once; a process that ran before is replaced in the record.

        Raises:
            OSError: It cannot be started.
        """
        process = await self._start()
        self._process = process
        self.starts += 1
        log.info("%s runs as pid %d", self.name, process.pid)
        return process

    async def _until_exit(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the exit of this process, or of the one that replaced it."""
        while True:
            status = await process.wait()
            if not self._stopping:
                log.warning("%s pid %d exited: status %d", self.name, process.pid, status)
            current = self._process
            if current is None or current is process:
                return
            process = current

    def expect_exit(self) -> None:
        """Do not start it again."""
        self._stopping = True

    async def stop(self, number: int, timeout_s: float) -> bool:
        """Send a signal and wait; SIGKILL after `timeout_s`. Return whether it exited in time."""
        self.expect_exit()
        process = self._process
        if process is None or process.returncode is not None:
            return True
        process.send_signal(number)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            return False
        return True
