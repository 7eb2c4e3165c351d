"""What counts as a failure, and what as ready. Pure: observations, thresholds and the time in, a trouble in words out.

All times are seconds on the controller's clock. The controller must look before it asks: after a pause of its own the
old observations prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.supervise.health_config import GroupShape, HealthConfig
from raylaunch.supervise.state import History, Phase, RankSeen, ServerSeen


@dataclass(frozen=True)
class FailureSeen:
    """What was noticed: by which detector, on which server, in words."""

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
    """The failure that the observations show, if any; the most direct evidence first.

    While checking there is no server yet, only agents. While pending, restarting or failed nothing is expected to live.
    """
    if phase not in (Phase.CHECKING, Phase.STARTING, Phase.READY):
        return None
    trouble = _lost(servers, health, now)
    if trouble is None and phase is not Phase.CHECKING:
        trouble = _ended(servers)
    if trouble is None and phase is Phase.STARTING:
        trouble = _late(servers, history, health, now, gang)
    if trouble is None and phase is Phase.READY:
        trouble = (
            _deaf(servers, health, now)
            or _stalled(servers, health, now, gang)
            or _dumb(servers, health, gang)
        )
    return trouble


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
    """What is still missing before the deployment is ready, in words; empty when nothing is."""
    seen = {server.index: server for server in servers}
    missing = [
        f"server {i}: not started"
        for i in range(len(gang.ranks))
        if i not in seen or seen[i].pid is None
    ]
    for index in gang.api:
        if index in seen:
            missing += [
                f"server {index}: {what}" for what in _missing_of_api(seen[index], history, gang)
            ]
    return tuple(missing)


def _missing_of_api(server: ServerSeen, history: History, gang: GroupShape) -> list[str]:
    wanted = {rank for ranks in gang.ranks for rank in ranks}
    absent = sorted(wanted - {rank.rank for rank in server.ranks})
    canary = server.canary
    answered = canary is not None and canary.ok and canary.at >= history.started_at
    conditions = {
        "/health is not 200": server.http.status == 200 and server.http.failing_since is None,
        "/v1/models does not list the model": server.serves_model,
        f"no metrics of rank {', '.join(map(str, absent))}": not absent,
        "no completion yet": answered,
    }
    return [what for what, holds in conditions.items() if not holds]


def _lost(servers: Sequence[ServerSeen], health: HealthConfig, now: float) -> FailureSeen | None:
    """A lost agent or node. Reported deaths first; then silence, which is no proof while everybody is silent."""
    gone = [(server.index, server.agent_lost) for server in servers if server.agent_lost]
    gone = gone or [(index, "node unreachable") for index in _silent(servers, health, now)]
    if not gone:
        return None
    (root, why), *others = gone
    cause = "agent-lost" if why == "agent died" else "node-lost"
    return FailureSeen(cause, root, f"server {root}: {why}", tuple(index for index, _ in others))


def _silent(servers: Sequence[ServerSeen], health: HealthConfig, now: float) -> list[int]:
    heard = {server.index: server.agent_at for server in servers if server.agent_at is not None}
    freshest = max(heard.values(), default=now)
    limit = health.agent_silent_s
    # When all agents fall silent together the fault may be the controller's own: half as long again before it counts.
    return [index for index, at in heard.items() if freshest - at > limit or now - at > 1.5 * limit]


def _ended(servers: Sequence[ServerSeen]) -> FailureSeen | None:
    """A server that ended, with any code: vLLM exits 0 when its group is broken (measured)."""
    ended = sorted((server.exit.at, server.index) for server in servers if server.exit is not None)
    if not ended:
        return None
    _, root = ended[0]
    how = next(server.exit for server in servers if server.index == root)
    return FailureSeen(
        "ended", root, f"server {root} ended with {how}", tuple(index for _, index in ended[1:])
    )


def _late(
    servers: Sequence[ServerSeen],
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
) -> FailureSeen | None:
    missing = find_unready(servers, history, gang=gang)
    if now - history.started_at <= health.start_s or not missing:
        return None
    return FailureSeen(
        "start-deadline", None, f"not ready after {health.start_s:g} s: {'; '.join(missing)}"
    )


def _deaf(servers: Sequence[ServerSeen], health: HealthConfig, now: float) -> FailureSeen | None:
    """An API that does not answer while no token moves. Slow is not dead: `/health` took 8 s under load (measured)."""
    for server in servers:
        since = server.http.failing_since
        if since is None or now - since < health.http_fail_s or _moved_after(server.ranks, since):
            continue
        return FailureSeen(
            "http-dead",
            server.index,
            f"server {server.index}: /health fails for {now - since:.0f} s",
        )
    return None


def _stalled(
    servers: Sequence[ServerSeen], health: HealthConfig, now: float, gang: GroupShape
) -> FailureSeen | None:
    """Ranks with requests whose counters stand still. vLLM's hang line alone says little: it also appears when busy."""
    hinted = any(server.hang_lines for server in servers)
    limit = health.stall_s / 2 if hinted else health.stall_s
    still = {rank.rank: _still_s(rank, now) for server in servers for rank in server.ranks}
    stuck = {rank: lasting for rank, lasting in still.items() if lasting >= limit}
    if not stuck:
        return None
    owners = {gang.owner(rank) for rank in stuck}
    root = owners.pop() if len(owners) == 1 else None
    ranks = ", ".join(str(rank) for rank in sorted(stuck))
    hint = ", and vLLM reports a hang" if hinted else ""
    return FailureSeen(
        "stalled",
        root,
        f"rank {ranks}: requests, but no token for {max(stuck.values()):.0f} s{hint}",
    )


def _dumb(
    servers: Sequence[ServerSeen], health: HealthConfig, gang: GroupShape
) -> FailureSeen | None:
    """A rank that looks idle and cannot complete one token: what was stopped while idle shows no request for ever."""
    mute = {rank.rank: _mute_s(rank) for server in servers for rank in server.ranks}
    dumb = {rank: lasting for rank, lasting in mute.items() if lasting >= health.canary_timeout_s}
    if not dumb:
        return None
    owners = {gang.owner(rank) for rank in dumb}
    root = owners.pop() if len(owners) == 1 else None
    ranks = ", ".join(str(rank) for rank in sorted(dumb))
    return FailureSeen(
        "canary-failed",
        root,
        f"rank {ranks}: idle, and no token for {max(dumb.values()):.0f} s when asked",
    )


def _still_s(rank: RankSeen, now: float) -> float:
    """How long a rank was seen to stand still, in seconds."""
    if rank.still_since is None:
        return 0.0
    return (now if rank.at is None else rank.at) - rank.still_since


def _mute_s(rank: RankSeen) -> float:
    """For how long a rank without any request was seen to answer no canary, in seconds.

    One with requests is `_stalled`'s to judge: a canary behind a long prefill waits for its turn.
    """
    if rank.mute_since is None or rank.at is None or rank.still_since is not None:
        return 0.0
    moved = rank.moved_at is not None and rank.moved_at > rank.mute_since
    return 0.0 if moved else rank.at - rank.mute_since


def _moved_after(ranks: Sequence[RankSeen], since: float) -> bool:
    return any(rank.moved_at is not None and rank.moved_at > since for rank in ranks)
