"""Failure and readiness detection. Pure: observations, thresholds and the time in, a failure out.

All times are seconds on the controller's monotonic clock, so a step of the wall clock cannot look
like silence or a stall. After a pause of its own (SIGSTOP, a suspended VM) the controller must
collect new observations before it calls `find_failure`: the old ones prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.supervise.health_config import GroupShape, HealthConfig
from raylaunch.supervise.state import History, Phase, RankSeen, ServerSeen


@dataclass(frozen=True)
class FailureSeen:
    """A detected failure: the detector, the server it began on, and a description for people."""

    cause: str
    root: int | None
    reason: str
    collateral: tuple[int, ...] = ()
    kind: str = "transient"
    """Failure class while nothing is diagnosed: "transient", or "internal" for raylaunch's own."""


def find_failure(
    phase: Phase,
    servers: Sequence[ServerSeen],
    history: History,
    health: HealthConfig,
    now: float,
    *,
    gang: GroupShape,
) -> FailureSeen | None:
    """Return the failure that the observations show, if any; the most direct evidence first.

    While checking there are agents but no servers yet. In pending, restarting and failed no process
    is expected to live, so nothing is judged.
    """
    if phase not in (Phase.CHECKING, Phase.STARTING, Phase.READY):
        return None
    failure = _find_lost_agent(servers, health, now)
    if failure is None and phase is not Phase.CHECKING:
        failure = _find_exit(servers)
    if failure is None and phase is Phase.STARTING:
        failure = _find_missed_deadline(servers, history, health, now, gang)
    if failure is None and phase is Phase.READY:
        failure = (
            _find_dead_http(servers, health, now)
            or _find_stall(servers, health, now, gang)
            or _find_failed_canary(servers, health, gang)
        )
    return failure


def internal_failure(error: str, root: int | None = None) -> FailureSeen:
    """Describe an unexpected error of the controller as a failure that the policy can judge.

    Args:
        error: The exception in one line, for example "TimeoutError: agent of server 1 (hello)".
        root: The server it concerns, when there is exactly one.
    """
    return FailureSeen("internal", root, f"error in the controller: {error}", kind="internal")


def find_unready(
    servers: Sequence[ServerSeen], history: History, *, gang: GroupShape
) -> tuple[str, ...]:
    """Return the conditions of readiness that do not hold yet, for people; empty when ready."""
    seen = {server.index: server for server in servers}
    missing = [
        f"server {index}: not started"
        for index in range(len(gang.ranks))
        if index not in seen or seen[index].pid is None
    ]
    for index in gang.api:
        if index in seen:
            unmet = _unmet_api_conditions(seen[index], history, gang)
            missing += [f"server {index}: {condition}" for condition in unmet]
    return tuple(missing)


def _unmet_api_conditions(server: ServerSeen, history: History, gang: GroupShape) -> list[str]:
    wanted = {rank for ranks in gang.ranks for rank in ranks}
    absent = sorted(wanted - {rank.rank for rank in server.ranks})
    absent_names = ", ".join(map(str, absent))
    healthy = server.http.status == 200 and server.http.failing_since is None
    # No observation is reported that was not made.
    unhealthy = "/health is not 200" if server.http.at is not None else "/health not asked yet"
    canary = server.canary
    # A completion from before this attempt is no evidence about the current processes.
    completed = canary is not None and canary.ok and canary.at >= history.started_at
    conditions = {
        unhealthy: healthy,
        "/v1/models does not list the model": server.serves_model,
        f"no metrics of rank {absent_names}": not absent,
        "no completion yet": completed,
    }
    return [condition for condition, holds in conditions.items() if not holds]


def _find_lost_agent(
    servers: Sequence[ServerSeen], health: HealthConfig, now: float
) -> FailureSeen | None:
    """Find a lost agent or node: deaths that Ray reports first, then silence."""
    lost = [(server.index, server.agent_lost) for server in servers if server.agent_lost]
    if not lost:
        lost = [(index, "node unreachable") for index in _silent_agents(servers, health, now)]
    if not lost:
        return None
    root, why = lost[0]
    cause = "agent-lost" if why == "agent died" else "node-lost"
    collateral = tuple(index for index, _ in lost[1:])
    return FailureSeen(cause, root, f"server {root}: {why}", collateral)


def _silent_agents(servers: Sequence[ServerSeen], health: HealthConfig, now: float) -> list[int]:
    last_answers = {server.index: server.agent_at for server in servers}
    heard = {index: at for index, at in last_answers.items() if at is not None}
    freshest = max(heard.values(), default=now)
    limit = health.agent_silent_s
    silent = []
    for index, at in heard.items():
        silent_while_others_answer = freshest - at > limit
        # When all agents are silent together the fault may be the controller's own (its network,
        # its event loop): wait half as long again before it counts.
        silent_with_all = now - at > 1.5 * limit
        if silent_while_others_answer or silent_with_all:
            silent.append(index)
    return silent


def _find_exit(servers: Sequence[ServerSeen]) -> FailureSeen | None:
    """Find servers that exited, with any code: vLLM exits 0 when its group is broken (measured)."""
    statuses = {server.index: server.exit for server in servers if server.exit}
    if not statuses:
        return None
    # The first to exit is the root: the others exit because of it.
    by_time = sorted(statuses, key=lambda index: (statuses[index].at, index))
    root = by_time[0]
    status = statuses[root]
    process = f"server {root}"
    if status.process:
        process = f"{status.process} of server {root}"
    reason = f"{process} exited ({status.status})"
    return FailureSeen("ended", root, reason, tuple(by_time[1:]))


def _find_missed_deadline(
    servers: Sequence[ServerSeen],
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
) -> FailureSeen | None:
    if now - history.started_at <= health.start_s:
        return None
    missing = find_unready(servers, history, gang=gang)
    if not missing:
        return None
    reason = f"not ready after {health.start_s:g} s: {'; '.join(missing)}"
    return FailureSeen("start-deadline", None, reason)


def _find_dead_http(
    servers: Sequence[ServerSeen], health: HealthConfig, now: float
) -> FailureSeen | None:
    """Find an API that does not respond while no token moves.

    Slow is not dead: under load `/health` took 8 s (measured).
    """
    for server in servers:
        since = server.http.failing_since
        if since is None or now - since < health.http_fail_s:
            continue
        if any(_moved_after(rank, since) for rank in server.ranks):
            continue
        reason = f"server {server.index}: /health has failed for {now - since:.0f} s"
        return FailureSeen("http-dead", server.index, reason)
    return None


def _find_stall(
    servers: Sequence[ServerSeen], health: HealthConfig, now: float, gang: GroupShape
) -> FailureSeen | None:
    """Find ranks that have requests but whose counters do not move."""
    # vLLM's hang line alone proves little: it also appears when workers are merely busy.
    hinted = any(server.hang_lines for server in servers)
    limit = health.stall_s / 2 if hinted else health.stall_s
    durations = {rank.rank: _stalled_s(rank, now) for server in servers for rank in server.ranks}
    stalled = {rank: duration for rank, duration in durations.items() if duration >= limit}
    if not stalled:
        return None
    reason = (
        f"rank {_join_ranks(stalled)} has requests but has produced no token "
        f"for {max(stalled.values()):.0f} s"
    )
    if hinted:
        reason += ", and vLLM reports a hang"
    return FailureSeen("stalled", _single_owner(stalled, gang), reason)


def _find_failed_canary(
    servers: Sequence[ServerSeen], health: HealthConfig, gang: GroupShape
) -> FailureSeen | None:
    """Find a rank that looks idle but cannot complete one token.

    A process that was stopped (SIGSTOP) while idle never shows a request: only a canary finds it.
    """
    durations = {rank.rank: _canary_failing_s(rank) for server in servers for rank in server.ranks}
    limit = health.canary_timeout_s
    failing = {rank: duration for rank, duration in durations.items() if duration >= limit}
    if not failing:
        return None
    reason = (
        f"rank {_join_ranks(failing)} is idle but has failed its health-check completion "
        f"for {max(failing.values()):.0f} s"
    )
    return FailureSeen("canary-failed", _single_owner(failing, gang), reason)


def _join_ranks(durations: dict[int, float]) -> str:
    return ", ".join(str(rank) for rank in sorted(durations))


def _single_owner(ranks: dict[int, float], gang: GroupShape) -> int | None:
    """Return the server that holds all of `ranks`; None when they belong to several."""
    owners = {gang.owner(rank) for rank in ranks}
    if len(owners) != 1:
        return None
    return owners.pop()


def _stalled_s(rank: RankSeen, now: float) -> float:
    """Return for how many seconds a rank was seen to make no progress."""
    if rank.still_since is None:
        return 0.0
    # Up to the last reading only: an agent that did not measure has not seen a stall.
    last_reading = now if rank.at is None else rank.at
    return last_reading - rank.still_since


def _canary_failing_s(rank: RankSeen) -> float:
    """Return for how many seconds a rank without requests was seen to fail its canaries.

    A rank with requests is judged by `_find_stall`: a canary behind a long prefill waits its turn.
    """
    since = rank.canary_failing_since
    if since is None or rank.at is None or rank.still_since is not None:
        return 0.0
    return 0.0 if _moved_after(rank, since) else rank.at - since


def _moved_after(rank: RankSeen, since: float) -> bool:
    return rank.moved_at is not None and rank.moved_at > since
