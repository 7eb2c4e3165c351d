"""Owns the asyncio tasks of an actor, so that none of them can die unnoticed.

asyncio keeps the exception of a task until the task is awaited; of a task that is never awaited the
exception is lost, and what it did just stops. Every task of the agent and of the controller
therefore runs here: an exception is logged with its traceback, reported to the owner, and a task
that must go on is restarted with a back-off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
"""Pause before the first restart of a task."""
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A task that ran this long before it failed starts again with the first pause."""


@dataclass(frozen=True)
class TaskFailure:
    """An exception that ended a task."""

    name: str
    error: Exception
    failures: int
    """Failures of this task in a row, this one included; 1 for the first."""
    restart_in_s: float | None
    """Pause until the task is restarted; None for a task that is not."""

    def __str__(self) -> str:
        text = f"task {self.name} failed ({self.failures} in a row): {self.error!r}"
        if self.restart_in_s is not None:
            text += f"; restarts in {self.restart_in_s:g} s"
        return text


OnError = Callable[[TaskFailure], None]
Work = Callable[[], Awaitable[None]]


class TaskOwner:
    """Starts tasks by name and watches over them.

    Args:
        on_error: Called with every failure, after it was logged. It makes the failure visible: as
            an event, as part of an observation, or by failing what the task served.
        clock: A monotonic clock, in seconds.
        sleep: Waits for the back-off.
    """

    def __init__(
        self,
        on_error: OnError,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._on_error = on_error
        self._clock = clock
        self._sleep = sleep
        self._tasks: dict[asyncio.Task[None], str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks that run now, oldest first."""
        return tuple(self._tasks.values())

    def run_once(self, name: str, work: Work) -> asyncio.Task[None]:
        """Run `work` in a task of its own. Its exception is reported and ends only the task."""
        return self._start(name, self._once(name, work))

    def keep_running(self, name: str, work: Work) -> asyncio.Task[None]:
        """Run `work` in a task of its own until it returns; restart it whenever it raises.

        The pause before a restart doubles from FIRST_PAUSE_S to LONGEST_PAUSE_S.
        """
        return self._start(name, self._again_and_again(name, work))

    def cancel(self) -> None:
        """Cancel every task. Nothing is reported of it."""
        for task in tuple(self._tasks):
            task.cancel()

    async def cancel_and_wait(self) -> None:
        """Cancel every task and return when all of them have finished."""
        tasks = tuple(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, name: str, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        # Nothing is wrapped: a task that is cancelled before its first step still closes it.
        task = asyncio.create_task(work)
        # The event loop holds tasks by weak references only: without this one a task may vanish.
        self._tasks[task] = name
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def _once(self, name: str, work: Work) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the last place that can see it
            self._report(TaskFailure(name, error, 1, None))

    async def _again_and_again(self, name: str, work: Work) -> None:
        failures = 0
        while True:
            started = self._clock()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the last place that can see it
                if self._clock() - started >= STEADY_S:
                    failures = 0
                failures += 1
                doubled_s = FIRST_PAUSE_S * 2 ** (failures - 1)
                pause_s = min(doubled_s, LONGEST_PAUSE_S)
                self._report(TaskFailure(name, error, failures, pause_s))
                await self._sleep(pause_s)
            else:
                return

    def _report(self, failure: TaskFailure) -> None:
        log.error("%s", failure, exc_info=failure.error)
        self._on_error(failure)
