"""What a group's loop is ordered to do. An order interrupts the step under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from raylaunch.errors import RaylaunchError


class Orders:
    """The orders to one loop. A stop is for good, the others are taken once."""

    def __init__(self) -> None:
        self._given = asyncio.Event()
        self._restart = False
        self._abandon: RaylaunchError | None = None
        self.stop_requested = False

    @property
    def are_pending(self) -> bool:
        """Whether there is an order that is not carried out yet."""
        return self._given.is_set()

    def stop(self) -> None:
        """Order to stop the group for good."""
        self.stop_requested = True
        self._given.set()

    def abandon(self, error: RaylaunchError) -> None:
        """Order to let the group fail with `error`."""
        self._abandon = error
        self._given.set()

    def restart(self) -> None:
        """Order to launch the next attempt."""
        self._restart = True
        self._given.set()

    def take_abandon(self) -> RaylaunchError | None:
        """Return the error of an order to fail, and take that order."""
        error, self._abandon = self._abandon, None
        self._clear_if_taken()
        return error

    def take_restart(self) -> bool:
        """Return whether a restart was ordered, and take that order."""
        ordered, self._restart = self._restart, False
        self._clear_if_taken()
        return ordered

    def _clear_if_taken(self) -> None:
        if not (self.stop_requested or self._restart or self._abandon):
            self._given.clear()

    async def wait(self) -> None:
        """Wait for an order."""
        await self._given.wait()

    async def interrupt(self, work: Awaitable[object]) -> None:
        """Do some work, but cancel it as soon as there is an order."""
        working = asyncio.ensure_future(work)
        ordered = asyncio.ensure_future(self._given.wait())
        try:
            await asyncio.wait({working, ordered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ordered.cancel()
            working.cancel()  # does nothing to work that is done
        await asyncio.wait({working})
        if not working.cancelled():
            working.result()
