"""Sends spans to a receiver of OpenTelemetry, from a bounded queue, in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.monitoring.attempt_spans import Span
from raylaunch.monitoring.otlp import (
    CONTENT_TYPE,
    describe_receiver,
    encode_spans,
    read_rejection,
    trace_url,
)
from raylaunch.recipe.monitoring_settings import Tracing
from raylaunch.runtime.cluster.clock import Clock

log = logging.getLogger(__name__)

QUEUED = 4096
"""Spans that wait; further ones are dropped."""
BATCH = 512
"""Spans of one request, as in OpenTelemetry's own batches."""
TRIES = 5
FIRST_PAUSE_S = 2.0
"""Before the second try; it doubles with each further one."""
REPEATED = (429, 502, 503, 504)
"""Statuses after which a client should try again (OTLP specification, "Failures")."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Of one request: why it failed, and whether another try may succeed."""

    problem: str = ""
    may_repeat: bool = False


class SpanExporter:
    """The way to one receiver.

    Args:
        settings: The section `tracing` of the recipe, with an endpoint.
        resource: Attributes of what the spans are about.
        clock: Waits between two tries.
        report: Called with a sentence when spans are lost, once until it works again.
    """

    def __init__(
        self, settings: Tracing, resource: Mapping[str, str], clock: Clock, report: Report
    ) -> None:
        assert settings.endpoint is not None
        self.place = describe_receiver(settings.endpoint)
        self._url = trace_url(settings.endpoint)
        self._timeout_s = settings.timeout_s
        self._resource = resource
        self._clock = clock
        self._report = report
        self._queue: deque[Span] = deque()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._headers: Mapping[str, bytes] | None = None
        self._has_headers = asyncio.Event()
        self._is_dropping = False
        self._is_failing = False

    def use_headers(self, headers: Mapping[str, str]) -> None:
        """Send with these headers; without a call nothing is sent."""
        self._headers = {name: value.encode() for name, value in headers.items()}
        self._has_headers.set()

    def put(self, spans: Sequence[Span]) -> None:
        """Queue spans, or drop them where too many wait; returns without waiting."""
        if len(self._queue) + len(spans) > QUEUED:
            if not self._is_dropping:
                self._is_dropping = True
                self._report(f"spans are dropped: more than {QUEUED} wait for {self.place}")
            return
        self._queue.extend(spans)
        self._idle.clear()
        self._filled.set()

    async def run(self) -> None:
        """Send what is queued until the task is cancelled."""
        while True:
            await self._has_headers.wait()
            if not self._queue:
                await self._filled.wait()
            self._filled.clear()
            while self._queue:
                count = min(BATCH, len(self._queue))
                await self._deliver([self._queue.popleft() for _ in range(count)])
            self._is_dropping = False
            self._idle.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until nothing is queued, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def _deliver(self, spans: Sequence[Span]) -> None:
        pause_s = FIRST_PAUSE_S
        outcome = Outcome()
        # The first import takes a tenth of a second, which the event loop has not.
        body = await asyncio.to_thread(encode_spans, spans, self._resource)
        for attempt in range(TRIES):
            if attempt:
                await self._clock.sleep(pause_s)
                pause_s *= 2
            outcome = await self._try(body)
            if not outcome.problem:
                self._is_failing = False
                return
            log.warning("tracing: %s: %s", self.place, outcome.problem)
            if not outcome.may_repeat:
                break
        if not self._is_failing:
            self._is_failing = True
            self._report(f"{self.place} did not take {len(spans)} spans: {outcome.problem}")

    async def _try(self, body: bytes) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(body)
        except TimeoutError:
            return Outcome(f"no answer within {self._timeout_s:g} s", may_repeat=True)
        except OSError as error:
            return Outcome(str(error), may_repeat=True)

    async def _post(self, body: bytes) -> Outcome:
        # Its import takes a quarter of a second, which the event loop has not.
        httpx = await asyncio.to_thread(importlib.import_module, "httpx")
        headers = {**(self._headers or {}), "Content-Type": CONTENT_TYPE}
        try:
            async with httpx.AsyncClient(timeout=self._timeout_s) as client:
                answer = await client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return Outcome(type(error).__name__, may_repeat=True)
        if not answer.is_success:
            status = int(answer.status_code)
            return Outcome(f"status {status}", may_repeat=status in REPEATED)
        return Outcome(read_rejection(answer.content))
