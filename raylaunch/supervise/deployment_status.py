"""What a deployment says of itself: the value behind `status`, the live table of `start`, and events."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylaunch.checks.findings import Finding
from raylaunch.supervise.state import Phase, ServerSeen


@dataclass(frozen=True)
class Event:
    """One thing that happened. `at` is the controller's clock, seconds since the epoch."""

    number: int
    at: float
    attempt: int
    kind: str
    """phase, stage, read-ahead, exit, failure, diagnosis, restart, waiting, adopted, command, drill, note."""
    text: str
    server: int | None = None


@dataclass(frozen=True)
class ServerStatus:
    """One server: where it is, and what was last seen of it."""

    index: int
    role: str
    ranks: tuple[int, ...]
    ip: str
    interface: str
    devices: tuple[int, ...]
    log: str
    """Absolute path of the current log on its node."""
    seen: ServerSeen


@dataclass(frozen=True)
class Status:
    """One deployment at one moment. Times: seconds since the epoch on the controller's clock."""

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
    """What is still missing before the deployment counts as ready."""
    servers: tuple[ServerStatus, ...] = ()
    findings: tuple[Finding, ...] = ()
    events: tuple[Event, ...] = ()
    """The newest events, oldest first."""
    error: dict[str, str] | None = field(default=None)
    """Why the deployment failed, as `RaylaunchError.as_dict`."""


@dataclass(frozen=True)
class StopReport:
    """What `stop` ended, and the proof: `left` names what resisted ("192.0.2.11 pid 4242 VLLM::Worker")."""

    deployment: str
    processes_ended: int
    seconds: float
    left: tuple[str, ...] = ()
    local_cluster_stopped: bool = False
    killed_because: str = ""
    """Why the embedded cluster was killed by its marker, without its answer; "" when it was not."""


@dataclass(frozen=True)
class Leftover:
    """A marked process that belongs to nothing that runs. `deployment` is its marker, with "@" that of a cluster."""

    host: str
    pid: int
    deployment: str
    attempt: int
    age_s: float
    command: str


@dataclass(frozen=True)
class CleanReport:
    """What `clean` found, and what of it is still there."""

    ended: bool
    """Whether it was to be ended, or only looked for."""
    found: tuple[Leftover, ...] = ()
    left: tuple[Leftover, ...] = ()
    records: tuple[str, ...] = ()
    """Embedded clusters of which only a record and a folder were found, by deployment."""
    left_records: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    """Deployments whose agents live on without a controller and hold their NPUs."""
    left_orphaned: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    """Embedded clusters that `clean` leaves to a person, each with the reason and the command."""
    silent: tuple[str, ...] = ()
    """Addresses of nodes that did not answer."""
    asked: str = ""
    """The cluster that was asked; "" for this machine alone."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return not (
            self.left or self.left_records or self.left_orphaned or self.undecided or self.silent
        )
