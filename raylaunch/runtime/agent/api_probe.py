"""What an agent sees of its own server: HTTP answers, counters and canaries folded into the last observation of each.

The folding functions are pure; `ApiObserver` asks at the periods of the recipe. Times: the agent's monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import CanarySeen, HttpSeen, RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import HttpAnswer, VllmClient
from raylaunch.vllm_api.vllm_metrics import RankCounters

STARTING_PERIOD_S = 0.25
"""Between two looks while the API is coming up: this is what a person waits for."""
CANARY_LOOK_S = 0.5
"""Between two looks for a rank that has become silent."""


def fold_http(before: HttpSeen, answer: HttpAnswer, sent: float, now: float) -> HttpSeen:
    """Take in one answer of `/health` to a request sent at `sent`."""
    if answer.status == 200:
        return HttpSeen(200, answer.latency_s, now, None)
    since = before.failing_since if before.failing_since is not None else sent
    return HttpSeen(answer.status, answer.latency_s, now, since)


def fold_rank(before: RankSeen | None, rank: int, counters: RankCounters, now: float) -> RankSeen:
    """Take in one reading of a rank's counters."""
    tokens = counters.prompt_tokens + counters.generation_tokens
    mute = before.mute_since if before else None
    after = RankSeen(
        rank, counters.running, counters.waiting, tokens, counters.finished, at=now, mute_since=mute
    )
    moved = before is None or (tokens, counters.finished) != (before.tokens, before.finished)
    moved_at = now if moved else before.moved_at if before else None
    busy = counters.running + counters.waiting > 0
    if not busy or moved:
        return replace(after, moved_at=moved_at, still_since=now if busy else None)
    since = before.still_since if before and before.still_since is not None else now
    return replace(after, moved_at=moved_at, still_since=since)


def fold_canary(
    before: CanarySeen | None, answer: HttpAnswer, sent: float, now: float
) -> CanarySeen:
    """Take in one canary. A refusal that is the client's fault (4xx) proves that the API lives."""
    if answer.status is not None and answer.status < 500:
        return CanarySeen(answer.ok, now, answer.latency_s, None, answer.detail)
    since = before.failing_since if before and before.failing_since is not None else sent
    return CanarySeen(False, now, answer.latency_s, since, answer.detail)


def fold_rank_canary(rank: RankSeen, answer: HttpAnswer, sent: float) -> RankSeen:
    """Take in the answer of one rank to a canary sent at `sent`."""
    if answer.status is not None and answer.status < 500:
        return replace(rank, mute_since=None)
    return replace(rank, mute_since=rank.mute_since if rank.mute_since is not None else sent)


def take_canaries(
    seen: ServerSeen, answers: Mapping[int, HttpAnswer], sent: float, now: float
) -> ServerSeen:
    """Take in the answers by rank. The service as a whole answers as its worst rank does."""
    asked = {
        rank.rank: fold_rank_canary(rank, answers[rank.rank], sent)
        for rank in seen.ranks
        if rank.rank in answers
    }
    worst = max(answers.values(), key=lambda answer: (not answer.ok, answer.latency_s))
    ranks = tuple(asked.get(rank.rank, rank) for rank in seen.ranks)
    return replace(seen, ranks=ranks, canary=fold_canary(seen.canary, worst, sent, now))


class ApiObserver:
    """Asks one API server, and hands each new observation to `update` as a change of ServerSeen."""

    def __init__(
        self,
        client: VllmClient,
        served_name: str,
        health: HealthConfig,
        seen: Callable[[], ServerSeen],
        update: Callable[[Callable[[ServerSeen], ServerSeen]], None],
    ) -> None:
        self._client = client
        self._name = served_name
        self._health = health
        self._seen = seen
        self._update = update
        self._api_up = asyncio.Event()
        self._asked: dict[int, float] = {}

    def api_is_up(self) -> None:
        """The server's log says that its API listens: ask now."""
        self._api_up.set()

    async def run(self) -> None:
        """Observe until cancelled; first wait until the log says that there is something to ask."""
        try:
            await self._api_up.wait()
            await self._await_first_answers()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._every(self._health.http_period_s, self._look_at_health))
                group.create_task(
                    self._every(self._health.progress_period_s, self._look_at_metrics)
                )
                group.create_task(self._send_canaries())
        finally:
            await self._client.close()

    async def _await_first_answers(self) -> None:
        """Whatever readiness asks for, as soon as it is there."""
        while not await self._looks_ready():  # noqa: ASYNC110 - no server tells when it is ready
            await asyncio.sleep(STARTING_PERIOD_S)

    async def _looks_ready(self) -> bool:
        await self._look_at_health()
        if self._seen().http.status != 200:
            return False
        models = await self._client.models(self._health.http_timeout_s)
        self._update(lambda seen: replace(seen, serves_model=self._name in models.names))
        await self._look_at_metrics()
        ranks = [rank.rank for rank in self._seen().ranks]
        if not ranks or not await self._ask_ranks(ranks):
            return False
        self._update(lambda seen: replace(seen, stage="first token", stage_detail=""))
        return True

    async def _every(self, period: float, look: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(period)
            await look()  # type: ignore[misc]

    async def _look_at_health(self) -> None:
        sent = time.monotonic()
        answer = await self._client.health(self._health.http_timeout_s)
        self._update(
            lambda seen: replace(seen, http=fold_http(seen.http, answer, sent, time.monotonic()))
        )

    async def _look_at_metrics(self) -> None:
        answer = await self._client.metrics(self._health.http_timeout_s)
        if not answer.ok:
            return
        now = time.monotonic()

        def fold(seen: ServerSeen) -> ServerSeen:
            old = {rank.rank: rank for rank in seen.ranks}
            ranks = tuple(
                fold_rank(old.get(rank), rank, seen_now, now)
                for rank, seen_now in answer.ranks.items()
            )
            moved = any(rank.moved_at == now for rank in ranks)
            return replace(seen, ranks=ranks, hang_lines=0 if moved else seen.hang_lines)

        self._update(fold)

    async def _send_canaries(self) -> None:
        while True:
            silent = self._silent_ranks()
            if silent:
                await self._ask_ranks(silent)
            await asyncio.sleep(CANARY_LOOK_S)

    def _silent_ranks(self) -> tuple[int, ...]:
        """Ranks that have been idle long enough for a canary; after a failure they are asked again at once.

        A rank with requests is left alone: its counters tell what it does.
        """
        limit = time.monotonic() - self._health.canary_idle_s
        idle = [rank for rank in self._seen().ranks if rank.still_since is None]
        return tuple(
            rank.rank
            for rank in idle
            if rank.mute_since is not None
            or max(rank.moved_at or 0.0, self._asked.get(rank.rank, 0.0)) <= limit
        )

    async def _ask_ranks(self, ranks: Sequence[int]) -> bool:
        """One token from each rank, at once; whether all gave it."""
        sent, patience = time.monotonic(), self._health.canary_timeout_s
        calls = [self._client.complete(self._name, timeout_s=patience, rank=rank) for rank in ranks]
        answers = dict(zip(ranks, await asyncio.gather(*calls), strict=True))
        self._asked.update(dict.fromkeys(ranks, time.monotonic()))
        self._update(lambda seen: take_canaries(seen, answers, sent, time.monotonic()))
        return all(answer.ok for answer in answers.values())
