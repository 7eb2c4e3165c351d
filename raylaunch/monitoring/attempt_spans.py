"""An attempt of a group as one trace: its start with all stages, its failure, its events.

Ids are made from what they stand for. So a controller that takes over continues the same trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raylaunch.monitoring.notices import MASK
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.failure_timeline import LASTS, RELAUNCH, FailureTimeline, build_failures
from raylaunch.supervise.start_timeline import FAILED, RUNNING, Bar, StartTimeline, build_starts
from raylaunch.supervise.state import Phase

Value = str | int
SPANS_OF_THEIR_OWN = ("phase", "stage")
"""Kinds of events that become spans. The others are events of the attempt's span."""


@dataclass(frozen=True)
class SpanEvent:
    """Something that happened during a span. `at`: seconds since the epoch."""

    name: str
    at: float
    attributes: Mapping[str, Value]


@dataclass(frozen=True)
class Span:
    """A stretch of a trace. Times are seconds since the epoch, by the controller's wall clock."""

    name: str
    at: float
    until: float
    trace_id: bytes
    span_id: bytes
    parent_id: bytes = b""
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    error: str = ""
    """Why it failed; "" if it did not."""


@dataclass(frozen=True)
class Piece:
    """Spans that are sent together: nothing of them changes any more."""

    spans: tuple[Span, ...]

    @property
    def key(self) -> bytes:
        """The same for the same part of the same attempt."""
        return self.spans[0].span_id


@dataclass(frozen=True)
class GroupHistory:
    """What is kept of one group. `created_at` distinguishes it from others of its name."""

    deployment: str
    group: str
    created_at: float
    events: Sequence[Event]


def complete_pieces(history: GroupHistory, now: float, *, removed: bool = False) -> Iterator[Piece]:
    """Yield what is complete of each attempt: its start, and later the attempt as a whole.

    Args:
        history: Of the group. An attempt whose launch is no longer among its events has no start.
        now: Seconds since the epoch.
        removed: The group does not exist any more, so its last attempt is complete too.
    """
    events = history.events
    built = build_starts(events, {history.group: history.created_at}, now)
    starts = {start.attempt: start for start in built}
    failures = {failure.attempt: failure for failure in build_failures(events, now)}
    for attempt in sorted({event.attempt for event in events if event.attempt > 0}):
        trace = _Trace(history, attempt)
        start = starts.get(attempt)
        if start is not None and start.outcome != RUNNING:
            yield Piece(tuple(trace.start(start)))
        until = _end(attempt, events, removed=removed)
        if until is not None:
            own = [event for event in events if event.attempt == attempt]
            at = own[0].at if start is None else start.at
            yield Piece(tuple(trace.attempt(at, until, own, failures.get(attempt))))


def without_secrets(span: Span, secrets: Collection[str]) -> Span:
    """Return a span in whose texts the values of secrets are replaced."""
    # The longest first: one value may be part of another.
    values = sorted(filter(None, secrets), key=len, reverse=True)

    def clean(text: str) -> str:
        for value in values:
            text = text.replace(value, MASK)
        return text

    def clean_all(attributes: Mapping[str, Value]) -> dict[str, Value]:
        return {
            name: clean(value) if isinstance(value, str) else value
            for name, value in attributes.items()
        }

    events = (replace(event, attributes=clean_all(event.attributes)) for event in span.events)
    return replace(
        span,
        attributes=clean_all(span.attributes),
        events=tuple(events),
        error=clean(span.error),
    )


class _Trace:
    """Makes the spans of one attempt."""

    def __init__(self, history: GroupHistory, attempt: int) -> None:
        name = (history.deployment, history.group, repr(history.created_at), str(attempt))
        self._id = hashlib.sha256("\n".join(name).encode()).digest()[:16]
        self._about: dict[str, Value] = {
            "raylaunch.group": history.group,
            "raylaunch.attempt": attempt,
        }

    def start(self, start: StartTimeline) -> Iterator[Span]:
        """Yield the span of a start, and those of its phases, its servers and their stages."""
        error = "" if start.outcome != FAILED else "the start failed"
        outcome = {"raylaunch.outcome": start.outcome}
        yield self._span(
            "start", "start", start.at, start.until, parent="attempt", more=outcome, error=error
        )
        yield from self._bars("start", start.phases, {})
        for row in start.servers:
            if not row.bars:
                continue
            path = f"start/server {row.server}"
            about: dict[str, Value] = {"raylaunch.server": row.server}
            last: dict[str, Value] = {"raylaunch.slowest": "yes"} if row.is_slowest else {}
            yield self._span(
                path,
                f"server {row.server}",
                row.bars[0].at,
                row.bars[-1].until,
                parent="start",
                more={**about, **last},
            )
            yield from self._bars(path, row.bars, about)

    def attempt(
        self, at: float, until: float, events: Sequence[Event], failure: FailureTimeline | None
    ) -> Iterator[Span]:
        """Yield the span of an attempt with its events, and the steps after its failure."""
        diagnosis = _split_diagnosis(failure)
        noted = (event for event in events if event.kind not in SPANS_OF_THEIR_OWN)
        root = self._span(
            "attempt",
            "attempt",
            at,
            until,
            more=diagnosis,
            error="" if failure is None else failure.diagnosis or failure.reason,
        )
        yield replace(root, events=tuple(_as_span_event(event, diagnosis) for event in noted))
        if failure is None:
            return
        # The start of the servers belongs to the next attempt.
        bars = [bar for bar in failure.bars if bar.name != LASTS[RELAUNCH]]
        last = max((bar.until for bar in bars), default=failure.until)
        yield self._span(
            "failure",
            "failure",
            failure.at,
            min(last, until),
            parent="attempt",
            more={**diagnosis, "raylaunch.outcome": failure.outcome},
            error=failure.reason,
        )
        yield from self._bars("failure", bars, {})

    def _bars(self, parent: str, bars: Sequence[Bar], about: Mapping[str, Value]) -> Iterator[Span]:
        for number, bar in enumerate(bars):
            detail = {"raylaunch.detail": bar.detail} if bar.detail else {}
            path = f"{parent}/{number} {bar.name}"
            more = {**about, **detail}
            yield self._span(path, bar.name, bar.at, bar.until, parent=parent, more=more)

    def _span(
        self,
        path: str,
        name: str,
        at: float,
        until: float,
        *,
        parent: str = "",
        more: Mapping[str, Value],
        error: str = "",
    ) -> Span:
        """Return a span; `path` and `parent` stand for its place in the trace."""
        return Span(
            name=name,
            at=at,
            # A wall clock may be set back.
            until=max(at, until),
            trace_id=self._id,
            span_id=self._span_id(path),
            parent_id=self._span_id(parent) if parent else b"",
            attributes={**self._about, **more},
            error=error,
        )

    def _span_id(self, path: str) -> bytes:
        return hashlib.sha256(self._id + path.encode()).digest()[:8]


def _as_span_event(event: Event, diagnosis: Mapping[str, Value]) -> SpanEvent:
    attributes: dict[str, Value] = {"raylaunch.text": event.text}
    if event.server is not None:
        attributes["raylaunch.server"] = event.server
    if event.kind == "failure":
        attributes.update(diagnosis)
    return SpanEvent(event.kind, event.at, attributes)


def _split_diagnosis(failure: FailureTimeline | None) -> dict[str, Value]:
    """Return id and cause of a diagnosis: its event has both in one text."""
    if failure is None or not failure.diagnosis:
        return {}
    found, _, cause = failure.diagnosis.partition(": ")
    return {"raylaunch.diagnosis.id": found, "raylaunch.diagnosis.cause": cause}


def _end(attempt: int, events: Sequence[Event], *, removed: bool) -> float | None:
    """Return when nothing more happens in an attempt; None while it lasts.

    The checks before the next launch still have its number.
    """
    for event in events:
        if event.attempt > attempt:
            return event.at
        is_own = event.attempt == attempt and event.kind == "phase"
        if is_own and event.text in (Phase.FAILED, Phase.STOPPED):
            return event.at
    return events[-1].at if removed else None
