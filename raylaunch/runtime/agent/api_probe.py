"""Probes the API of the agent's own server: liveness, counters per rank, health-check completions.

Times are seconds on the agent's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from raylaunch.runtime.agent.answer_folding import fold_canaries, fold_http, fold_ranks
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import VllmClient

UNANNOUNCED_PERIOD_S = 2.0
"""Between two `/health` probes before anything announced the API. A refused connection is cheap,
and no log line is needed to become ready: its wording and level are vLLM's and the user's."""
STARTING_PERIOD_S = 0.25
"""Between two readiness probes once the API was announced or has answered: a person waits."""
CANARY_CHECK_S = 0.5
"""Between two checks for a rank that has become idle."""
NEVER = float("-inf")
LAST_STAGE = "first token"
"""The last stage of a start. The log has no line for it."""


class ApiProbe:
    """Probes one API server at the periods of the recipe and publishes what it observed.

    Args:
        connect: Makes a client of the server; the probe closes it.
        served_name: The model name that `/v1/models` must list.
        health: Periods and time-outs.
        seen: Returns the observation as it is now.
        publish: Takes a changed observation. Others change it too: each change must start from
            `seen()`, without an `await` between the two.
        clock: The agent's monotonic clock, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], VllmClient],
        served_name: str,
        health: HealthConfig,
        seen: Callable[[], ServerSeen],
        publish: Callable[[ServerSeen], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._name = served_name
        self._health = health
        self._seen = seen
        self._publish = publish
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
            await self._probe_periodically(client)

    async def _await_first_answers(self, client: VllmClient) -> None:
        """Probe whatever readiness asks for until all of it is there."""
        while not await self._probe_readiness(client):
            # No log line is required: `/health` itself is the proof that the API listens.
            if self._announced.is_set() or self._seen().http.status == 200:
                await asyncio.sleep(STARTING_PERIOD_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNANNOUNCED_PERIOD_S):
                    await self._announced.wait()

    async def _probe_periodically(self, client: VllmClient) -> None:
        async def probe_health() -> None:
            await self._probe_health(client)

        async def read_counters() -> None:
            await self._read_counters(client)

        async def complete() -> None:
            await self._complete_on_idle_ranks(client)

        # Tasks of their own: a completion may take long, and liveness must not wait for it.
        async with asyncio.TaskGroup() as probes:
            probes.create_task(_repeat(self._health.http_period_s, probe_health))
            probes.create_task(_repeat(self._health.progress_period_s, read_counters))
            probes.create_task(_repeat(CANARY_CHECK_S, complete))

    async def _probe_readiness(self, client: VllmClient) -> bool:
        """Ask for everything that readiness needs, cheapest first; return whether all is there."""
        await self._probe_health(client)
        if self._seen().http.status != 200:
            return False
        models = await client.models(self._health.http_timeout_s)
        serves_model = self._name in models.names
        self._publish(replace(self._seen(), serves_model=serves_model))
        await self._read_counters(client)
        ranks = [rank.rank for rank in self._seen().ranks]
        if not ranks or not await self._complete_on(client, ranks):
            return False
        self._publish(replace(self._seen(), stage=LAST_STAGE, stage_detail=""))
        return True

    async def _probe_health(self, client: VllmClient) -> None:
        sent = self._clock()
        answer = await client.health(self._health.http_timeout_s)
        seen = self._seen()
        http = fold_http(seen.http, answer, sent, self._clock())
        self._publish(replace(seen, http=http))

    async def _read_counters(self, client: VllmClient) -> None:
        answer = await client.metrics(self._health.http_timeout_s)
        # Old counters with an old `at` stay: the policy judges only what was read.
        if answer.ok:
            self._publish(fold_ranks(self._seen(), answer.ranks, self._clock()))

    async def _complete_on_idle_ranks(self, client: VllmClient) -> None:
        idle = self._idle_ranks()
        if idle:
            await self._complete_on(client, idle)

    def _idle_ranks(self) -> list[int]:
        """List the ranks that have been idle long enough for a health-check completion.

        After a failure a rank is asked again without that pause.
        """
        limit = self._clock() - self._health.canary_idle_s
        idle = []
        for rank in self._seen().ranks:
            has_requests = rank.still_since is not None
            if has_requests:
                continue  # its counters show what it does
            failing = rank.canary_failing_since is not None
            if failing or self._last_active(rank) <= limit:
                idle.append(rank.rank)
        return idle

    def _last_active(self, rank: RankSeen) -> float:
        """Return when the rank last worked on a token, as far as this probe knows."""
        moved_at = NEVER if rank.moved_at is None else rank.moved_at
        asked_at = self._asked_at.get(rank.rank, NEVER)
        return max(moved_at, asked_at)

    async def _complete_on(self, client: VllmClient, ranks: Sequence[int]) -> bool:
        """Ask each rank for one token, in parallel; return whether all gave it."""
        timeout_s = self._health.canary_timeout_s
        sent = self._clock()
        answers = await asyncio.gather(
            *(client.complete(self._name, timeout_s=timeout_s, rank=rank) for rank in ranks)
        )
        now = self._clock()
        self._asked_at.update(dict.fromkeys(ranks, now))
        by_rank = dict(zip(ranks, answers, strict=True))
        self._publish(fold_canaries(self._seen(), by_rank, sent, now))
        return all(answer.ok for answer in answers)


async def _repeat(period_s: float, probe: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await probe()
