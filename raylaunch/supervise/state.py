"""The words of supervision: phases, what is known of each server, and which transitions are legal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where a deployment is."""

    PENDING = "pending"
    CHECKING = "checking"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset({Phase.CHECKING, Phase.STOPPING, Phase.FAILED}),
    Phase.CHECKING: frozenset({Phase.STARTING, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.READY, Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.READY: frozenset({Phase.RESTARTING, Phase.STOPPING, Phase.FAILED}),
    Phase.RESTARTING: frozenset({Phase.CHECKING, Phase.STOPPING, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.STOPPING}),
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
    """How a process ended. At most one of `code` and `signal` is set (by number); `at`: as in ServerSeen."""

    at: float
    code: int | None = None
    signal: int | None = None
    process: str = ""
    """Name of the process below the server that ended; "" for the server itself."""

    def __str__(self) -> str:
        if self.signal is not None:
            how = f"signal {self.signal}"
        else:
            how = "an ending nobody saw" if self.code is None else f"exit code {self.code}"
        return f"{how} of {self.process}" if self.process else how


@dataclass(frozen=True)
class HttpSeen:
    """The last answers of an API server's `/health`. Times: as in ServerSeen."""

    status: int | None = None
    """Status of the last answer, None when the last try got none."""
    latency_s: float | None = None
    at: float | None = None
    failing_since: float | None = None
    """Start of the unbroken row of failures; None while it answers."""


@dataclass(frozen=True)
class RankSeen:
    """Progress of one DP rank from `/metrics` (one series per `engine`)."""

    rank: int
    running: float = 0.0
    waiting: float = 0.0
    tokens: float = 0.0
    """Prompt + generated tokens since the server started."""
    finished: float = 0.0
    """Requests finished since the server started, for whatever reason."""
    still_since: float | None = None
    """Since when requests run or wait while no counter moves; None while idle or moving."""
    moved_at: float | None = None
    """When a counter of this rank last moved."""
    at: float | None = None
    """When the metrics were last read: standing still counts only as long as somebody looked."""
    mute_since: float | None = None
    """When the first canary of this rank's unbroken row of failures was sent; None after a success."""


@dataclass(frozen=True)
class CanarySeen:
    """The one-token completions sent while the service is idle.

    A refusal that is the client's fault (4xx) is an answer: it proves that the API lives, and is not a failure.
    """

    ok: bool
    at: float
    latency_s: float | None = None
    failing_since: float | None = None
    """When the first canary of the unbroken row of failures was sent; None after a success."""
    detail: str = ""


@dataclass(frozen=True)
class ServerSeen:
    """The last observation of each kind for one server.

    Times (`at`, `..._at`, `..._since`, here and in the parts) are seconds on a monotonic clock, never
    the wall clock, whose steps would look like silence or progress: in an agent's `Observation` on
    the monotonic clock of the agent, everywhere else on the clock of the controller, which converts
    them. They are good for ages and deadlines of this process; to show one, subtract its age from
    the wall clock.
    """

    index: int
    attempt: int = 0
    pid: int | None = None
    stage: str = "reserved"
    stage_detail: str = ""
    exit: Exit | None = None
    agent_lost: str | None = None
    """Why the agent counts as lost: "agent died", "node died", "node unreachable"; None while it answers."""
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
    """Why the guard cannot write the server's log (errno text), "" while it can. The server runs on."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt, as the policy remembers it."""

    attempt: int
    at: float
    cause: str
    """Id of the signature, or of the detector when no signature matched."""
    kind: str
    """Failure class: deterministic, transient, device."""
    root: int | None = None
    """Index of the server it began on."""
    was_ready: bool = False
    node: str = ""
    """Address of the root's node."""


REMEMBERED = 64
"""Failures a history keeps: far more than any cap on restarts, and little enough to hold for ever."""


@dataclass(frozen=True)
class History:
    """What happened to a deployment before now. `failures` does not hold the one being decided on."""

    started_at: float = 0.0
    """Start of the current attempt."""
    ready_at: float | None = None
    """When the current attempt became ready; None before that."""
    failures: tuple[Failure, ...] = ()
    stop_requested: bool = False

    @property
    def excluded_nodes(self) -> tuple[str, ...]:
        """Nodes with a device fault, in the order they failed: not used again by this deployment."""
        return tuple(
            dict.fromkeys(
                failure.node
                for failure in self.failures
                if failure.kind == "device" and failure.node
            )
        )

    def remember(self, failure: Failure) -> History:
        """The history after one more failed attempt. Device faults are never forgotten, others beyond a bound are."""
        older = (*self.failures, failure)
        dropped = [old for old in older[:-REMEMBERED] if old.kind == "device"]
        return replace(self, failures=(*dropped, *older[-REMEMBERED:]), ready_at=None)
