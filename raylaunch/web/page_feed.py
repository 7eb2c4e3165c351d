"""The newest parts of the page, read once for all browsers that follow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from raylaunch.errors import RaylaunchError, UnknownDeploymentError
from raylaunch.page.page_model import encode_value
from raylaunch.web.page_source import PageParts, PageSource

PAUSE_S = 0.5
"""Between two readings: a controller reports each observation of each agent as a change."""
RETRY_S = 2.0

InThread = Callable[[Callable[[], PageParts]], Awaitable[PageParts]]


class PageFeed:
    """Reads the source while there are followers, and wakes them.

    Args:
        source: The deployment.
        in_thread: Runs a blocking function.
    """

    def __init__(self, source: PageSource, in_thread: InThread) -> None:
        self._source = source
        self._in_thread = in_thread
        self._parts: dict[str, tuple[int, str]] = {}
        self._number = 0
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self.followers = 0
        self.is_finished = False

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """Count a follower within the block."""
        self.followers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.followers -= 1
            if not self.followers:
                self._wanted.clear()

    def newer(self, number: int) -> list[tuple[int, str, str]]:
        """Return number, name and JSON of each part that is newer than `number`, in order."""
        found = [(at, name, text) for name, (at, text) in self._parts.items() if at > number]
        return sorted(found)

    async def wait(self, number: int, timeout_s: float) -> bool:
        """Return whether a part is newer than `number`, as soon as one is or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._number <= number:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def publish(self, name: str, text: str) -> None:
        """Send a part to every follower.

        Args:
            name: Of the part.
            text: Its JSON.
        """
        self._set(name, text)
        self._wake()

    def finish(self) -> None:
        """Send that the deployment was stopped, as the last part."""
        self.is_finished = True
        self.publish("stopped", encode_value(self._source.title))

    async def run(self) -> None:
        """Read until the deployment is stopped."""
        while True:
            await self._wanted.wait()
            try:
                parts = await self._in_thread(self._source.poll)
                self._publish(parts)
                if parts.is_stopped:
                    return
            except UnknownDeploymentError:
                return
            except RaylaunchError as error:
                self._source.forget()
                self._set("lost", encode_value(error.as_dict()))
                self._wake()
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(PAUSE_S)

    def _publish(self, parts: PageParts) -> None:
        for name in ("live", "history", "facts"):
            text = getattr(parts, name)
            if text is not None:
                self._set(name, text)
        if "lost" in self._parts:
            # A browser that has shown an error takes it away.
            self._set("lost", "null")
        self._wake()

    def _set(self, name: str, text: str) -> None:
        self._number += 1
        self._parts[name] = (self._number, text)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
