"""What an upgrade changes on the command lines: flags and variables, equal groups as one."""

from __future__ import annotations

from raylaunch.plan.facts import Facts
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.supervise.plan_changes import PlanChange, plan_changes

NODES = {
    "serve-0": [Facts("192.0.2.10", interface="eth0")],
    "serve-1": [Facts("192.0.2.11", interface="eth0")],
}
BOTH = ("serve-0", "serve-1")


def changes(*settings: str, recipe: str = "a2-replicas", places=NODES) -> list[PlanChange]:
    old, new = read(recipe), read(recipe, settings)
    return plan_changes(expand_groups(old), expand_groups(new), places)


def test_flags_and_variables_that_differ_are_named_once_for_equal_groups():
    found = changes("args.max-num-seqs=64", "env.HCCL_BUFFSIZE=333", "args.enforce-eager=true")
    assert {(one.where, one.name, one.new) for one in found} == {
        (BOTH, "--max-num-seqs", "64"),
        (BOTH, "HCCL_BUFFSIZE", "333"),
        (BOTH, "--enforce-eager", "set"),
    }
    (flag,) = [one for one in found if one.name == "--enforce-eager"]
    assert flag.old == "-"


def test_a_flag_that_is_taken_out_has_no_new_value():
    (gone,) = [one for one in changes("args.max-num-seqs=null") if one.name == "--max-num-seqs"]
    assert gone.new == "-"
    assert gone.old.isdigit()


def test_settings_that_no_server_reads_change_no_plan():
    assert changes("gateway.hold_s=9", "health.max_restarts=3", "timeouts.start=77") == []


def test_a_new_group_is_one_line_and_leaves_the_others_alone():
    assert changes("parallel.replicas=3") == [PlanChange(("serve-2",), "servers", "0", "1")]
    assert changes("parallel.replicas=1") == [PlanChange(("serve-1",), "servers", "1", "0")]


def test_more_servers_than_nodes_are_planned_on_example_hosts():
    found = changes("parallel.data=4", recipe="a2-dual", places={"serve-0": NODES["serve-0"]})
    assert PlanChange(("serve-0",), "servers", "2", "4") in found
    sizes = [one for one in found if one.name == "--data-parallel-size"]
    assert [(one.old, one.new) for one in sizes] == [("2", "4")]
