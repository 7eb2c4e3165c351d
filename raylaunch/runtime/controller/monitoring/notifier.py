"""Delivers notices to webhooks and commands, each with a queue and a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from raylaunch.errors import NodeError
from raylaunch.monitoring.notices import describe_hook
from raylaunch.recipe.monitoring_settings import Notify
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.task_owner import TaskOwner

log = logging.getLogger(__name__)

QUEUED = 100
"""Notices that wait for one hook; older ones are dropped."""
TRIES = 5
FIRST_PAUSE_S = 2.0
"""Before the second try; it doubles with each further one."""


class Notifier:
    """The hooks of a deployment.

    Args:
        hooks: Of the recipe.
        secrets: Values by name, for the tokens.
        clock: Waits between two tries.
        report: Called with a sentence when a notice is given up.
    """

    def __init__(
        self,
        hooks: Sequence[Notify],
        secrets: Mapping[str, str],
        clock: Clock,
        report: Callable[[str], None],
    ) -> None:
        self._deliveries = [_Delivery(hook, secrets, clock, report) for hook in hooks]
        self._tasks: list[asyncio.Task[None]] = []

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the values of the tokens later than at the start."""
        for delivery in self._deliveries:
            delivery.take_token(secrets)

    def start(self, tasks: TaskOwner) -> None:
        """Begin to deliver."""
        for number, delivery in enumerate(self._deliveries):
            self._tasks.append(tasks.keep_running(f"hook {number}", delivery.run))

    def send(self, wanted: Callable[[Notify], bool], notice: bytes) -> None:
        """Queue a notice for the hooks that want it; returns without waiting."""
        for delivery in self._deliveries:
            if wanted(delivery.hook):
                delivery.put(notice)

    async def flush(self, timeout_s: float) -> None:
        """Wait until nothing is queued, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for delivery in self._deliveries:
                    await delivery.idle.wait()

    async def stop(self, flush_s: float) -> None:
        """Deliver for at most `flush_s`, and no more after it."""
        await self.flush(flush_s)
        for task in self._tasks:
            task.cancel()


class _Delivery:
    def __init__(
        self,
        hook: Notify,
        secrets: Mapping[str, str],
        clock: Clock,
        report: Callable[[str], None],
    ) -> None:
        self.hook = hook
        self.idle = asyncio.Event()
        self.idle.set()
        self.take_token(secrets)
        self._clock = clock
        self._report = report
        self._queue: deque[bytes] = deque(maxlen=QUEUED)
        self._filled = asyncio.Event()

    def take_token(self, secrets: Mapping[str, str]) -> None:
        self._token = secrets.get(self.hook.token, "") if self.hook.token else ""

    def put(self, notice: bytes) -> None:
        if len(self._queue) == QUEUED:
            log.warning("hook %s: more than %d notices wait", describe_hook(self.hook), QUEUED)
        self._queue.append(notice)
        self.idle.clear()
        self._filled.set()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                await self._deliver(self._queue.popleft())
            self.idle.set()

    async def _deliver(self, notice: bytes) -> None:
        pause_s = FIRST_PAUSE_S
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                await self._clock.sleep(pause_s)
                pause_s *= 2
            problem = await self._try(notice)
            if not problem:
                return
            log.warning("hook %s: %s", describe_hook(self.hook), problem)
        self._report(f"hook {describe_hook(self.hook)} failed {TRIES} times: {problem}")

    async def _try(self, notice: bytes) -> str:
        """Return why the delivery failed; "" if it did not."""
        try:
            async with asyncio.timeout(self.hook.timeout_s):
                if self.hook.url:
                    return await self._post(self.hook.url, notice)
                return await self._run(notice)
        except TimeoutError:
            return f"no answer within {self.hook.timeout_s:g} s"
        except (OSError, NodeError) as error:
            return str(error)

    async def _post(self, url: str, notice: bytes) -> str:
        # Its import takes a quarter of a second, which the event loop has not.
        httpx = await asyncio.to_thread(importlib.import_module, "httpx")
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            async with httpx.AsyncClient(timeout=self.hook.timeout_s) as client:
                answer = await client.post(url, content=notice, headers=headers)
        except httpx.HTTPError as error:
            return type(error).__name__
        return "" if answer.is_success else f"status {answer.status_code}"

    async def _run(self, notice: bytes) -> str:
        process = await asyncio.create_subprocess_exec(
            *self.hook.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await process.communicate(notice)
        finally:
            if process.returncode is None:
                # Not reaped yet, so the pid, which is that of its group, is still its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return "" if process.returncode == 0 else f"exit status {process.returncode}"
