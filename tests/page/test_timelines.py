"""Starts and failures as timelines: what the events of a deployment say, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from page_samples import BEGAN, GROUP, story

from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.failure_timeline import build_failures
from raylaunch.supervise.start_timeline import build_starts, split_stage

NOW = BEGAN + 200


def starts_of(events, now=NOW):
    return build_starts(events, {GROUP: BEGAN}, now)


def after(timeline, at: float) -> float:
    return round(at - BEGAN, 3)


def bars_of(bars) -> list[tuple[str, float, float]]:
    return [(bar.name, round(bar.at - BEGAN, 3), round(bar.until - BEGAN, 3)) for bar in bars]


def test_a_start_has_the_phases_of_its_group():
    first, second = starts_of(story())
    assert (first.attempt, first.outcome) == (1, "ready")
    assert bars_of(first.phases) == [("pending", 0, 1), ("checking", 1, 4), ("starting", 4, 46)]
    assert (second.attempt, second.outcome) == (2, "ready")
    assert bars_of(second.phases) == [("checking", 104, 105), ("starting", 105, 132)]


def test_a_server_has_a_bar_for_each_stage_and_the_last_detail():
    first, _ = starts_of(story())
    assert bars_of(first.servers[1].bars) == [
        ("launching", 4.6, 5),
        ("spawned", 5, 11),
        ("weights", 11, 45),
        ("engine up", 45, 46),
    ]
    assert first.servers[1].bars[2].detail == "3/3 shards"


def test_the_slowest_server_finished_its_own_start_last():
    first, second = starts_of(story())
    assert [one.server for one in first.servers if one.is_slowest] == [1]
    assert [one.server for one in second.servers if one.is_slowest] == [0]


def with_stages(*rows: tuple[float, int, str]) -> list[Event]:
    """A start of two servers that reach these stages."""
    checks = Event(0, BEGAN, 0, "phase", "checking", None, GROUP)
    launch = Event(1, BEGAN, 1, "command", "launched attempt 1", None, GROUP)
    stages = [
        Event(number, BEGAN + at, 1, "stage", text, server, GROUP)
        for number, (at, server, text) in enumerate(rows, 2)
    ]
    return [checks, launch, *stages, Event(99, BEGAN + 50, 1, "phase", "ready", None, GROUP)]


@pytest.mark.parametrize(
    ("rows", "slowest"),
    [
        # The primary's API is up after every engine, also when its own was the first.
        ([(5, 0, "warm-up engine ready in 1.0 s"), (9, 1, "engine up"), (10, 0, "API up")], 1),
        ([(5, 1, "engine up"), (9, 0, "warm-up engine ready in 1.0 s"), (10, 0, "API up")], 0),
        # Server 0 has two engines, and the second one is still at work.
        (
            [
                (5, 0, "warm-up engine ready in 1.0 s"),
                (6, 0, "warm-up compiled"),
                (9, 1, "weights"),
            ],
            0,
        ),
    ],
)
def test_a_primary_that_waits_for_the_others_is_not_slowest(rows, slowest):
    (start,) = starts_of(with_stages(*rows))
    assert [one.server for one in start.servers if one.is_slowest] == [slowest]


def test_one_server_alone_is_not_slowest():
    events = [event for event in story() if event.server != 1]
    assert not any(one.is_slowest for start in starts_of(events) for one in start.servers)


def test_of_a_start_under_way_the_server_that_is_stuck_longest_is_slowest():
    events = [event for event in story() if event.at <= BEGAN + 20]
    (start,) = starts_of(events, BEGAN + 25)
    assert (start.outcome, after(start, start.until)) == ("starting", 25)
    assert [one.server for one in start.servers if one.is_slowest] == [1]
    assert bars_of(start.servers[0].bars)[-1] == ("warm-up", 20, 25)


@pytest.mark.parametrize(("until", "phases"), [(0, ["pending"]), (3, ["pending", "checking"])])
def test_what_precedes_the_launch_is_a_start_under_way(until, phases):
    events = [event for event in story() if event.at <= BEGAN + until]
    (start,) = starts_of(events, BEGAN + 3.5)
    assert (start.attempt, start.outcome) == (1, "starting")
    assert [bar.name for bar in start.phases] == phases


def test_a_start_that_fails_ends_with_the_failure():
    events = [event for event in story() if event.at <= BEGAN + 11]
    failure = Event(99, BEGAN + 12, 1, "failure", "server 0 exited", 0, GROUP)
    (start,) = starts_of([*events, failure])
    assert (start.outcome, after(start, start.until)) == ("failed", 12)


def test_a_start_whose_launch_is_forgotten_is_left_out():
    events = [event for event in story() if event.at > BEGAN + 20]
    assert [start.attempt for start in starts_of(events)] == [2]


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("engine connected vLLM v0.32", ("engine connected", "vLLM v0.32")),
        ("API up", ("API up", "")),
        ("probed", ("probed", "")),
        ("something else", ("something", "else")),
    ],
)
def test_the_event_of_a_stage_is_split(text, stage):
    assert split_stage(text) == stage


def test_a_failure_has_its_six_moments():
    (failure,) = build_failures(story(), NOW)
    assert [(moment.name, round(moment.at - BEGAN, 3)) for moment in failure.moments] == [
        ("fault", 100),
        ("noticed", 100.08),
        ("evidence", 101),
        ("teardown", 101.5),
        ("checks", 104),
        ("relaunch", 105.5),
        ("ready", 132),
    ]
    assert (failure.attempt, failure.outcome, failure.server) == (1, "recovered", 1)
    assert failure.diagnosis == "killed: SIGKILL from outside"
    assert bars_of(failure.bars)[0] == ("detection", 100, 100.08)
    assert bars_of(failure.bars)[-1] == ("start of the servers", 105.5, 132)


def test_the_bars_of_a_failure_have_no_gap():
    (failure,) = build_failures(story(), NOW)
    for before, behind in zip(failure.bars, failure.bars[1:], strict=False):
        assert before.until == behind.at
    assert failure.bars[-1].until == failure.until


def test_without_a_trace_a_failure_begins_when_it_is_noticed():
    events = [event for event in story() if event.kind not in ("drill", "exit")]
    (failure,) = build_failures(events, NOW)
    assert [moment.name for moment in failure.moments][:2] == ["noticed", "evidence"]


def test_a_failure_under_way_lasts_until_now():
    events = [event for event in story() if event.at <= BEGAN + 104]
    (failure,) = build_failures(events, BEGAN + 104.5)
    assert failure.outcome == "recovering"
    assert bars_of(failure.bars)[-1] == ("checks and plan", 104, 104.5)


def test_a_second_fault_before_the_relaunch_belongs_to_the_first():
    extra = Event(99, BEGAN + 103, 1, "failure", "an agent does not answer", None, GROUP)
    events = sorted([*story(), extra], key=lambda event: event.at)
    (failure,) = build_failures(events, NOW)
    assert [moment.text for moment in failure.more] == ["an agent does not answer"]


def test_a_failure_of_the_next_attempt_is_another_one():
    extra = Event(99, BEGAN + 107, 2, "failure", "server 0 exited", 0, GROUP)
    events = sorted([*story(), extra], key=lambda event: event.at)
    first, second = build_failures(events, NOW)
    assert (first.outcome, second.outcome) == ("failed again", "recovered")
    assert (second.attempt, after(second, second.at)) == (2, 107)


@pytest.mark.parametrize(("phase", "outcome"), [("failed", "given up"), ("stopping", "stopped")])
def test_a_failure_can_end_otherwise(phase, outcome):
    events = [event for event in story() if event.at <= BEGAN + 101]
    events.append(Event(99, BEGAN + 102, 1, "phase", phase, None, GROUP))
    (failure,) = build_failures(events, NOW)
    assert failure.outcome == outcome


def test_an_adopted_server_did_not_fail():
    """Its agent was killed by a drill; what comes much later has nothing to do with that."""
    drill = Event(50, BEGAN + 60, 1, "drill", "SIGKILL to the agent", 1, GROUP)
    adopted = Event(51, BEGAN + 61, 1, "adopted", "another agent has adopted the server", 1, GROUP)
    events = sorted([*story(), drill, adopted], key=lambda event: event.at)
    (failure,) = build_failures(events, NOW)
    assert after(failure, failure.at) == 100


def test_groups_are_kept_apart():
    other = [replace(event, group="serve-1", at=event.at + 0.01) for event in story()]
    events = sorted([*story(), *other], key=lambda event: event.at)
    failures = build_failures(events, NOW)
    assert [failure.group for failure in failures] == [GROUP, "serve-1"]
    starts = build_starts(events, {GROUP: BEGAN, "serve-1": BEGAN + 0.01}, NOW)
    assert sorted((start.group, start.attempt) for start in starts) == [
        (GROUP, 1),
        (GROUP, 2),
        ("serve-1", 1),
        ("serve-1", 2),
    ]


def test_events_of_the_deployment_belong_to_no_timeline():
    event = Event(1, BEGAN, 1, "failure", "upgrade: refused")
    assert build_failures([event], NOW) == ()
