"""Folds the answers of an API server into the last observation of each kind. Pure.

`sent` and `now` are seconds on one monotonic clock: when the request was sent, and when its answer
was there. A failure counts from the moment its request was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raylaunch.supervise.state import CanarySeen, HttpSeen, RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import HttpAnswer
from raylaunch.vllm_api.vllm_metrics import RankCounters


def fold_http(before: HttpSeen, answer: HttpAnswer, sent: float, now: float) -> HttpSeen:
    """Fold in the answer of `/health`."""
    failing_since = None
    if answer.status != 200:
        failing_since = _first(before.failing_since, sent)
    return HttpSeen(
        status=answer.status,
        latency_s=answer.latency_s,
        at=now,
        failing_since=failing_since,
    )


def fold_ranks(seen: ServerSeen, counters: Mapping[int, RankCounters], now: float) -> ServerSeen:
    """Fold in one reading of the counters of all ranks. vLLM's hang lines count until one moves."""
    before = {rank.rank: rank for rank in seen.ranks}
    ranks = []
    for rank, of_rank in counters.items():
        ranks.append(fold_rank(before.get(rank), rank, of_rank, now))
    moved = any(rank.moved_at == now for rank in ranks)
    hang_lines = 0 if moved else seen.hang_lines
    return replace(seen, ranks=tuple(ranks), hang_lines=hang_lines)


def fold_rank(before: RankSeen | None, rank: int, counters: RankCounters, now: float) -> RankSeen:
    """Fold in one reading of a rank's counters."""
    after = RankSeen(
        rank=rank,
        running=counters.running,
        waiting=counters.waiting,
        tokens=counters.prompt_tokens + counters.generation_tokens,
        finished=counters.finished,
        kv_usage=counters.kv_usage,
        prefix_queries=counters.prefix_queries,
        prefix_hits=counters.prefix_hits,
        at=now,
    )
    busy = after.running + after.waiting > 0
    if before is None:
        return replace(after, moved_at=now, still_since=now if busy else None)
    after = replace(after, canary_failing_since=before.canary_failing_since)
    if (after.tokens, after.finished) != (before.tokens, before.finished):
        return replace(after, moved_at=now, still_since=now if busy else None)
    after = replace(after, moved_at=before.moved_at)
    if not busy:
        return after
    return replace(after, still_since=_first(before.still_since, now))


def fold_canaries(
    seen: ServerSeen, answers: Mapping[int, HttpAnswer], sent: float, now: float
) -> ServerSeen:
    """Fold in the health-check completions of some ranks, by rank.

    The service as a whole answers as its worst rank does.
    """
    ranks = []
    for rank in seen.ranks:
        if rank.rank in answers:
            rank = fold_rank_canary(rank, answers[rank.rank], sent)  # noqa: PLW2901
        ranks.append(rank)
    worst = max(answers.values(), key=lambda answer: (not answer.ok, answer.latency_s))
    canary = fold_canary(seen.canary, worst, sent, now)
    return replace(seen, ranks=tuple(ranks), canary=canary)


def fold_canary(
    before: CanarySeen | None, answer: HttpAnswer, sent: float, now: float
) -> CanarySeen:
    """Fold in one health-check completion of the service."""
    proves_life = _proves_life(answer)
    failing_since = None
    if not proves_life:
        failing_since = _first(before.failing_since if before else None, sent)
    return CanarySeen(
        ok=proves_life and answer.ok,
        at=now,
        latency_s=answer.latency_s,
        failing_since=failing_since,
        detail=answer.detail,
    )


def fold_rank_canary(rank: RankSeen, answer: HttpAnswer, sent: float) -> RankSeen:
    """Fold in the answer of one rank to a health-check completion."""
    if _proves_life(answer):
        return replace(rank, canary_failing_since=None)
    return replace(rank, canary_failing_since=_first(rank.canary_failing_since, sent))


def _proves_life(answer: HttpAnswer) -> bool:
    # A refusal that is the client's fault (4xx) comes from an API that works.
    return answer.status is not None and answer.status < 500


def _first(since: float | None, now: float) -> float:
    """Return the start of an unbroken row: `since` if the row has begun, else `now`."""
    return now if since is None else since
