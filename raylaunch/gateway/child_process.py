"""A process that the keeper starts again when it exits.

It outlives the keeper. For the next keeper it is an adopted process: no child, so the kernel
reports its exit (by a pidfd), but not its status.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from raylaunch.node.process.guard import SERVER_OOM_SCORE, Process, send_signal, set_oom_score
from raylaunch.node.process.process_markers import is_alive

log = logging.getLogger(__name__)

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
POLL_S = 0.01
EXIT_POLL_S = 0.05
"""Only without pidfds (before Linux 5.3)."""
STABLE_S = 10.0
"""After so long without an exit the next restart comes without a pause."""
STATUS_UNKNOWN = -1

Start = Callable[[], Awaitable["Child"]]


class Child(Protocol):
    """What is needed of a process, be it a child or not."""

    @property
    def pid(self) -> int:
        """Its pid."""

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""

    async def wait(self) -> int:
        """Wait for its exit and return the status."""

    def send_signal(self, signal: int) -> None:
        """Send a signal."""


class AdoptedProcess:
    """A process that an earlier keeper started."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its exit. Only a parent can read the status."""
        if self.returncode is None:
            await _await_exit(self._process)
            self.returncode = STATUS_UNKNOWN
        return self.returncode

    def send_signal(self, signal: int) -> None:
        """Send a signal; a process that has the pid by now gets none."""
        send_signal(self._process, signal)


async def _await_exit(process: Process) -> None:
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # before Linux 5.3, or no free file descriptor
        while is_alive(process):  # noqa: ASYNC110
            await asyncio.sleep(EXIT_POLL_S)
        return
    exited = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        if is_alive(process):
            loop.add_reader(handle, exited.set)
            await exited.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def spawn(
    command: Sequence[str], *, folder: Path, output: int, pass_fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Start a program in a folder, with one descriptor for all its output."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(pass_fds),
        preexec_fn=_prepare,
        cwd=folder,
    )


def _prepare() -> None:
    """Undo between fork and exec what is the keeper's own: signal mask, OOM score."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    set_oom_score(SERVER_OOM_SCORE)


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
        self._process: Child | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Its pid; None between an exit and the next start."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def adopt(self, process: Child, starts: int) -> None:
        """Take over a process that runs, before `run`; `starts` counts it and earlier ones."""
        self._process = process
        self.starts = starts
        log.info("%s is adopted as pid %d", self.name, process.pid)

    async def run(self) -> None:
        """Start it, and again after each exit, until `stop` was called."""
        if self._process is not None:
            await self._until_exit(self._process)
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

    async def launch(self) -> Child:
        """Start it once; a process that ran before is replaced in the record.

        Raises:
            OSError: It cannot be started.
        """
        process = await self._start()
        self._process = process
        self.starts += 1
        log.info("%s runs as pid %d", self.name, process.pid)
        return process

    async def _until_exit(self, process: Child) -> None:
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
