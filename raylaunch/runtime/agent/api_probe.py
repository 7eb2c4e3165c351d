"""Probes the API of the agent's own server: liveness, counters per rank, health-check completions.

The folding functions are pure: they fold one answer into the last observation of its kind.
`ApiProbe` asks at the periods of the recipe. Times are seconds on the agent's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import CanarySeen, HttpSeen, RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import HttpAnswer, VllmClient
from raylaunch.vllm_api.vllm_metrics import RankCounters

UNANNOUNCED_PERIOD_S = 2.0
"""Between two `/health` probes before anything announced the API. A refused connection is cheap,
and no log line is needed to become ready: its wording and level are vLLM's and the user's."""
STARTING_PERIOD_S = 0.25
"""Between two readiness probes once the API was announced or has answered: a person waits."""
CANARY_CHECK_S = 0.5
"""Between two checks for a rank that has become idle."""
LAST_STAGE = "first token"
"""The last stage of a start. The log has no line for it."""

ChangeSeen = Callable[[ServerSeen], ServerSeen]


def fold_http(before: HttpSeen, answer: HttpAnswer, sent: float, now: float) -> HttpSeen:
    """Fold in the answer of `/health` to a request sent at `sent`."""
    if answer.status == 200:
        return HttpSeen(200, answer.latency_s, now, None)
    since = before.failing_since if before.failing_since is not None else sent
    return HttpSeen(answer.status, answer.latency_s, now, since)


def fold_rank(before: RankSeen | None, rank: int, counters: RankCounters, now: float) -> RankSeen:
    """Fold in one reading of a rank's counters."""
    tokens = counters.prompt_tokens + counters.generation_tokens
    after = RankSeen(rank, counters.running, counters.waiting, tokens, counters.finished, at=now)
    if before is None:
        moved = True
    else:
        moved = (tokens, counters.finished) != (before.tokens, before.finished)
        after = replace(after, mute_since=before.mute_since, moved_at=before.moved_at)
    if moved:
        after = replace(after, moved_at=now)
    busy = counters.running + counters.waiting > 0
    if not busy:
        return after
    if before is None or moved or before.still_since is None:
        return replace(after, still_since=now)
    return replace(after, still_since=before.still_since)


def fold_canary(
    before: CanarySeen | None, answer: HttpAnswer, sent: float, now: float
) -> CanarySeen:
    """Fold in one health-check completion sent at `sent`.

    A refusal that is the client's fault (4xx) proves that the API lives.
    """
    if _is_answer(answer):
        return CanarySeen(answer.ok, now, answer.latency_s, None, answer.detail)
    since = sent
    if before is not None and before.failing_since is not None:
        since = before.failing_since
    return CanarySeen(False, now, answer.latency_s, since, answer.detail)


def fold_rank_canary(rank: RankSeen, answer: HttpAnswer, sent: float) -> RankSeen:
    """Fold in the answer of one rank to a health-check completion sent at `sent`."""
    if _is_answer(answer):
        return replace(rank, mute_since=None)
    if rank.mute_since is not None:
        return rank
    return replace(rank, mute_since=sent)


def fold_canaries(
    seen: ServerSeen, answers: Mapping[int, HttpAnswer], sent: float, now: float
) -> ServerSeen:
    """Fold in the answers by rank. The service as a whole answers as its worst rank does."""
    ranks = []
    for rank in seen.ranks:
        answer = answers.get(rank.rank)
        ranks.append(rank if answer is None else fold_rank_canary(rank, answer, sent))
    worst = max(answers.values(), key=lambda answer: (not answer.ok, answer.latency_s))
    canary = fold_canary(seen.canary, worst, sent, now)
    return replace(seen, ranks=tuple(ranks), canary=canary)


def _is_answer(answer: HttpAnswer) -> bool:
    return answer.status is not None and answer.status < 500


class ApiProbe:
    """Probes one API server and hands each observation to `update` as a change of ServerSeen.

    Args:
        connect: Makes a client of the server; the probe closes it.
        served_name: The model name that `/v1/models` must list.
        health: Periods and time-outs.
        seen: Returns the observation as it is now.
        update: Applies a change to the observation.
        clock: The agent's monotonic clock, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], VllmClient],
        served_name: str,
        health: HealthConfig,
        seen: Callable[[], ServerSeen],
        update: Callable[[ChangeSeen], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._name = served_name
        self._health = health
        self._seen = seen
        self._update = update
        self._clock = clock
        self._announced = asyncio.Event()
        self._answers = False
        """Every readiness probe has succeeded once."""
        self._asked_at: dict[int, float] = {}
        """When each rank got its last health-check completion."""

    def announce(self) -> None:
        """Probe soon, and often: the log says that the API listens."""
        self._announced.set()

    async def run(self) -> None:
        """Probe from the spawn of the server until cancelled.

        May be run again after an exception.
        """
        async with self._connect() as client:
            if not self._answers:
                await self._await_first_answers(client)
                self._answers = True
            async with asyncio.TaskGroup() as probes:
                probes.create_task(
                    _repeat(self._health.http_period_s, lambda: self._probe_health(client))
                )
                probes.create_task(
                    _repeat(self._health.progress_period_s, lambda: self._read_counters(client))
                )
                probes.create_task(
                    _repeat(CANARY_CHECK_S, lambda: self._complete_on_idle_ranks(client))
                )

    async def _await_first_answers(self, client: VllmClient) -> None:
        """Probe whatever readiness asks for until all of it is there."""
        while not await self._probe_readiness(client):
            if self._announced.is_set() or self._seen().http.status == 200:
                await asyncio.sleep(STARTING_PERIOD_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNANNOUNCED_PERIOD_S):
                    await self._announced.wait()

    async def _probe_readiness(self, client: VllmClient) -> bool:
        await self._probe_health(client)
        if self._seen().http.status != 200:
            return False
        models = await client.models(self._health.http_timeout_s)
        self._update(lambda seen: replace(seen, serves_model=self._name in models.names))
        await self._read_counters(client)
        ranks = [rank.rank for rank in self._seen().ranks]
        if not ranks or not await self._complete_on(client, ranks):
            return False
        self._update(lambda seen: replace(seen, stage=LAST_STAGE, stage_detail=""))
        return True

    async def _probe_health(self, client: VllmClient) -> None:
        sent = self._clock()
        answer = await client.health(self._health.http_timeout_s)
        now = self._clock()
        self._update(lambda seen: replace(seen, http=fold_http(seen.http, answer, sent, now)))

    async def _read_counters(self, client: VllmClient) -> None:
        answer = await client.metrics(self._health.http_timeout_s)
        if not answer.ok:
            return
        now = self._clock()

        def fold(seen: ServerSeen) -> ServerSeen:
            old = {rank.rank: rank for rank in seen.ranks}
            ranks = tuple(
                fold_rank(old.get(rank), rank, counters, now)
                for rank, counters in answer.ranks.items()
            )
            moved = any(rank.moved_at == now for rank in ranks)
            return replace(seen, ranks=ranks, hang_lines=0 if moved else seen.hang_lines)

        self._update(fold)

    async def _complete_on_idle_ranks(self, client: VllmClient) -> None:
        idle = self._idle_ranks()
        if idle:
            await self._complete_on(client, idle)

    def _idle_ranks(self) -> list[int]:
        """List the ranks that have been idle long enough for a health-check completion.

        After a failure a rank is asked again without that pause. A rank with requests is not
        asked: its counters show what it does.
        """
        limit = self._clock() - self._health.canary_idle_s
        idle = []
        for rank in self._seen().ranks:
            if rank.still_since is not None:
                continue
            moved_at = float("-inf") if rank.moved_at is None else rank.moved_at
            asked_at = self._asked_at.get(rank.rank, float("-inf"))
            if rank.mute_since is not None or max(moved_at, asked_at) <= limit:
                idle.append(rank.rank)
        return idle

    async def _complete_on(self, client: VllmClient, ranks: Sequence[int]) -> bool:
        """Ask each rank for one token, in parallel; return whether all gave it."""
        sent = self._clock()
        calls = [
            client.complete(self._name, timeout_s=self._health.canary_timeout_s, rank=rank)
            for rank in ranks
        ]
        answers = dict(zip(ranks, await asyncio.gather(*calls), strict=True))
        now = self._clock()
        self._asked_at.update(dict.fromkeys(ranks, now))
        self._update(lambda seen: fold_canaries(seen, answers, sent, now))
        return all(answer.ok for answer in answers.values())


async def _repeat(period_s: float, probe: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await probe()
