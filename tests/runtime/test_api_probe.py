"""Folding of canaries and counters into observations: pure, no Ray."""

from __future__ import annotations

from raylaunch.runtime.agent.api_probe import fold_rank, take_canaries
from raylaunch.runtime.controller.agent_watch import shift_times
from raylaunch.supervise.state import RankSeen, ServerSeen
from raylaunch.vllm_api.vllm_client import HttpAnswer
from raylaunch.vllm_api.vllm_metrics import RankCounters

OK, LATE = HttpAnswer(200, 0.1), HttpAnswer(None, 15.0, "no answer within 15 s")
SEEN = ServerSeen(0, ranks=(RankSeen(0), RankSeen(1)))


def test_a_mute_rank_is_told_from_the_other():
    seen = take_canaries(SEEN, {0: OK, 1: LATE}, sent=100.0, now=115.0)
    assert [rank.mute_since for rank in seen.ranks] == [None, 100.0]
    assert seen.canary is not None
    assert (seen.canary.ok, seen.canary.failing_since, seen.canary.detail) == (
        False,
        100.0,
        "no answer within 15 s",
    )


def test_the_row_of_failures_counts_from_its_first_and_ends_with_an_answer():
    seen = take_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0)
    seen = take_canaries(seen, {1: LATE}, sent=115.0, now=130.0)
    assert seen.ranks[1].mute_since == 100.0
    seen = take_canaries(seen, {1: OK}, sent=130.0, now=130.1)
    assert seen.ranks[1].mute_since is None
    assert seen.canary is not None
    assert seen.canary.ok


def test_a_refusal_is_an_answer():
    seen = take_canaries(SEEN, {0: HttpAnswer(401, 0.01, "HTTP 401")}, sent=100.0, now=100.1)
    assert seen.ranks[0].mute_since is None


def test_reading_counters_does_not_forget_a_mute_rank():
    before = take_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0).ranks[1]
    assert fold_rank(before, 1, RankCounters(), now=116.0).mute_since == 100.0


def test_every_time_is_moved_to_the_other_clock():
    seen = take_canaries(SEEN, {1: LATE}, sent=100.0, now=115.0)
    assert shift_times(seen, -10.0).ranks[1].mute_since == 90.0
