"""What changes all the time: phases, hosts with their servers, ranks, the gateway.

Times are seconds since the epoch. `state` is one of `STATES`: a colour, a sign and a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raylaunch.supervise.deployment_status import GatewayReport, GroupStatus, ServerStatus, Status
from raylaunch.supervise.state import Phase, RankSeen, ServerSeen

GOOD = "good"
BUSY = "busy"
WARN = "warn"
BAD = "bad"
OFF = "off"
STATES = (BAD, WARN, BUSY, OFF, GOOD)
"""The worst first."""

_OF_PHASE = {
    Phase.PENDING: BUSY,
    Phase.CHECKING: BUSY,
    Phase.STARTING: BUSY,
    Phase.READY: GOOD,
    Phase.DEGRADED: WARN,
    Phase.RESTARTING: WARN,
    Phase.STOPPING: OFF,
    Phase.STOPPED: OFF,
    Phase.FAILED: BAD,
}


@dataclass(frozen=True)
class ServerView:
    """One server on its host."""

    group: str
    index: int
    role: str
    state: str
    stage: str
    """Its stage, or why it counts as exited or lost."""
    notes: tuple[str, ...]
    """What is wrong beside that."""
    ranks: tuple[int, ...]
    devices: tuple[int, ...]
    """NPUs; empty on CPU. They have the state of their server."""
    pid: int | None
    log: str
    agent_at: float | None
    health: int | None
    health_at: float | None


@dataclass(frozen=True)
class HostView:
    """A host, by its address in the plan."""

    ip: str
    interface: str
    state: str
    servers: tuple[ServerView, ...]


@dataclass(frozen=True)
class GroupView:
    """One group."""

    name: str
    role: str
    phase: str
    state: str
    attempt: int
    restarts: int
    phase_since: float
    endpoint: str
    servers: int
    waiting_for: tuple[str, ...]
    relaunch_at: float | None
    """When the back-off of a restart is over; None without one."""


@dataclass(frozen=True)
class RankView:
    """One data-parallel rank. `tokens` are counted from the start of its server."""

    group: str
    rank: int
    state: str
    note: str
    running: float
    waiting: float
    tokens: float
    finished: float
    kv_usage: float
    hit_ratio: float | None
    """Of the prefix cache; None before the first query."""
    at: float | None


@dataclass(frozen=True)
class GatewayView:
    """The gateway, its counters in sum over its nodes."""

    endpoint: str
    policy: str
    state: str
    nodes: tuple[str, ...]
    requests: int
    queue: int
    held: int
    repeated: int
    continued: int
    failed: int
    rejected: int


@dataclass(frozen=True)
class LiveView:
    """A deployment at one moment."""

    deployment: str
    recipe: str
    served_name: str
    endpoint: str
    phase: str
    state: str
    attempt: int
    restarts: int
    now: float
    created_at: float
    phase_since: float
    waiting_for: tuple[str, ...]
    operation: str
    fallback: str
    """What serves in the place of the recipe while a node is lost; "" for the recipe itself."""
    groups: tuple[GroupView, ...]
    hosts: tuple[HostView, ...]
    ranks: tuple[RankView, ...]
    gateway: GatewayView | None


def view_live(status: Status) -> LiveView:
    """Return the view of a status."""
    return LiveView(
        deployment=status.deployment,
        recipe=status.recipe,
        served_name=status.served_name,
        endpoint=status.endpoint,
        phase=status.phase.value,
        state=_OF_PHASE[status.phase],
        attempt=status.attempt,
        restarts=status.restarts,
        now=status.now,
        created_at=status.created_at,
        phase_since=status.phase_since,
        waiting_for=status.waiting_for,
        operation=status.operation,
        fallback=status.fallback,
        groups=tuple(_view_group(group) for group in status.groups),
        hosts=tuple(_view_hosts(status)),
        ranks=tuple(
            _view_rank(server.group, rank)
            for server in status.servers
            for rank in server.seen.ranks
        ),
        gateway=None if status.gateway is None else _view_gateway(status.gateway),
    )


def _view_group(group: GroupStatus) -> GroupView:
    return GroupView(
        name=group.name,
        role=group.role,
        phase=group.phase.value,
        state=_OF_PHASE[group.phase],
        attempt=group.attempt,
        restarts=group.restarts,
        phase_since=group.phase_since,
        endpoint=group.endpoint,
        servers=len(group.servers),
        waiting_for=group.waiting_for,
        relaunch_at=group.relaunch_at,
    )


def _view_hosts(status: Status) -> Iterator[HostView]:
    phases = {group.name: group.phase for group in status.groups}
    by_host: dict[str, list[ServerView]] = {}
    interfaces: dict[str, str] = {}
    for server in status.servers:
        view = _view_server(server, phases.get(server.group, status.phase))
        by_host.setdefault(server.ip, []).append(view)
        interfaces.setdefault(server.ip, server.interface)
    for ip, servers in by_host.items():
        worst = min((server.state for server in servers), key=STATES.index)
        yield HostView(ip, interfaces[ip], worst, tuple(servers))


def _view_server(server: ServerStatus, phase: Phase) -> ServerView:
    seen = server.seen
    notes = tuple(_notes(seen))
    return ServerView(
        group=server.group,
        index=server.index,
        role=server.role,
        state=_state_of(seen, phase, has_notes=bool(notes)),
        stage=_stage_of(seen),
        notes=notes,
        ranks=server.ranks,
        devices=server.devices,
        pid=seen.pid,
        log=server.log,
        agent_at=seen.agent_at,
        health=seen.http.status,
        health_at=seen.http.at,
    )


def _state_of(seen: ServerSeen, phase: Phase, *, has_notes: bool) -> str:
    if phase in (Phase.STOPPING, Phase.STOPPED):
        return OFF
    if seen.agent_lost or seen.exit is not None:
        return BAD
    if has_notes:
        return WARN
    return _OF_PHASE[phase]


def _stage_of(seen: ServerSeen) -> str:
    if seen.agent_lost:
        return f"lost: {seen.agent_lost}"
    if seen.exit is not None:
        return f"exited: {seen.exit}"
    return f"{seen.stage} {seen.stage_detail}".rstrip()


def _notes(seen: ServerSeen) -> Iterator[str]:
    if seen.http.failing_since is not None:
        yield "/health fails"
    if seen.canary is not None and seen.canary.failing_since is not None:
        yield f"health-check completion fails: {seen.canary.detail}".rstrip(": ")
    if seen.hang_lines:
        yield f"{seen.hang_lines} hang lines in the log since tokens last moved"
    if seen.log_error:
        yield f"its log cannot be written: {seen.log_error}"
    if seen.agent_error:
        yield f"the agent: {seen.agent_error}"


def _view_rank(group: str, rank: RankSeen) -> RankView:
    state = GOOD
    note = "ok"
    if rank.still_since is not None:
        state = BAD
        note = "has requests and makes no progress"
    elif rank.canary_failing_since is not None:
        state = BAD
        note = "fails its health-check completion"
    queries = rank.prefix_queries
    return RankView(
        group=group,
        rank=rank.rank,
        state=state,
        note=note,
        running=rank.running,
        waiting=rank.waiting,
        tokens=rank.tokens,
        finished=rank.finished,
        kv_usage=rank.kv_usage,
        hit_ratio=rank.prefix_hits / queries if queries else None,
        at=rank.at,
    )


def _view_gateway(gateway: GatewayReport) -> GatewayView:
    counters = [node.counters for node in gateway.nodes]
    return GatewayView(
        endpoint=gateway.endpoint,
        policy=gateway.policy,
        state=GOOD if gateway.nodes else BUSY,
        nodes=tuple(node.ip for node in gateway.nodes),
        requests=sum(one.requests for one in counters),
        queue=sum(one.queue for one in counters),
        held=sum(one.held for one in counters),
        repeated=sum(one.repeated for one in counters),
        continued=sum(one.continued for one in counters),
        failed=sum(one.failed for one in counters),
        rejected=sum(one.rejected for one in counters),
    )
