"""The verdict of an operator's command on new groups, for which an upgrade waits."""

from __future__ import annotations

import asyncio

from raylaunch.runtime.controller.group_set import Changes

VERDICT_S = 1800.0
"""For the verification of new groups, a benchmark included."""


class Verdict:
    """Waits for the command that verifies new groups.

    Args:
        changes: Wakes the command.
    """

    def __init__(self, changes: Changes) -> None:
        self.awaits: tuple[str, ...] = ()
        """The groups that wait for a verdict."""
        self._changes = changes
        self._given: asyncio.Future[str] | None = None

    def give(self, problem: str) -> None:
        """Take the verdict on the groups in `awaits`; "" if nothing is wrong with them."""
        if self._given is not None and not self._given.done():
            self._given.set_result(problem)

    async def wait(self, groups: tuple[str, ...]) -> str:
        """Return what is wrong with these groups; "" for nothing."""
        self._given = asyncio.get_running_loop().create_future()
        self.awaits = groups
        self._changes.note()
        try:
            async with asyncio.timeout(VERDICT_S):
                return await self._given
        except TimeoutError:
            return f"`raylaunch upgrade` did not report within {VERDICT_S:g} s"
        finally:
            self.awaits = ()
            self._given = None
