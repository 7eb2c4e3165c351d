"""The clock that controllers are given: ages and deadlines are monotonic, the wall clock is shown.

A step of the wall clock (NTP, `date -s`, a resumed VM) must not look like silence or a stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """What a loop needs of time. Seconds."""

    def monotonic(self) -> float:
        """Return the time for ages and deadlines."""

    def wall(self) -> float:
        """Return the time to show: seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Wait; returns after one turn of the event loop if `seconds` is not positive."""

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Wait for `event` at most `timeout_s`; return whether it is set."""


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        """Return the time for ages and deadlines."""
        return time.monotonic()

    def wall(self) -> float:
        """Return the time to show: seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait; returns after one turn of the event loop if `seconds` is not positive."""
        await asyncio.sleep(max(0.0, seconds))

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Wait for `event` at most `timeout_s`; return whether it is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await event.wait()
        return event.is_set()


@dataclass(frozen=True)
class ClockReading:
    """Both clocks at one moment. Monotonic times compare only within one boot of one machine."""

    boot_id: str
    monotonic: float
    wall: float

    @classmethod
    def of(cls, clock: Clock) -> ClockReading:
        """Read both clocks."""
        return cls(_boot_id(), clock.monotonic(), clock.wall())

    def shift_from(self, earlier: ClockReading) -> float:
        """Return what to add to a monotonic time of `earlier` to have it on this clock.

        Nothing within one boot. After a reboot only the wall clock relates the two.
        """
        if self.boot_id == earlier.boot_id:
            return 0.0
        return (self.monotonic - self.wall) - (earlier.monotonic - earlier.wall)


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
