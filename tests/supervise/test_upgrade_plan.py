"""The steps of an upgrade: beside where there is room, else one after the other, or none."""

from __future__ import annotations

import pytest

from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.supervise.upgrade_plan import (
    Confirm,
    Remove,
    Start,
    Switch,
    find_gap,
    kept_and_new,
    name_generation,
    plan_upgrade,
)

TWO = ("parallel.replicas=2", "parallel.data=1")


def specs(*settings, generation=1):
    return name_generation(expand_groups(read("local-dual", (*TWO, *settings))), generation)


def names(groups):
    return [spec.name for spec in groups]


def test_where_there_is_room_all_new_groups_start_beside_the_old():
    old = specs()
    new = specs("args.max-num-seqs=4", generation=2)
    green = ("serve-0.g2", "serve-1.g2")
    assert plan_upgrade(old, new, beside=True) == (
        Start(new),
        Confirm(green),
        Switch(green),
        Remove(("serve-0", "serve-1")),
    )
    assert names(kept_and_new(old, new)) == list(green)


def test_without_room_group_follows_group():
    old = specs()
    new = specs("args.max-num-seqs=4", generation=2)
    steps = plan_upgrade(old, new, beside=False)
    assert steps[:4] == (
        Remove(("serve-0",)),
        Start((new[0],)),
        Confirm(("serve-0.g2",)),
        Switch(("serve-0.g2",)),
    )
    assert steps[4] == Remove(("serve-1",))
    assert len(steps) == 8


def test_settings_that_no_server_reads_touch_none():
    old = specs()
    new = specs("health.max_restarts=9", "gateway.hold_s=5", "timeouts.stop=9", generation=2)
    for beside in (True, False):
        assert plan_upgrade(old, new, beside=beside) == ()
    assert names(kept_and_new(old, new)) == ["serve-0", "serve-1"]


def test_other_replicas_of_the_same_recipe_are_only_added_or_removed():
    old = specs()
    more = specs("parallel.replicas=3", generation=2)
    assert plan_upgrade(old, more, beside=True) == (
        Start((more[2],)),
        Confirm(("serve-2.g2",)),
        Switch(("serve-2.g2",)),
    )
    less = specs("parallel.replicas=1", generation=2)
    assert plan_upgrade(old, less, beside=True) == (Remove(("serve-1",)),)
    assert names(kept_and_new(old, more)) == ["serve-0", "serve-1", "serve-2.g2"]


def test_an_upgrade_back_is_an_upgrade_like_any():
    second = specs("args.max-num-seqs=4", generation=2)
    third = specs(generation=3)
    steps = plan_upgrade(second, third, beside=True)
    assert steps[-1] == Remove(("serve-0.g2", "serve-1.g2"))


ONE = ("parallel.replicas=1",)


@pytest.mark.parametrize(
    ("settings", "serving", "beside", "gap"),
    [
        (ONE, ["serve-0"], False, "serve-0"),
        (ONE, ["serve-0"], True, None),
        (ONE, [], False, None),
        ((), ["serve-0", "serve-1"], False, None),
        ((), ["serve-0"], False, "serve-0"),
        ((), ["serve-1"], False, None),
    ],
)
def test_a_gap_is_a_removal_after_which_no_group_serves(settings, serving, beside, gap):
    old = specs(*settings)
    new = specs(*settings, "args.max-num-seqs=4", generation=2)
    assert find_gap(plan_upgrade(old, new, beside=beside), serving) == gap


def test_fewer_replicas_leave_no_gap():
    steps = plan_upgrade(specs(), specs(*ONE, generation=2), beside=False)
    assert find_gap(steps, ["serve-0", "serve-1"]) is None
