"""The state of one deployment: phases, legal transitions, observations of servers, history.

Clocks: every time here is in seconds on the controller's monotonic clock (`time.monotonic()` of the
controller's process). A step of the wall clock (NTP, VM resume, `date -s`) therefore changes no age
and no deadline. Such a time means nothing in another process or to a person: code that displays or
stores one converts it to seconds since the epoch first (`deployment_status`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Phase of a group's life, and of a deployment's, which is derived from its groups."""

    PENDING = "pending"
    CHECKING = "checking"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    """Of a deployment only: some groups serve, others do not."""
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # A controller error while the nodes are reserved is retried like any other failure.
    Phase.PENDING: frozenset({Phase.CHECKING, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.CHECKING: frozenset({Phase.STARTING, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.READY, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.READY: frozenset({Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    # A second failure during a restart begins the restart again.
    Phase.RESTARTING: frozenset({Phase.CHECKING, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    # Only by an operator's command.
    Phase.FAILED: frozenset({Phase.RESTARTING, Phase.STOPPING}),
    Phase.DEGRADED: frozenset(),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}
"""Phase -> the phases that may follow. Anything else is a bug."""


def move(now: Phase, to: Phase) -> Phase:
    """Return `to`.

    Raises:
        AssertionError: `to` may not follow `now`; a bug in raylaunch, never a user's mistake.
    """
    if to not in TRANSITIONS[now]:
        raise AssertionError(f"illegal transition {now} -> {to}")
    return to


@dataclass(frozen=True)
class Exit:
    """Exit status of a process. At most one of `code` and `signal` (its number) is set.

    `at` is on the controller's monotonic clock, except within `ServerEvidence`: there it is in
    seconds since the epoch, to be compared with the time stamps of log lines.
    """

    at: float
    code: int | None = None
    signal: int | None = None
    process: str = ""
    """Name of the child process that exited; "" for the server itself."""

    @property
    def status(self) -> str:
        """Exit status for people: signal, exit code, or "exit status unknown"."""
        if self.signal is not None:
            return f"signal {self.signal}"
        if self.code is not None:
            return f"exit code {self.code}"
        # A process that raylaunch did not start (vLLM's own children) can be watched, not reaped.
        return "exit status unknown"

    def __str__(self) -> str:
        return f"{self.status} of {self.process}" if self.process else self.status


@dataclass(frozen=True)
class HttpSeen:
    """Last responses of an API server's `/health`. Times: controller's monotonic clock."""

    status: int | None = None
    """HTTP status of the last response; None when the last request got none."""
    latency_s: float | None = None
    at: float | None = None
    failing_since: float | None = None
    """Start of the unbroken series of failures; None while requests succeed."""


@dataclass(frozen=True)
class RankSeen:
    """Progress of one DP rank from `/metrics` (one series per `engine`).

    Times: controller's monotonic clock.
    """

    rank: int
    running: float = 0.0
    waiting: float = 0.0
    tokens: float = 0.0
    """Prompt + generated tokens since the server started."""
    finished: float = 0.0
    """Requests finished since the server started, for whatever reason."""
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    prefix_queries: float = 0.0
    """Tokens looked up in the prefix cache since the server started."""
    prefix_hits: float = 0.0
    """Tokens found there."""
    still_since: float | None = None
    """Since when requests run or wait while no counter moves; None while idle or moving."""
    moved_at: float | None = None
    """When a counter of this rank last moved."""
    at: float | None = None
    """When the metrics were last read. A stall counts only up to here."""
    canary_failing_since: float | None = None
    """When the first canary of this rank's unbroken series of failures was sent.

    None after a success.
    """


@dataclass(frozen=True)
class CanarySeen:
    """Last one-token completion sent while the service was idle.

    A refusal that is the client's fault (4xx) proves that the API is alive: it is no failure.
    Times: controller's monotonic clock.
    """

    ok: bool
    at: float
    latency_s: float | None = None
    failing_since: float | None = None
    """When the first canary of the unbroken series of failures was sent; None after a success."""
    detail: str = ""


@dataclass(frozen=True)
class ServerSeen:
    """The last observation of each kind for one server.

    Times (`at`, `..._at`, `..._since`, here and in the parts) are seconds on a monotonic clock,
    never the wall clock, whose steps would look like silence or progress: in an agent's
    `Observation` on the monotonic clock of the agent, everywhere else on the clock of the
    controller, which converts them. They are good for ages and deadlines of this process; to show
    one, subtract its age from the wall clock.
    """

    index: int
    attempt: int = 0
    pid: int | None = None
    stage: str = "reserved"
    stage_detail: str = ""
    exit: Exit | None = None
    agent_lost: str | None = None
    """Why the agent counts as lost: "agent died", "node died" or "node unreachable".

    None while it answers.
    """
    agent_at: float | None = None
    """When the agent last answered."""
    http: HttpSeen = HttpSeen()
    ranks: tuple[RankSeen, ...] = ()
    """Only on servers with an API; covers every rank of the deployment."""
    serves_model: bool = False
    """`/v1/models` listed the served name in this attempt. Only on servers with an API."""
    canary: CanarySeen | None = None
    hang_lines: int = 0
    """vLLM's own hang lines since tokens last moved."""
    read_ahead: str = ""
    """What was brought into the page cache of its host, in words."""
    log_error: str = ""
    """Why the guard cannot write the server's log (errno text); "" while it can.

    The server runs.
    """
    agent_error: str = ""
    """The last exception of a task of the agent, with the task's name.

    A task that must go on was restarted.
    """

    @property
    def is_node_lost(self) -> bool:
        """Whether the agent was lost with its node: no call of it would be answered."""
        return self.agent_lost not in (None, "agent died")


@dataclass(frozen=True)
class Failure:
    """One failed attempt, as the policy remembers it."""

    attempt: int
    at: float
    """Controller's monotonic clock."""
    cause: str
    """Id of the signature, or of the detector when no signature matched."""
    kind: str
    """Failure class: deterministic, transient, device, or internal (an error of raylaunch)."""
    root: int | None = None
    """Index of the server that failed first."""
    was_ready: bool = False
    node: str = ""
    """Address of the root's node."""


REMEMBERED = 64
"""Failures a history keeps: far more than any cap on restarts, and few enough to keep for ever."""


@dataclass(frozen=True)
class History:
    """Past of a deployment. `failures` does not hold the one being decided on.

    Times: controller's monotonic clock. A controller that takes over from a dead one has another
    clock: it converts the stored times (seconds since the epoch) to its own when it reads them.
    """

    started_at: float = 0.0
    """Start of the current attempt."""
    ready_at: float | None = None
    """When the current attempt became ready; None before that."""
    failures: tuple[Failure, ...] = ()
    stop_requested: bool = False

    @property
    def excluded_nodes(self) -> tuple[str, ...]:
        """Nodes with a device fault, oldest first: this deployment does not use them again."""
        device_faults = [failure for failure in self.failures if failure.kind == "device"]
        nodes = [failure.node for failure in device_faults if failure.node]
        return tuple(dict.fromkeys(nodes))

    def remember(self, failure: Failure) -> History:
        """Return the history with one more failed attempt.

        Device faults are kept for ever; of the others the newest `REMEMBERED` are kept.
        """
        failures = (*self.failures, failure)
        recent = failures[-REMEMBERED:]
        old = failures[:-REMEMBERED]
        # A forgotten device fault would put its node back into use.
        device_faults = [one for one in old if one.kind == "device"]
        kept = (*device_faults, *recent)
        return replace(self, failures=kept, ready_at=None)
