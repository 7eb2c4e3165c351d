"""Checks on the kind of board: the recipe's, the one that is there, and the one that vllm-ascend was built for."""

from dataclasses import replace

import pytest

from raylaunch.checks.board_checks import belong_together
from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.plan.facts import Facts, Npu
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

A2, A3 = "910B1", "Ascend910"
A2_PAIR = {"vllm": "0.23.0"}


def npus(name):
    return tuple(Npu(n, n, 0, name, "OK", "0000:C1:00.0", 3400, 65536) for n in range(16))


def node(name=A2, built="A2", number=10):
    versions = {"vllm-ascend": "0.23.0"} | ({"vllm-ascend-board": built} if built else {})
    return Facts(
        f"192.0.2.{number}", f"node{number}", interface="eth0", npus=npus(name), versions=versions
    )


def check(first, second=None, recipe="a2-dual"):
    loaded = read(recipe)
    nodes = [first, second or replace(first, ip="192.0.2.11", hostname="node11")][
        : loaded.recipe.parallel.servers
    ]
    return [
        one for one in check_nodes(loaded, nodes, build_plan(loaded, nodes)) if "board" in one.id
    ]


def test_a_build_for_another_board_on_one_host_names_that_host():
    [one] = check(node(), node(built="A3", number=11))
    assert (one.id, one.level, one.where) == ("vllm-ascend-board", "error", "192.0.2.11")
    assert "built for A3, and the board is A2" in one.what
    assert "-a3" in one.todo


def test_an_a2_image_on_an_a3_host_is_refused():
    assert [(one.id, one.level) for one in check(node(A3, "A2"), recipe="a3-single")] == [
        ("vllm-ascend-board", "error")
    ]


def test_a_build_is_judged_by_the_recipe_where_no_board_was_seen():
    blind = replace(node(built="A3"), npus=())
    assert {one.id for one in check(blind)} == {"vllm-ascend-board"}


def test_a_recipe_for_another_board_is_a_warning():
    found = check(node(A3, "A3"))
    assert [(one.id, one.level, one.where) for one in found] == [
        ("other-board", "warning", "192.0.2.10"),
        ("other-board", "warning", "192.0.2.11"),
    ]
    assert found[0].seen == A3


@pytest.mark.parametrize("name", ["910B1", "910B2", "910B3", "910B4"])
def test_a2_boards_are_known_by_their_npus(name):
    assert check(node(name)) == []


@pytest.mark.parametrize("name", ["Ascend910", "Ascend910_9391"])
def test_a3_boards_are_known_by_their_npus(name):
    assert check(node(name, "A3"), recipe="a3-single") == []


@pytest.mark.parametrize(("name", "built"), [("Ascend950DT", "A5"), ("310P3", "_310P")])
def test_other_boards_are_named(name, built):
    assert {one.id for one in check(node(name, built))} == {"other-board"}


@pytest.mark.parametrize(
    "facts", [node(built=""), node("Something", ""), replace(node(built=""), npus=())]
)
def test_what_nobody_knows_is_not_judged(facts):
    assert check(facts) == []


@pytest.mark.parametrize(
    ("recipe", "tag", "board"),
    [
        ("a2-dual", "v0.23.0-a3", "A3"),
        ("a2-dual", "v0.23.0-a3-openeuler", "A3"),
        ("a3-single", "v0.23.0-310p", "310P"),
    ],
)
def test_an_image_for_another_board_is_refused(recipe, tag, board):
    loaded = read(recipe, [f"container.tag={tag}"])
    [one] = [one for one in check_recipe(loaded, {}) if one.id == "image-board"]
    assert (one.level, one.where) == ("error", "--set")
    assert f"is for {board} boards" in one.what


@pytest.mark.parametrize(
    ("recipe", "tag"), [("a2-dual", "v0.23.0"), ("a3-single", "v0.23.0-a3"), ("a3-single", "v0.23")]
)
def test_an_image_for_the_board_is_left_alone(recipe, tag):
    loaded = read(recipe, [f"container.tag={tag}"])
    assert "image-board" not in {one.id for one in check_recipe(loaded, {})}


@pytest.mark.parametrize(
    ("vllm", "ascend", "tested", "fits"),
    [
        ("0.23.0", "0.23.0.post1", (), True),
        ("0.23.0+empty", "0.23.0rc1", (), True),
        ("0.32.0", "0.23.0.post1", (), False),
        ("0.23.1", "0.23.0", (), False),
        ("0.14.1", "0.14.0rc1", (), True),
        ("0.14.0", "0.14.0rc1", (), False),
        ("0.25.0", "0.25.1rc1", ("0.25.0",), True),
        ("0.26.1.dev3+g1234", "0.26.0rc1", (), True),
        ("0.23.0", "0.27.0.dev12+gabc", (), True),
    ],
)
def test_each_vllm_ascend_has_one_vllm(vllm, ascend, tested, fits):
    assert belong_together(vllm, ascend, tested) == fits


def test_a_vllm_of_another_release_is_refused_on_its_host():
    loaded = read("a2-dual")
    wrong = {"vllm": "0.32.0", "vllm-ascend": "0.23.0.post1"}
    nodes = [replace(node(), versions=wrong), replace(node(number=11), versions=wrong | A2_PAIR)]
    found = check_nodes(loaded, nodes, build_plan(loaded, nodes))
    [one] = [each for each in found if each.id == "vllm-ascend-pair"]
    assert (one.level, one.where) == ("error", "192.0.2.10")
    assert "made for vLLM 0.23.0" in one.what
