"""What the policy is told beforehand: the thresholds of the recipe and the shape of the gang."""

from __future__ import annotations

from dataclasses import dataclass

from raylaunch.plan.launch_plan import LaunchPlan


@dataclass(frozen=True)
class HealthConfig:
    """The recipe's `health:` section, and `timeouts.start` as `start_s`. Durations in seconds."""

    heartbeat_s: float = 1.0
    agent_silent_s: float = 6.0
    """Silence of one agent while others answer, after which its node counts as unreachable."""
    http_period_s: float = 2.0
    http_timeout_s: float = 15.0
    http_fail_s: float = 30.0
    """Unbroken row of failed `/health` that counts, when no token moved in that time either."""
    progress_period_s: float = 2.0
    stall_s: float = 20.0
    """A rank with requests none of whose counters moves for this long hangs; half of it with vLLM's own hang line."""
    canary_idle_s: float = 5.0
    """A rank that was silent for this long is asked for one token."""
    canary_timeout_s: float = 15.0
    """Unbroken row of failed canaries that counts: one that never answers, or quick failures for as long."""
    max_restarts: int = 3
    """Restarts within `restart_window_s`, and restarts in a row without becoming ready."""
    restart_window_s: float = 3600.0
    backoff_first_s: float = 1.0
    backoff_factor: float = 4.0
    backoff_max_s: float = 120.0
    device_pause_s: float = 10.0
    """Least pause before NPUs are used again."""
    start_s: float = 3600.0
    """From launch to ready."""
    unknown_retries: int = 1
    """Retries of a start that failed for a reason nobody knows."""
    jitter: float = 0.2
    """Share of the back-off that the jitter may add."""


@dataclass(frozen=True)
class GroupShape:
    """What the policy needs of the plan."""

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
        """Take what is needed from a plan; whether there is a spare node only the cluster knows."""
        return cls(
            ranks=tuple(server.ranks for server in plan.servers),
            nodes=tuple(server.node.ip for server in plan.servers),
            api=tuple(server.index for server in plan.servers if server.role == "primary"),
            holds_devices=plan.platform != "cpu",
            spare=spare,
        )

    def owner(self, rank: int) -> int | None:
        """The server that holds `rank`."""
        return next((index for index, ranks in enumerate(self.ranks) if rank in ranks), None)
