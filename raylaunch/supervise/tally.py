"""What a group has been through since it was created, as numbers that only grow: for metrics.

The tally is part of the group's journal, so a controller that takes over counts on from it. The
history of `state` is another matter: it is cut, and forgotten at an ordered restart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raylaunch.supervise.detect import FailureSeen
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.policy import explains
from raylaunch.supervise.state import ServerSeen

DETECTION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
RECOVERY_BOUNDS = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
MAX_CAUSES = 64
"""Distinct causes that are counted by name; further ones count as "other"."""
OTHER = "other"


@dataclass(frozen=True)
class Observed:
    """One duration, for the exemplar of a histogram. `at`: seconds since the epoch."""

    seconds: float
    at: float
    attempt: int


@dataclass(frozen=True)
class Histogram:
    """Counts of durations. `counts` has one more entry than `bounds`, for those above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...] = ()
    total_s: float = 0.0
    newest: Observed | None = None

    def observe(self, seconds: float, at: float, attempt: int) -> Histogram:
        """Return the histogram with one more duration; a negative one counts as 0.

        Args:
            seconds: The duration.
            at: When it was over, in seconds since the epoch.
            attempt: The attempt of the group that it belongs to.
        """
        newest = Observed(max(0.0, seconds), at, attempt)
        counts = list(self.counts or (0,) * (len(self.bounds) + 1))
        counts[self.place_of(newest)] += 1
        total_s = self.total_s + newest.seconds
        return replace(self, counts=tuple(counts), total_s=total_s, newest=newest)

    def place_of(self, one: Observed) -> int:
        """Return the index of the count of a duration."""
        return bisect_left(self.bounds, one.seconds)

    def cumulative(self) -> list[int]:
        """Return the number of durations up to each bound, and of all of them at last."""
        sums = []
        running = 0
        for count in self.counts or (0,) * (len(self.bounds) + 1):
            running += count
            sums.append(running)
        return sums


@dataclass(frozen=True)
class LastFailure:
    """The newest failure. `at`: seconds since the epoch."""

    at: float
    cause: str
    """Id of the diagnosis, or of the detector while there is none."""
    kind: str
    server: int | None = None


@dataclass(frozen=True)
class Tally:
    """Counts of one group. Durations in seconds."""

    restarts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Restarts by cause and failure class."""
    failures: int = 0
    last_failure: LastFailure | None = None
    """The newest failure whose cause is named."""
    unnamed: LastFailure | None = None
    """A failure that is being diagnosed. To show it now would show a cause that it may not have."""
    down_since: float | None = None
    """When the failure was detected that the group has not recovered from (epoch)."""
    detection: Histogram = Histogram(DETECTION_BOUNDS)
    """From the first trace of a fault to the decision that it is one."""
    recovery: Histogram = Histogram(RECOVERY_BOUNDS)
    """From that decision until the group is ready again."""
    stages: Mapping[tuple[int, str], float] = field(default_factory=dict)
    """Seconds that each server spent in each stage of the last start that became ready."""

    def failed(
        self, failure: FailureSeen, now: float, detection_s: float | None, attempt: int
    ) -> Tally:
        """Count a failure.

        Args:
            failure: What was detected.
            now: Seconds since the epoch.
            detection_s: How long it took to detect it; None if its begin is unknown.
            attempt: The attempt that failed.
        """
        detection = self.detection
        if detection_s is not None:
            detection = detection.observe(detection_s, now, attempt)
        return replace(
            self,
            failures=self.failures + 1,
            unnamed=LastFailure(now, failure.cause, failure.kind, failure.root),
            down_since=now if self.down_since is None else self.down_since,
            detection=detection,
        )

    def diagnosed(self, diagnosis: Diagnosis, root: int | None) -> Tally:
        """Name the cause of the new failure: the diagnosis, or the detector where that fails."""
        last = self.unnamed
        if last is not None and explains(diagnosis, last.cause):
            last = replace(last, cause=diagnosis.id, kind=diagnosis.kind, server=root)
            return replace(self, last_failure=last, unnamed=None)
        return self.settled()

    def settled(self) -> Tally:
        """Let a failure that nothing diagnosed keep the name that its detector gave it."""
        if self.unnamed is None:
            return self
        return replace(self, last_failure=self.unnamed, unnamed=None)

    def restarted(self, cause: str, kind: str) -> Tally:
        """Count a restart."""
        known = {name for name, _ in self.restarts}
        if cause not in known and len(known) >= MAX_CAUSES:
            cause = OTHER
        count = self.restarts.get((cause, kind), 0) + 1
        return replace(self, restarts={**self.restarts, (cause, kind): count})

    def became_ready(
        self, now: float, stages: Mapping[tuple[int, str], float], attempt: int
    ) -> Tally:
        """Note that the group is ready.

        Args:
            now: Seconds since the epoch.
            stages: Seconds by server and stage of this start.
            attempt: The attempt that is ready.
        """
        recovery = self.recovery
        if self.down_since is not None:
            recovery = recovery.observe(now - self.down_since, now, attempt)
        return replace(self, down_since=None, recovery=recovery, stages=dict(stages))


def fault_began(failure: FailureSeen, servers: Sequence[ServerSeen]) -> float | None:
    """Return when the first trace of a detected fault appeared; None if there is none.

    Times are those of the observations: the controller's monotonic clock.
    """
    root = next((one for one in servers if one.index == failure.root), None)
    traces: list[float | None] = []
    match failure.cause:
        case "ended" if root is not None and root.exit is not None:
            traces = [root.exit.at]
        case "agent-lost" | "node-lost" if root is not None:
            traces = [root.agent_at]
        case "http-dead" if root is not None:
            traces = [root.http.failing_since]
        case "stalled":
            traces = [rank.still_since for server in servers for rank in server.ranks]
        case "canary-failed":
            traces = [rank.canary_failing_since for server in servers for rank in server.ranks]
            traces += [one.canary.failing_since for one in servers if one.canary is not None]
    return min((at for at in traces if at is not None), default=None)


def stage_seconds(
    began: Mapping[tuple[int, str], float], now: float
) -> dict[tuple[int, str], float]:
    """Return how long each server was in each stage of a start.

    Args:
        began: When each server entered each stage, in seconds on one clock.
        now: When the group became ready, on the same clock. A server's last stage lasts until then.
    """
    seconds = {}
    for server in {index for index, _ in began}:
        entered = sorted((at, stage) for (index, stage), at in began.items() if index == server)
        left = [at for at, _ in entered[1:]] + [now]
        for (at, stage), until in zip(entered, left, strict=True):
            seconds[server, stage] = until - at
    return seconds
