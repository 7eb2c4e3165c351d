"""Probes of an API server and their folding into observations, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import time

from raylaunch.runtime.agent import api_probe
from raylaunch.runtime.agent.answer_folding import fold_canaries, fold_rank
from raylaunch.runtime.agent.api_probe import LAST_STAGE, ApiProbe
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller.group.agent_watch import shift_times
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import HttpAnswer, MetricsAnswer, ModelsAnswer, TextAnswer
from raylaunch.vllm_api.vllm_metrics import RankCounters

OK, LATE = HttpAnswer(200, 0.1), HttpAnswer(None, 15.0, "no answer within 15 s")
PATIENCE_S = 60
SEEN = ServerSeen(0, ranks=(RankSeen(0), RankSeen(1)))


def test_a_mute_rank_is_told_from_the_other():
    seen = fold_canaries(SEEN, {0: OK, 1: LATE}, sent=100.0, now=115.0)
    assert [rank.canary_failing_since for rank in seen.ranks] == [None, 100.0]
    assert seen.canary is not None
    assert (seen.canary.ok, seen.canary.failing_since, seen.canary.detail) == (
        False,
        100.0,
        "no answer within 15 s",
    )


def test_the_row_of_failures_counts_from_its_first_and_ends_with_an_answer():
    seen = fold_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0)
    seen = fold_canaries(seen, {1: LATE}, sent=115.0, now=130.0)
    assert seen.ranks[1].canary_failing_since == 100.0
    seen = fold_canaries(seen, {1: OK}, sent=130.0, now=130.1)
    assert seen.ranks[1].canary_failing_since is None
    assert seen.canary is not None
    assert seen.canary.ok


def test_a_refusal_is_an_answer():
    seen = fold_canaries(SEEN, {0: HttpAnswer(401, 0.01, "HTTP 401")}, sent=100.0, now=100.1)
    assert seen.ranks[0].canary_failing_since is None


def test_reading_counters_does_not_forget_a_mute_rank():
    before = fold_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0).ranks[1]
    assert fold_rank(before, 1, RankCounters(), now=116.0).canary_failing_since == 100.0


def test_every_time_is_moved_to_the_other_clock():
    seen = fold_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0)
    assert shift_times(seen, -10.0).ranks[1].canary_failing_since == 90.0


class Api:
    """An API server that is up once `up` is set; a client of itself."""

    def __init__(self):
        self.up = asyncio.Event()
        self.broken = 0
        self.opened = self.closed = self.asked = 0

    def __call__(self):
        self.opened += 1
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.closed += 1

    async def health(self, _timeout_s):
        self.asked += 1
        if self.broken:
            self.broken -= 1
            raise RuntimeError("a bug in the client")
        return HttpAnswer(200 if self.up.is_set() else None, 0.01)

    async def models(self, _timeout_s):
        return ModelsAnswer(200, 0.01, names=("tiny",))

    async def metrics(self, _timeout_s):
        return MetricsAnswer(200, 0.01, ranks={0: RankCounters(), 1: RankCounters()})

    async def complete(self, _name, *, timeout_s, rank):
        return TextAnswer(200, 0.01)


class Observed:
    """An observation that a probe changes, and a wait for a state of it."""

    def __init__(self):
        self.seen = ServerSeen(0)
        self.failures = []
        self._changed = asyncio.Event()

    def publish(self, seen):
        self.seen = seen
        self._changed.set()

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self.seen):
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def probing(api, **options):
    observed = Observed()
    health = HealthConfig(http_period_s=0.01, progress_period_s=0.01)
    probe = ApiProbe(api, "tiny", health, lambda: observed.seen, observed.publish, **options)
    owner = TaskOwner(observed.failures.append)
    owner.keep_running("API probe", probe.run)
    try:
        yield probe, observed
    finally:
        await owner.cancel_and_wait()


async def test_a_server_becomes_ready_without_any_line_in_its_log(monkeypatch):
    """Nothing announces the API: a log level above info, another wording, a full log disk."""
    monkeypatch.setattr(api_probe, "UNANNOUNCED_PERIOD_S", 0.01)
    api = Api()
    async with probing(api) as (_, observed):
        await observed.until(lambda seen: seen.http.at is not None)
        assert observed.seen.http.status is None, "asked, and it does not answer yet"
        api.up.set()
        await observed.until(lambda seen: seen.stage == LAST_STAGE)
    assert observed.seen.http.status == 200
    assert observed.seen.serves_model
    assert observed.seen.canary.ok
    assert [rank.rank for rank in observed.seen.ranks] == [0, 1]


async def test_an_announcement_only_makes_the_probe_faster(monkeypatch):
    monkeypatch.setattr(api_probe, "UNANNOUNCED_PERIOD_S", 10 * PATIENCE_S)
    api = Api()
    async with probing(api) as (probe, observed):
        await observed.until(lambda seen: seen.http.at is not None)
        api.up.set()
        probe.announce()
        await observed.until(lambda seen: seen.stage == LAST_STAGE)


async def test_nothing_is_observed_before_it_was_asked():
    api = Api()
    observed = Observed()
    ApiProbe(api, "tiny", HealthConfig(), lambda: observed.seen, observed.publish)
    assert observed.seen == ServerSeen(0)
    assert (observed.seen.http.at, observed.seen.http.failing_since) == (None, None)


async def test_a_probe_that_fails_opens_a_new_client_and_goes_on():
    api = Api()
    api.up.set()
    async with probing(api) as (_, observed):
        await observed.until(lambda seen: seen.stage == LAST_STAGE)
        api.broken = 1
        async with asyncio.timeout(PATIENCE_S):
            while api.opened < 2:  # noqa: ASYNC110 - only the client notices
                await asyncio.sleep(0.01)
        asked = api.asked
        at = observed.seen.http.at
        await observed.until(lambda seen: seen.http.at > at)
    assert api.asked > asked
    assert api.closed == api.opened == 2
    assert len(observed.failures) == 1


async def test_a_step_of_the_wall_clock_moves_no_time_of_an_observation(monkeypatch):
    api = Api()
    api.up.set()
    wall = time.time
    async with probing(api) as (_, observed):
        await observed.until(lambda seen: seen.stage == LAST_STAGE)
        for step in (60.0, -60.0):
            monkeypatch.setattr(time, "time", lambda step=step: wall() + step)
            before = observed.seen.http.at
            await observed.until(lambda seen, before=before: seen.http.at > before)
            assert 0 <= time.monotonic() - observed.seen.http.at < PATIENCE_S
            moved = max(rank.moved_at for rank in observed.seen.ranks)
            assert 0 <= time.monotonic() - moved < PATIENCE_S


async def test_only_idle_ranks_get_a_health_check_completion():
    """Idle for `canary_idle_s`, or failing; never one that has requests."""
    now = 100.0
    ranks = (
        RankSeen(0, moved_at=99.0),
        RankSeen(1, moved_at=90.0),
        RankSeen(2, moved_at=90.0, still_since=91.0),
        RankSeen(3, moved_at=99.0, canary_failing_since=98.0),
    )
    observed = Observed()
    observed.publish(ServerSeen(0, ranks=ranks))
    health = HealthConfig(canary_idle_s=5.0)
    probe = ApiProbe(
        Api(), "tiny", health, lambda: observed.seen, observed.publish, clock=lambda: now
    )
    assert probe._idle_ranks() == [1, 3]
    await probe._complete_on(Api(), [1, 3])
    assert probe._idle_ranks() == [], "it has answered just now"
