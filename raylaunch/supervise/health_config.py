"""Settings of the policy: the thresholds of the recipe and the shape of the group."""

from __future__ import annotations

from dataclasses import dataclass

from raylaunch.plan.launch_plan import LaunchPlan


@dataclass(frozen=True)
class HealthConfig:
    """The recipe's `health:` section, and `timeouts.start` as `start_s`. Durations in seconds."""

    heartbeat_s: float = 1.0
    agent_silent_s: float = 6.0
    """An agent that is silent for this long while others answer makes its node unreachable."""
    http_period_s: float = 2.0
    http_timeout_s: float = 15.0
    http_fail_s: float = 30.0
    """`/health` has failed for this long and no token moved meanwhile: a failure."""
    progress_period_s: float = 2.0
    stall_s: float = 20.0
    """A rank with requests whose counters do not move for this long has stalled.

    Half of it suffices when vLLM's own hang line was seen.
    """
    canary_idle_s: float = 5.0
    """A rank that was idle for this long gets a canary: a completion of one token."""
    canary_timeout_s: float = 15.0
    """Canaries have failed for this long: a failure. One that hangs counts like quick errors."""
    max_restarts: int = 3
    """Restarts within `restart_window_s`, and restarts in a row without becoming ready."""
    restart_window_s: float = 3600.0
    backoff_first_s: float = 1.0
    backoff_factor: float = 4.0
    backoff_max_s: float = 120.0
    device_pause_s: float = 10.0
    """Least pause before NPUs are used again."""
    orphan_grace_s: float = 600.0
    """How long a server runs on without its agent, for another agent to adopt it. 0: not at all."""
    degrade_after_s: float = 120.0
    """How long a lost node without a spare one is awaited before a fallback is started."""
    grow_back_after_s: float = 60.0
    """How long the nodes of the full recipe have to be there before it takes over again."""
    start_s: float = 3600.0
    """From launch to ready."""
    unknown_retries: int = 1
    """Retries of a start that failed for an unknown reason."""
    jitter: float = 0.2
    """Share of the back-off that the jitter may add."""


@dataclass(frozen=True)
class GroupShape:
    """Ranks, nodes and API servers of one group, as the policy needs them from the plan."""

    ranks: tuple[tuple[int, ...], ...]
    """Per server, its data-parallel ranks."""
    nodes: tuple[str, ...]
    """Per server, its node's address."""
    api: tuple[int, ...] = (0,)
    """Servers with an API."""
    holds_devices: bool = True
    spare: bool = False
    """The cluster has another node with the NPUs a server needs."""

    @classmethod
    def of(cls, plan: LaunchPlan, *, spare: bool = False) -> GroupShape:
        """Make the shape from a plan. `spare` is not in the plan: only the cluster knows it."""
        return cls(
            ranks=tuple(server.ranks for server in plan.servers),
            nodes=tuple(server.node.ip for server in plan.servers),
            api=tuple(server.index for server in plan.servers if server.role == "primary"),
            holds_devices=plan.platform != "cpu",
            spare=spare,
        )

    def owner(self, rank: int) -> int | None:
        """Return the index of the server that holds `rank`; None when none does."""
        for index, ranks in enumerate(self.ranks):
            if rank in ranks:
                return index
        return None
