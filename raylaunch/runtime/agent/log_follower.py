"""Follows the log of one server: reads what the guard wrote, and derives the stage of the start.

The guard announces growth (`grew`), so nothing here polls. The log is evidence for people and an
accelerator for probes; a server whose log cannot be written becomes ready all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raylaunch.node.process import log_files
from raylaunch.vllm_api.startup_log import StartupProgress, advance, hang_lines


@dataclass(frozen=True)
class LogNews:
    """What a piece of the log said."""

    before: StartupProgress
    after: StartupProgress
    hang_lines: int
    """vLLM's own hang lines in this piece."""


class LogFollower:
    """Reads one log from its beginning, across rotations.

    Args:
        log: Path of the current log file; it need not exist yet.
        on_news: Called for each piece of the log, on the event loop.
    """

    def __init__(self, log: Path, on_news: Callable[[LogNews], None]) -> None:
        self.log = log
        self._on_news = on_news
        self._cursor: log_files.Cursor | None = None
        self._unparsed: deque[str] = deque()
        self._progress = StartupProgress()
        # The log may hold text before the first announcement: the first round reads without one.
        self._unread = asyncio.Event()
        self._unread.set()
        self._growth = asyncio.Event()

    def grew(self) -> None:
        """Announce that the guard has written to the log."""
        self._unread.set()
        self._growth.set()
        # Each announcement has an event of its own: a reader takes the event before it reads, so
        # growth between its read and its wait is not missed.
        self._growth = asyncio.Event()

    async def run(self) -> None:
        """Follow the log until cancelled.

        May be run again after an exception: it continues behind the line that caused it.
        """
        self._report_lines()
        while True:
            await self._unread.wait()
            self._unread.clear()
            more = True
            while more:
                chunk = await asyncio.to_thread(log_files.read_from, self.log, self._cursor)
                self._cursor = chunk.cursor
                more = chunk.more
                self._unparsed.extend(chunk.text.splitlines())
                self._report_lines()

    async def read(
        self, cursor: log_files.Cursor | None, lines: int | None, wait_s: float
    ) -> log_files.Chunk:
        """Read the log after `cursor`, or its last `lines` lines.

        Waits up to `wait_s` when there is nothing new.
        """
        if cursor is None and lines is not None:
            cursor = await asyncio.to_thread(log_files.tail_cursor, self.log, lines)
        growth = self._growth
        chunk = await asyncio.to_thread(log_files.read_from, self.log, cursor)
        if chunk.text or wait_s <= 0:
            return chunk
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await growth.wait()
        return await asyncio.to_thread(log_files.read_from, self.log, cursor)

    def _report_lines(self) -> None:
        """Parse the lines that were read, and report what they said."""
        before = self._progress
        hangs = 0
        try:
            while self._unparsed:
                # A line leaves the queue before it is parsed: one that makes the parser raise is
                # skipped when the task is restarted, not met again and again.
                line = self._unparsed.popleft()
                hangs += hang_lines(line)
                if not self._progress.done:
                    self._progress = advance(self._progress, line)
        finally:
            # Also after an exception: the lines before it count.
            if hangs or self._progress != before:
                self._on_news(LogNews(before, self._progress, hangs))
