"""When a fallback serves, and when the recipe itself again: a table of situations and answers."""

from __future__ import annotations

import pytest

from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.supervise.degradation import (
    MAX_PAUSE_S,
    Degradation,
    Degrade,
    GroupState,
    GrowBack,
    Stage,
    Stay,
    Surroundings,
    decide,
    is_stuck,
    pause_s,
)
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Phase

NOW = 1000.0
HEALTH = HealthConfig(degrade_after_s=120, grow_back_after_s=60)
FULL = Degradation()
DEGRADED = Degradation(Stage.DEGRADED, serving=0)
TARGET = expand_groups(read("local-dual", ["parallel.data=1"]))


def waiting(for_s: float = 120.0) -> GroupState:
    return GroupState(Phase.RESTARTING, NOW - for_s)


READY = GroupState(Phase.READY)
FAILED = GroupState(Phase.FAILED)
RESTARTING = GroupState(Phase.RESTARTING)


@pytest.mark.parametrize(
    ("groups", "stuck"),
    [
        ([waiting(120)], True),
        ([waiting(119)], False),
        ([READY], False),
        ([RESTARTING], False),
        ([FAILED], False),
        ([waiting(), READY], False),
        ([waiting(), RESTARTING], False),
        ([waiting(), GroupState(Phase.STARTING)], False),
        ([waiting(), FAILED], True),
        ([waiting(1), waiting(130)], True),
        ([], False),
    ],
)
def test_a_deployment_is_stuck_when_no_group_serves_or_will_and_one_waited_for_long(groups, stuck):
    assert is_stuck(groups, HEALTH, NOW) is stuck


@pytest.mark.parametrize(
    ("state", "groups", "seen", "answer"),
    [
        (FULL, [waiting()], Surroundings((0, 1)), Degrade(0)),
        (FULL, [waiting()], Surroundings((1,)), Degrade(1)),
        (FULL, [waiting()], Surroundings(()), Stay()),
        (FULL, [waiting(60)], Surroundings((0,)), Stay()),
        (FULL, [READY], Surroundings((0,)), Stay()),
        # What could not be started is tried again after the others, and after a pause.
        (
            Degradation(refused=(0,), failures=1),
            [waiting()],
            Surroundings((0, 1), failed_at=NOW),
            Degrade(1),
        ),
        (
            Degradation(refused=(0,), failures=1),
            [waiting()],
            Surroundings((0,), failed_at=NOW - 59),
            Stay(),
        ),
        (
            Degradation(refused=(0,), failures=1),
            [waiting()],
            Surroundings((0,), failed_at=NOW - 60),
            Degrade(0),
        ),
        # A fallback that lost its own node makes room for a smaller one, never for itself.
        (DEGRADED, [waiting()], Surroundings((0, 1)), Degrade(1)),
        (DEGRADED, [waiting()], Surroundings((0,)), Stay()),
        # Back to the recipe itself.
        (DEGRADED, [READY], Surroundings(), Stay()),
        (DEGRADED, [READY], Surroundings(full_fits_since=NOW - 59), Stay()),
        (DEGRADED, [READY], Surroundings(full_fits_since=NOW - 60), GrowBack()),
        (DEGRADED, [FAILED], Surroundings(full_fits_since=NOW - 60), GrowBack()),
        (
            Degradation(Stage.DEGRADED, 0, failures=2),
            [READY],
            Surroundings(full_fits_since=NOW - 500, failed_at=NOW - 119),
            Stay(),
        ),
        (
            Degradation(Stage.DEGRADED, 0, failures=2),
            [READY],
            Surroundings(full_fits_since=NOW - 500, failed_at=NOW - 120),
            GrowBack(),
        ),
        (FULL, [READY], Surroundings(full_fits_since=NOW - 500), Stay()),
    ],
)
def test_the_answer_follows_from_what_waits_and_what_there_is_room_for(state, groups, seen, answer):
    assert decide(state, groups, seen, HEALTH, NOW) == answer


@pytest.mark.parametrize("stage", [Stage.DEGRADING, Stage.GROWING, Stage.RETURNING])
def test_nothing_is_decided_while_groups_are_being_started(stage):
    state = Degradation(stage, serving=0)
    seen = Surroundings((0, 1), full_fits_since=0.0)
    assert decide(state, [waiting()], seen, HEALTH, NOW) == Stay()


def test_a_fallback_that_is_started_serves_until_the_recipe_does():
    starting = FULL.degrade(1, TARGET)
    assert (starting.stage, starting.wanted, starting.serving) == (Stage.DEGRADING, 1, None)
    assert starting.is_switching
    assert starting.keeps_others, "the group that waits serves as soon as its node is back"
    serving = starting.succeed()
    assert serving == Degradation(Stage.DEGRADED, serving=1)
    growing = serving.grow_back(TARGET)
    assert growing.is_switching
    assert not growing.keeps_others, "the fallback has NPUs that the recipe needs"
    assert growing.succeed() == FULL


def test_a_recipe_that_cannot_be_started_gives_its_place_back_and_is_tried_later():
    growing = DEGRADED.grow_back(TARGET)
    returning = growing.give_back(TARGET)
    assert (returning.stage, returning.wanted) == (Stage.RETURNING, 0)
    assert returning.succeed() == Degradation(Stage.DEGRADED, serving=0, failures=1)
    again = returning.succeed().grow_back(TARGET).give_back(TARGET).succeed()
    assert again.failures == 2
    assert again.grow_back(TARGET).succeed() == FULL, "its failures are forgotten when it serves"


def test_which_groups_are_those_of_a_fallback():
    """They do without the lost node; those of the recipe itself must not."""
    (spec,) = TARGET
    degrading, growing = FULL.degrade(0, TARGET), DEGRADED.grow_back(TARGET)
    returning = growing.give_back(TARGET)
    of_fallback = {
        state.stage: (state.is_of_fallback(spec.name), state.is_of_fallback("another"))
        for state in (FULL, degrading, DEGRADED, growing, returning)
    }
    assert of_fallback == {
        Stage.FULL: (False, False),
        Stage.DEGRADING: (True, False),
        Stage.DEGRADED: (True, True),
        Stage.GROWING: (False, True),
        Stage.RETURNING: (True, False),
    }


@pytest.mark.parametrize(("before", "stage"), [(FULL, Stage.FULL), (DEGRADED, Stage.DEGRADED)])
def test_a_fallback_that_cannot_be_started_changes_nothing_but_the_next_choice(before, stage):
    after = before.degrade(1, TARGET).fail()
    assert (after.stage, after.serving, after.target) == (stage, before.serving, ())
    assert (after.refused, after.failures) == ((1,), 1)


def test_the_pause_between_tries_doubles_and_has_an_upper_bound():
    pauses = [pause_s(Degradation(failures=count), HEALTH) for count in (1, 2, 3, 4)]
    assert pauses == [60, 120, 240, 480]
    assert pause_s(Degradation(failures=10**6), HEALTH) == MAX_PAUSE_S
