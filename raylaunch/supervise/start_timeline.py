"""The starts of a deployment as timelines, from its events: phases, and the stages of each server.

Times are seconds since the epoch, by the controller's wall clock, as those of the events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.state import Phase

STAGES = (
    *("launching", "spawned", "engine connected", "weights", "warm-up"),
    *("engine up", "API up", "first token"),
)
"""Names of stages: an event's text begins with one. Another first word is a stage of its own."""
LAST_STAGES = ("engine up", "API up", "first token")
"""In these a server has finished its own start, and waits for the others."""
ENGINE_READY = "engine ready"
"""Detail of a stage when an engine of the server is ready."""
BEFORE_LAUNCH = (Phase.PENDING, Phase.CHECKING, Phase.STARTING)

Mark = tuple[float, str, str]
"""When a server reached a stage, its name, and its detail."""

READY = "ready"
FAILED = "failed"
STOPPED = "stopped"
RUNNING = "starting"


@dataclass(frozen=True)
class Bar:
    """A stretch of a timeline."""

    name: str
    detail: str
    at: float
    until: float


@dataclass(frozen=True)
class ServerStart:
    """The stages of one server."""

    server: int
    bars: tuple[Bar, ...]
    is_slowest: bool = False
    """It was the last one to finish its own start, or has made no step for the longest time."""


@dataclass(frozen=True)
class StartTimeline:
    """One launch of a group, from the begin of its preparation until it is ready or failed."""

    group: str
    attempt: int
    at: float
    until: float
    outcome: str
    """ "ready", "failed", "stopped", or "starting" while it is under way."""
    phases: tuple[Bar, ...]
    servers: tuple[ServerStart, ...]


@dataclass
class _Open:
    """A start that is being read."""

    group: str
    attempt: int
    phases: list[tuple[float, str]]
    stages: dict[int, list[Mark]] = field(default_factory=dict)

    def close(self, at: float, outcome: str) -> StartTimeline:
        rows = [
            ServerStart(server, _bars(marks, at)) for server, marks in sorted(self.stages.items())
        ]
        return StartTimeline(
            group=self.group,
            attempt=self.attempt,
            at=self.phases[0][0],
            until=at,
            outcome=outcome,
            phases=_bars([(began, name, "") for began, name in self.phases], at),
            servers=_mark_slowest(rows, self.stages),
        )


def build_starts(
    events: Iterable[Event], created_at: Mapping[str, float], now: float
) -> tuple[StartTimeline, ...]:
    """Return the starts that the events show, oldest first.

    Args:
        events: Of all groups, oldest first. A start whose launch is no longer among them is left
            out.
        created_at: When each group was created.
        now: Where the bars of a start under way are cut.
    """
    by_group: dict[str, list[Event]] = {group: [] for group in created_at}
    for event in events:
        if event.group:
            by_group.setdefault(event.group, []).append(event)
    starts: list[StartTimeline] = []
    for group, of_group in by_group.items():
        starts += _starts_of(group, of_group, created_at.get(group), now)
    return tuple(sorted(starts, key=lambda start: start.at))


def split_stage(text: str) -> tuple[str, str]:
    """Return name and detail of the event of a stage: "weights 3/47 shards"."""
    for stage in STAGES:
        if text == stage or text.startswith(f"{stage} "):
            return stage, text[len(stage) :].strip()
    name, _, detail = text.partition(" ")
    return name, detail


class _Reader:
    """Reads the events of one group."""

    def __init__(self, group: str, created_at: float | None, first_attempt: int) -> None:
        self._group = group
        self._attempt = first_attempt
        self._open: _Open | None = None
        self._is_preparing = first_attempt == 0
        self._prepared: list[tuple[float, str]] = []
        """Phases since the last launch."""
        self.starts: list[StartTimeline] = []
        if self._is_preparing and created_at is not None:
            self._prepared = [(created_at, Phase.PENDING)]

    def take(self, event: Event) -> None:
        """Take the next event."""
        if event.attempt > self._attempt:
            # The first event of an attempt is that of its launch.
            self._attempt = event.attempt
            phases = self._prepared or [(event.at, str(Phase.STARTING))]
            self._open = _Open(self._group, event.attempt, phases)
            self._prepared = []
            self._is_preparing = False
        outcome = _outcome(event)
        if self._open is not None and outcome:
            self.starts.append(self._open.close(event.at, outcome))
            self._open = None
        if event.kind == "phase":
            self._take_phase(event)
        elif self._open is not None and event.kind == "stage" and event.server is not None:
            marks = self._open.stages.setdefault(event.server, [])
            marks.append((event.at, *split_stage(event.text)))

    def _take_phase(self, event: Event) -> None:
        self._is_preparing = event.text in BEFORE_LAUNCH
        if not self._is_preparing:
            self._prepared = []
            return
        if event.text == Phase.CHECKING:
            # A check that failed, and its restart, are part of the failure's timeline.
            self._prepared = [mark for mark in self._prepared if mark[1] == Phase.PENDING]
        self._prepared.append((event.at, event.text))

    def finish(self, now: float) -> None:
        """Close what is under way."""
        if self._open is None and self._is_preparing and self._prepared:
            self._open = _Open(self._group, self._attempt + 1, self._prepared)
        if self._open is not None:
            self.starts.append(self._open.close(max(now, self._open.phases[0][0]), RUNNING))


def _starts_of(
    group: str, events: Sequence[Event], created_at: float | None, now: float
) -> list[StartTimeline]:
    reader = _Reader(group, created_at, events[0].attempt if events else 0)
    for event in events:
        reader.take(event)
    reader.finish(now)
    return reader.starts


def _outcome(event: Event) -> str:
    """Return how an event ends a start; "" if it does not."""
    if event.kind == "failure":
        return FAILED
    if event.kind != "phase":
        return ""
    if event.text == Phase.READY:
        return READY
    if event.text in (Phase.RESTARTING, Phase.STOPPING, Phase.STOPPED):
        return STOPPED
    return FAILED if event.text == Phase.FAILED else ""


def _bars(marks: Sequence[Mark], until: float) -> tuple[Bar, ...]:
    """Return a bar for each stage; marks of the same stage only change its detail."""
    bars: list[Bar] = []
    for at, name, detail in marks:
        if bars and bars[-1].name == name:
            bars[-1] = replace(bars[-1], detail=detail or bars[-1].detail)
            continue
        if bars:
            bars[-1] = replace(bars[-1], until=max(at, bars[-1].at))
        bars.append(Bar(name, detail, at, max(at, until)))
    return tuple(bars)


def _mark_slowest(
    rows: Sequence[ServerStart], stages: Mapping[int, Sequence[Mark]]
) -> tuple[ServerStart, ...]:
    if len(rows) < 2:
        return tuple(rows)
    slowest = max(rows, key=lambda row: _finished_at(stages[row.server]))
    return tuple(replace(row, is_slowest=row is slowest) for row in rows)


def _finished_at(marks: Sequence[Mark]) -> tuple[float, float]:
    """Return when a server had finished its own start.

    Of those that have not, the one whose last step is the oldest comes last. A primary whose
    engine is ready waits for the other engines before its API is up.
    """
    finished = None
    for at, name, detail in marks:
        if detail.startswith(ENGINE_READY):
            finished = at
        elif name not in LAST_STAGES:
            # Another engine of the same server is still at work.
            finished = None
        elif finished is None:
            finished = at
    if finished is None:
        return float("inf"), -marks[-1][0]
    return finished, 0.0
