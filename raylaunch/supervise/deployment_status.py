"""Status of a deployment: the values behind `status`, `events`, `stop` and `clean`.

These values are for people and for JSON: every time in them is in seconds since the epoch, unlike
the monotonic times of `state`. The controller converts with one offset, read when it makes the
value, so that ages (differences of two times in one value) stay right after a clock step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raylaunch.checks.findings import Finding
from raylaunch.supervise.state import Phase, ServerSeen


@dataclass(frozen=True)
class Event:
    """One event. `at`: seconds since the epoch, by the controller's wall clock, for display."""

    number: int
    at: float
    attempt: int
    kind: str
    """One of phase, stage, read-ahead, exit, failure, diagnosis, restart, waiting, adopted,
    command, degraded, drill, note.
    """
    text: str
    server: int | None = None
    group: str = ""
    """The group that it is about; "" for the whole deployment."""


@dataclass(frozen=True)
class ServerStatus:
    """One server: where it runs, and its last observations."""

    index: int
    role: str
    ranks: tuple[int, ...]
    ip: str
    interface: str
    devices: tuple[int, ...]
    log: str
    """Absolute path of the current log on its node."""
    seen: ServerSeen
    """Its times are converted to seconds since the epoch, as `Status.now` is."""
    group: str = ""


@dataclass(frozen=True)
class GroupStatus:
    """One group of a deployment at one moment. Times: seconds since the epoch, for display."""

    name: str
    role: str
    phase: Phase
    attempt: int
    endpoint: str
    created_at: float
    phase_since: float
    ready_at: float | None = None
    restarts: int = 0
    waiting_for: tuple[str, ...] = ()
    """Conditions of readiness that do not hold yet, for people."""
    servers: tuple[ServerStatus, ...] = ()
    findings: tuple[Finding, ...] = ()
    relaunch_at: float | None = None
    """When the back-off of a restart is over; None without one."""
    error: dict[str, str] | None = None
    """Why the group failed, as `RaylaunchError.as_dict`."""


@dataclass(frozen=True)
class GatewayCounters:
    """What a gateway did with the requests of clients since it started. `held_s` in seconds."""

    requests: int = 0
    queue: int = 0
    """Requests that wait at this moment."""
    held: int = 0
    """Requests that had to wait."""
    held_s: float = 0.0
    """How long they waited, in sum."""
    repeated: int = 0
    """Attempts beyond the first of a request."""
    continued: int = 0
    """Streams that were continued after a break."""
    broken: int = 0
    """Streams that were closed with an error event."""
    failed: int = 0
    """Requests that were answered with an error of the gateway's own."""
    rejected: int = 0
    """Requests that were refused because the queue was full."""
    cancelled: int = 0
    """Requests whose client went away."""


@dataclass(frozen=True)
class GatewayNode:
    """The gateway on one node. Its counters start at 0 when its relay is started again."""

    ip: str
    endpoint: str
    keeper_pid: int
    counters: GatewayCounters
    haproxy_starts: int = 1
    relay_starts: int = 1


@dataclass(frozen=True)
class GatewayReport:
    """The gateway of a deployment. Before it is up, the endpoint is "" and there are no nodes."""

    endpoint: str = ""
    """For clients; with several nodes, the head's."""
    policy: str = ""
    nodes: tuple[GatewayNode, ...] = ()
    is_silent: bool = False
    """No keeper answers the controller. HAProxy and relay serve on without one."""


@dataclass(frozen=True)
class Status:
    """One deployment at one moment. Times: seconds since the epoch, for display.

    With several groups the attempt is the latest, `restarts` counts those of all groups, and
    servers, findings and events are those of all groups.
    """

    deployment: str
    recipe: str
    phase: Phase
    attempt: int
    endpoint: str
    served_name: str
    now: float
    created_at: float
    phase_since: float
    ready_at: float | None = None
    restarts: int = 0
    waiting_for: tuple[str, ...] = ()
    """Conditions of readiness that do not hold yet, for people."""
    servers: tuple[ServerStatus, ...] = ()
    findings: tuple[Finding, ...] = ()
    events: tuple[Event, ...] = ()
    """The newest events, oldest first."""
    error: dict[str, str] | None = field(default=None)
    """Why the deployment failed, as `RaylaunchError.as_dict`."""
    groups: tuple[GroupStatus, ...] = ()
    gateway: GatewayReport | None = None
    """None for a deployment without one."""
    operation: str = ""
    """The command that changes the deployment at this moment; "" for none."""
    awaits: tuple[str, ...] = ()
    """Groups that an upgrade has started, and that wait to be verified."""
    operation_error: dict[str, str] | None = None
    """Why the last such command failed, as `RaylaunchError.as_dict`."""
    fallback: str = ""
    """The fallback that serves in the place of the recipe while a node is lost; "" for none."""

    @property
    def serves_all(self) -> bool:
        """Whether every group serves: those of the recipe, or of its fallback."""
        if self.fallback and self.phase is Phase.DEGRADED:
            return all(group.phase is Phase.READY for group in self.groups)
        return self.phase is Phase.READY


@dataclass(frozen=True)
class StopReport:
    """Result of `stop`. `left` names survivors ("192.0.2.11 pid 4242 VLLM::Worker")."""

    deployment: str
    processes_ended: int
    seconds: float
    left: tuple[str, ...] = ()
    local_cluster_stopped: bool = False
    killed_because: str = ""
    """Why the embedded cluster was killed by its marker, without its answer; "" when it was not."""


@dataclass(frozen=True)
class Leftover:
    """A marked process that belongs to no running deployment: an orphan.

    `deployment` is its marker; a marker that begins with "@" is that of an embedded cluster.
    """

    host: str
    pid: int
    deployment: str
    attempt: int
    age_s: float
    command: str


@dataclass(frozen=True)
class CleanReport:
    """Result of `clean`: what was found, and what is still left."""

    ended: bool
    """Whether orphans were to be killed, or only listed."""
    found: tuple[Leftover, ...] = ()
    left: tuple[Leftover, ...] = ()
    records: tuple[str, ...] = ()
    """Embedded clusters of which only a record and a folder are left, by deployment."""
    left_records: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    """Deployments whose agents outlived their controller and still hold NPUs."""
    left_orphaned: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    """Embedded clusters that `clean` leaves to a person, each with the reason and the command."""
    silent: tuple[str, ...] = ()
    """Addresses of nodes that did not answer."""
    asked: str = ""
    """Address of the cluster that was searched; "" for this machine alone."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return not (
            self.left or self.left_records or self.left_orphaned or self.undecided or self.silent
        )
