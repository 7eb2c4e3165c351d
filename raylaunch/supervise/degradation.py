"""While a node is lost and there is no spare one: when a smaller recipe serves, and for how long.

Pure, as `policy`: what is seen goes in, one decision comes out; the controller carries it out.

    FULL ──Degrade──▶ DEGRADING ──▶ DEGRADED ──GrowBack──▶ GROWING ──▶ FULL
      ▲                   │           ▲  ▲                    │
      └───── failed ──────┘           │  └──── RETURNING ◀────┘ failed

All times are seconds on the controller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from raylaunch.recipe.groups import GroupSpec
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Phase

MAX_PAUSE_S = 3600.0
"""Between two tries of what failed; the first pause is `health.grow_back_after_s`."""


class Stage(StrEnum):
    """Which groups a deployment has, and which it is about to have."""

    FULL = "full"
    DEGRADING = "degrading"
    """The groups of a fallback are started, beside those that wait for their node."""
    DEGRADED = "degraded"
    GROWING = "growing"
    """Those of the full recipe take the place of the fallback's."""
    RETURNING = "returning"
    """The full recipe could not be started: those of the fallback are started again."""


@dataclass(frozen=True)
class Degradation:
    """Where a deployment is between its recipe and the fallbacks; part of its journal."""

    stage: Stage = Stage.FULL
    serving: int | None = None
    """Which fallback has taken the recipe's place; None for the recipe itself."""
    wanted: int | None = None
    """Which fallback is being started; None for the recipe itself."""
    target: tuple[GroupSpec, ...] = ()
    """The groups that are being started."""
    refused: tuple[int, ...] = ()
    """Fallbacks that could not be started since a node was lost."""
    failures: int = 0
    """Switches that failed since the recipe itself was last served."""

    @property
    def is_switching(self) -> bool:
        """Whether groups are being started; a controller that takes over continues that."""
        return self.stage in (Stage.DEGRADING, Stage.GROWING, Stage.RETURNING)

    @property
    def keeps_others(self) -> bool:
        """Whether the groups that are replaced stay until the new ones serve."""
        # They hold no NPUs, and serve as soon as their node is back.
        return self.stage is Stage.DEGRADING

    def is_of_fallback(self, group: str) -> bool:
        """Return whether a group is one of a fallback, and not of the recipe itself."""
        is_target = group in [spec.name for spec in self.target]
        if self.wanted is not None:
            return is_target
        return self.serving is not None and not is_target

    def degrade(self, index: int, target: tuple[GroupSpec, ...]) -> Degradation:
        """Return the start of a fallback."""
        return replace(self, stage=Stage.DEGRADING, wanted=index, target=target)

    def grow_back(self, target: tuple[GroupSpec, ...]) -> Degradation:
        """Return the start of the recipe itself."""
        return replace(self, stage=Stage.GROWING, wanted=None, target=target)

    def give_back(self, target: tuple[GroupSpec, ...]) -> Degradation:
        """Return the start of the fallback that served, after the recipe could not be started."""
        return replace(
            self,
            stage=Stage.RETURNING,
            wanted=self.serving,
            target=target,
            failures=self.failures + 1,
        )

    def succeed(self) -> Degradation:
        """Return what follows when the new groups serve."""
        if self.wanted is None:
            return Degradation()
        return replace(
            self, stage=Stage.DEGRADED, serving=self.wanted, wanted=None, target=(), refused=()
        )

    def fail(self) -> Degradation:
        """Return what follows when a fallback cannot be started."""
        stage = Stage.FULL if self.serving is None else Stage.DEGRADED
        refused = self.refused
        if self.wanted is not None:
            refused = (*refused, self.wanted)
        return replace(
            self,
            stage=stage,
            wanted=None,
            target=(),
            refused=tuple(dict.fromkeys(refused)),
            failures=self.failures + 1,
        )


@dataclass(frozen=True)
class GroupState:
    """What counts of one group: its phase, and since when it waits for a lost node."""

    phase: Phase
    waiting_since: float | None = None


@dataclass(frozen=True)
class Surroundings:
    """What counts of the cluster."""

    fitting: tuple[int, ...] = ()
    """The fallbacks for which there are enough free NPUs, in the order of the recipe."""
    full_fits_since: float | None = None
    """Since when there are enough NPUs for the recipe itself, those of the fallback included."""
    failed_at: float | None = None
    """When the last switch failed; None if none has."""


@dataclass(frozen=True)
class Degrade:
    """Start this fallback."""

    index: int


@dataclass(frozen=True)
class GrowBack:
    """Start the recipe itself in the place of the fallback."""


@dataclass(frozen=True)
class Stay:
    """Nothing to do."""


Decision = Degrade | GrowBack | Stay


def decide(
    state: Degradation,
    groups: Sequence[GroupState],
    seen: Surroundings,
    health: HealthConfig,
    now: float,
) -> Decision:
    """Decide whether another recipe shall serve.

    Args:
        state: Where the deployment is.
        groups: Its groups.
        seen: What there is room for.
        health: Thresholds of the recipe.
        now: Controller's monotonic clock.
    """
    if state.is_switching:
        return Stay()
    is_paused = seen.failed_at is not None and now - seen.failed_at < pause_s(state, health)
    if is_stuck(groups, health, now):
        others = [index for index in seen.fitting if index != state.serving]
        untried = [index for index in others if index not in state.refused]
        if untried:
            return Degrade(untried[0])
        if others and not is_paused:
            return Degrade(others[0])
    if state.stage is not Stage.DEGRADED or seen.full_fits_since is None or is_paused:
        return Stay()
    fits_for_s = now - seen.full_fits_since
    return GrowBack() if fits_for_s >= health.grow_back_after_s else Stay()


def is_stuck(groups: Sequence[GroupState], health: HealthConfig, now: float) -> bool:
    """Return whether no group serves or will, and one has waited long enough for a lost node."""
    waiting = [one.waiting_since for one in groups if one.waiting_since is not None]
    hopeless = [one for one in groups if one.waiting_since is not None or one.phase is Phase.FAILED]
    if not waiting or len(hopeless) < len(groups):
        return False
    return now - min(waiting) >= health.degrade_after_s


def pause_s(state: Degradation, health: HealthConfig) -> float:
    """Return how long to wait after the last switch that failed: it doubles, up to an hour."""
    doublings = min(max(state.failures - 1, 0), 32)
    return min(health.grow_back_after_s * 2.0**doublings, MAX_PAUSE_S)
