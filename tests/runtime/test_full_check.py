"""Before the recipe itself takes over from its fallback: what is judged, and what is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from raylaunch.errors import PlacementError
from raylaunch.plan.facts import Facts, Interface, Listener, ProbeFailure
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller.changes import full_check
from raylaunch.runtime.controller.changes.full_check import Room, find_problem
from raylaunch.runtime.controller.port_turns import Neighbours

SPECS = expand_groups(read("a2-dual", ["secrets=[VLLM_API_KEY]", "network.http_port=20004"]))
BACK, BUSY = "192.0.2.10", "192.0.2.11"


def host(ip: str, *, ports=(), npus: int = 8) -> Facts:
    listeners = tuple(Listener("0.0.0.0", port, 4711, "redis") for port in ports)
    devices = tuple(range(npus))
    return Facts(ip, interface="eth1", node_id=f"id-{ip}", listeners=listeners, devices=devices)


@pytest.fixture
def problem(monkeypatch):
    """Return what is found when the nodes have these facts."""

    async def no_others(_deployment):
        return Neighbours()

    monkeypatch.setattr(full_check, "ask_plans", no_others)

    def _problem(*facts: Facts, freed=(BUSY,), waived=None) -> str:
        found = {one.node_id: one for one in facts}
        monkeypatch.setattr(placement, "places", lambda *_: list(found))
        monkeypatch.setattr(full_check, "call_on_nodes", lambda *_: (found, ()))
        room = Room({f"id-{ip}": 8 for ip in freed})
        return asyncio.run(find_problem(SPECS, "d", room, waived or {}))

    return _problem


def test_nodes_without_errors_have_no_problem(problem):
    assert problem(host(BACK), host(BUSY)) == ""


def test_what_uses_the_port_on_a_node_that_is_back_is_a_problem(problem):
    assert "20004" in problem(host(BACK, ports=[20004]), host(BUSY))


def test_what_uses_the_port_where_the_fallback_serves_is_the_fallback(problem):
    assert problem(host(BUSY, ports=[20004]), host(BACK)) == ""
    assert "20004" in problem(host(BUSY, ports=[20004]), host(BACK), freed=())


def test_what_uses_the_port_is_the_fallback_also_where_its_address_is_that_of_another_interface(
    problem,
):
    facts = replace(
        host(BUSY, ports=[20004]),
        interfaces=(Interface("eth1", ("192.0.2.99/24",)),),
    )
    assert problem(facts, host(BACK)) == ""


def test_an_error_that_the_fallback_is_not_the_cause_of_is_a_problem_on_its_node_too(problem):
    hangs = ProbeFailure("npus", "npu-smi did not return", hung=True)
    assert "does not return" in problem(replace(host(BUSY), failures=(hangs,)), host(BACK))


def test_an_error_that_start_was_to_skip_is_none_here_either(problem):
    facts = (host(BACK, ports=[20004]), host(BUSY))
    assert problem(*facts, waived={"port-busy": "known"}) == ""


def test_nodes_that_are_gone_again_are_a_problem(problem, monkeypatch):
    def too_few(*_):
        raise PlacementError("too few NPUs: one node is gone")

    problem(host(BACK), host(BUSY))
    monkeypatch.setattr(placement, "places", too_few)
    assert "gone" in asyncio.run(find_problem(SPECS, "d", Room({}), {}))


def test_a_node_that_does_not_answer_is_a_problem(problem, monkeypatch):
    problem(host(BACK), host(BUSY))
    monkeypatch.setattr(full_check, "call_on_nodes", lambda *_: ({}, ("id",)))
    assert "1 node(s) did not answer" in asyncio.run(find_problem(SPECS, "d", Room({}), {}))


def test_a_place_is_a_node_with_enough_npus_that_are_free_or_become_free(monkeypatch):
    nodes = [
        {"NodeID": "c", "NodeManagerAddress": "10.0.0.3", "Resources": {"NPU": 8}},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Resources": {"NPU": 8}},
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Resources": {"NPU": 8}},
    ]
    monkeypatch.setattr(placement, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(placement, "_free_npus", lambda: {"a": 0.0, "b": 8.0, "c": 8.0})
    monkeypatch.setattr(placement, "_shortage", lambda *_: PlacementError("too few"))
    recipe = SPECS[0].loaded.recipe
    assert placement.places(recipe, {"a": 8}) == ["a", "b"]
    assert placement.places(recipe, {}) == ["b", "c"]
    with pytest.raises(PlacementError):
        placement.places(recipe, {}, excluded=("10.0.0.3",))
    assert placement.has_spare(recipe, (), servers=3, freed={"a": 8})
    assert not placement.has_spare(recipe, (), servers=3)
    assert not placement.has_spare(recipe, ("b",), servers=3, freed={"a": 8})
