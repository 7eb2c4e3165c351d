"""The failures of a deployment as timelines, from its events.

Fault, noticed, evidence, teardown, relaunch, ready. Times are seconds since the epoch, by the
controller's wall clock, as those of the events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.start_timeline import Bar
from raylaunch.supervise.state import Phase

FAULT = "fault"
NOTICED = "noticed"
EVIDENCE = "evidence"
TEARDOWN = "teardown"
CHECKS = "checks"
RELAUNCH = "relaunch"
READY = "ready"

LASTS = {
    FAULT: "detection",
    NOTICED: "evidence and diagnosis",
    EVIDENCE: "decision",
    TEARDOWN: "teardown and back-off",
    CHECKS: "checks and plan",
    RELAUNCH: "start of the servers",
}
"""A moment -> what lasts from it to the next one."""

RECOVERED = "recovered"
FAILED_AGAIN = "failed again"
GIVEN_UP = "given up"
STOPPED = "stopped"
UNDER_WAY = "recovering"


@dataclass(frozen=True)
class Moment:
    """A point of a failure's timeline."""

    name: str
    at: float
    text: str = ""
    server: int | None = None


@dataclass(frozen=True)
class FailureTimeline:
    """One failure of a group."""

    group: str
    attempt: int
    """The attempt that failed."""
    at: float
    until: float
    outcome: str
    """ "recovered", "failed again", "given up", "stopped", or "recovering"."""
    reason: str
    """What was detected."""
    diagnosis: str
    """Id and cause; "" when the kept events have none."""
    server: int | None
    """The one that failed first, as far as it is known."""
    moments: tuple[Moment, ...]
    bars: tuple[Bar, ...]
    more: tuple[Moment, ...] = ()
    """Further events of the group meanwhile: second faults, nodes that are awaited."""


@dataclass
class _Case:
    """A failure that is being read."""

    failure: Event
    moments: list[Moment]
    more: list[Moment] = field(default_factory=list)
    diagnosis: str = ""
    server: int | None = None

    @property
    def names(self) -> set[str]:
        return {moment.name for moment in self.moments}

    def add(self, name: str, event: Event, text: str = "") -> None:
        """Add a moment; only the first one of its name counts."""
        if name not in self.names:
            self.moments.append(Moment(name, event.at, text or event.text, event.server))

    def close(self, at: float, outcome: str) -> FailureTimeline:
        moments = tuple(self.moments)
        began = moments[0].at
        return FailureTimeline(
            group=self.failure.group,
            attempt=self.failure.attempt,
            at=began,
            until=max(at, began),
            outcome=outcome,
            reason=self.failure.text,
            diagnosis=self.diagnosis,
            server=self.failure.server if self.server is None else self.server,
            moments=moments,
            bars=_bars(moments, at),
            more=tuple(self.more),
        )


def build_failures(events: Iterable[Event], now: float) -> tuple[FailureTimeline, ...]:
    """Return the failures that the events show, oldest first.

    Args:
        events: Of all groups, oldest first.
        now: Where the last bar of a failure under way is cut.
    """
    by_group: dict[str, list[Event]] = {}
    for event in events:
        if event.group:
            by_group.setdefault(event.group, []).append(event)
    found: list[FailureTimeline] = []
    for of_group in by_group.values():
        found += _failures_of(of_group, now)
    return tuple(sorted(found, key=lambda failure: failure.at))


class _Reader:
    """Reads the events of one group."""

    def __init__(self) -> None:
        self.found: list[FailureTimeline] = []
        self._case: _Case | None = None
        self._attempt = -1
        self._traces: list[Event] = []
        """Drills and exits of the current attempt before a failure is noticed."""

    def take(self, event: Event) -> None:
        """Take the next event."""
        if event.attempt != self._attempt:
            self._attempt = event.attempt
            self._traces = []
        if event.kind == "failure" and self._begins(event):
            self._case = _open(event, self._traces)
        elif self._case is not None:
            outcome = _read(self._case, event)
            if outcome:
                self._close(event.at, outcome)
        elif event.kind == "adopted":
            # Another agent took the server over: what happened to the first one is settled.
            self._traces = []
        elif event.kind in ("drill", "exit"):
            self._traces.append(event)

    def finish(self, now: float) -> None:
        """Close what is under way."""
        if self._case is not None:
            self._close(max(now, self._case.failure.at), UNDER_WAY)

    def _begins(self, failure: Event) -> bool:
        """Return whether a failure is one of its own: one of the next attempt is."""
        if self._case is not None and RELAUNCH in self._case.names:
            self._close(failure.at, FAILED_AGAIN)
        return self._case is None

    def _close(self, at: float, outcome: str) -> None:
        assert self._case is not None
        self.found.append(self._case.close(at, outcome))
        self._case = None


def _failures_of(events: Sequence[Event], now: float) -> list[FailureTimeline]:
    reader = _Reader()
    for event in events:
        reader.take(event)
    reader.finish(now)
    return reader.found


def _open(failure: Event, traces: Sequence[Event]) -> _Case:
    moments = []
    if traces:
        # A drill's event may be noted after the exit that it caused.
        first = min(traces, key=lambda event: event.at)
        at = min(first.at, failure.at)
        moments.append(Moment(FAULT, at, first.text, first.server))
    moments.append(Moment(NOTICED, failure.at, failure.text, failure.server))
    return _Case(failure, moments)


def _read(case: _Case, event: Event) -> str:
    """Take one more event of a failure; return its outcome, "" while it is under way."""
    if event.attempt > case.failure.attempt:
        # The first event of the next attempt is that of its launch.
        case.add(RELAUNCH, event)
    match event.kind:
        case "diagnosis":
            case.add(EVIDENCE, event)
            case.diagnosis = case.diagnosis or event.text
            case.server = event.server if case.server is None else case.server
        case "restart":
            case.add(TEARDOWN, event)
        case "phase":
            return _read_phase(case, event)
        case "failure" | "waiting" | "exit" | "bundle-failed" | "internal" | "drill":
            case.more.append(Moment(event.kind, event.at, event.text, event.server))
    return ""


def _read_phase(case: _Case, event: Event) -> str:
    if event.text == Phase.RESTARTING:
        case.add(TEARDOWN, event)
    elif event.text == Phase.CHECKING:
        case.add(CHECKS, event, "nothing is left of the failed attempt")
    elif event.text == Phase.READY:
        case.add(READY, event)
        return RECOVERED
    elif event.text == Phase.FAILED:
        return GIVEN_UP
    elif event.text in (Phase.STOPPING, Phase.STOPPED):
        return STOPPED
    return ""


def _bars(moments: Sequence[Moment], until: float) -> tuple[Bar, ...]:
    """Return what lasts between the moments; the last one lasts until `until`."""
    bars = []
    ends = [moment.at for moment in moments[1:]] + [until]
    for moment, end in zip(moments, ends, strict=True):
        if moment.name in LASTS:
            bars.append(Bar(LASTS[moment.name], moment.text, moment.at, max(end, moment.at)))
    return tuple(bars)
