"""A group on Ray replaces agents that died unnoticed, and reserves again when a node is dead."""

from __future__ import annotations

import asyncio
import threading

import pytest

from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.runtime.agent.probe_actor import Hello
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import ActorLostError, ActorTimeoutError
from raylaunch.runtime.controller.group import ray_group
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.health_config import HealthConfig

HELLO = Hello("10.0.0.1", "node", (), 1, "a1b2c3d4e5f60718", "/logs")


class FakeAgents:
    """Stands in for `Gang`: agent 1 answers `hello` as `answers` say, one after the other."""

    def __init__(self, *answers, name_taken: int = 0) -> None:
        self.reservation = None
        self.answers = list(answers)
        self.created = 0
        self.given_up: list[int] = []
        self.name_taken = name_taken

    def create(self, slots) -> None:
        if self.created and self.name_taken:
            self.name_taken -= 1
            raise ValueError("the name is taken")
        self.created += 1

    async def ask_all(self, call, *, servers=None):
        return {0: HELLO, 1: self.answers.pop(0)}

    def give_up(self, index: int) -> None:
        self.given_up.append(index)

    def kill(self) -> None:
        self.created = 0


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(placement, "request", lambda *_: "the reservation")
    monkeypatch.setattr(placement, "await_reserved", lambda *_: None)
    monkeypatch.setattr(placement, "release", lambda _: None)
    monkeypatch.setattr(placement, "slots", lambda _: [Slot(0, "a", "1.1.1.1")] * 2)
    monkeypatch.setattr(ray_group, "NAME_POLL_S", 0.0)
    loaded = read("local-dual")
    request = Request("d", loaded).of_group(expand_groups(loaded)[0])
    return ray_group.RayGroup(request, HealthConfig(), Turns("d"), print)


def reserve(group, gang) -> None:
    group.gang = gang
    asyncio.run(asyncio.wait_for(group.reserve((), None), 30))


def test_an_agent_that_died_unnoticed_is_replaced(group):
    gang = FakeAgents(ActorLostError("dead"), HELLO, name_taken=2)
    reserve(group, gang)
    assert gang.given_up == [1]
    assert gang.created == 2
    assert group.log_roots == {0: "/logs", 1: "/logs"}


@pytest.mark.parametrize("server", [2, 99, -1])
def test_a_server_that_does_not_exist_is_refused_with_those_that_do(group, server):
    assert group.agent_of(1) is None, "known, and without an agent now"
    with pytest.raises(RecipeError, match=f"d has no server {server}") as refused:
        group.agent_of(server)
    assert "servers 0 to 1" in refused.value.why


def test_an_agent_that_does_not_answer_is_an_error_for_the_policy(group):
    with pytest.raises(ActorTimeoutError):
        reserve(group, FakeAgents(ActorTimeoutError("silent")))


def test_a_dead_node_in_the_reservation_is_reserved_again(group, monkeypatch):
    dead = [Slot(0, "a", "1.1.1.1"), Slot(1, "b", "")]
    places = [dead, [Slot(0, "a", "1.1.1.1"), Slot(1, "c", "1.1.1.3")]]
    released = []
    monkeypatch.setattr(placement, "slots", lambda _: places.pop(0))
    monkeypatch.setattr(placement, "release", released.append)
    gang = FakeAgents(HELLO)
    gang.reservation = "the old reservation"
    reserve(group, gang)
    assert released == ["the old reservation"]
    assert gang.reservation == "the reservation"


@pytest.mark.parametrize("stage", ["request", "await_reserved"])
def test_a_reservation_that_comes_after_the_stop_is_released(group, monkeypatch, stage):
    """`stop` kills the controller when it is done: what comes later would stay for ever."""
    begun, go = threading.Event(), threading.Event()
    released = []

    def be_slow(*_):
        begun.set()
        go.wait(60)
        return "late"

    monkeypatch.setattr(placement, stage, be_slow)
    monkeypatch.setattr(placement, "release", released.append)

    async def live():
        reserving = asyncio.ensure_future(group.reserve((), None))
        await asyncio.to_thread(begun.wait, 60)
        reserving.cancel()
        asyncio.get_running_loop().call_later(0.1, go.set)
        with pytest.raises(asyncio.CancelledError):
            await reserving
        return list(released)

    late = "late" if stage == "request" else "the reservation"
    assert asyncio.run(asyncio.wait_for(live(), 60)) == [late]


def test_the_primary_s_node_is_a_wish_for_the_first_group_only():
    request = Request("d", read("local-replicas"), primary="10.0.0.2")
    specs = expand_groups(request.loaded)
    assert [request.of_group(spec).primary for spec in specs] == ["10.0.0.2", None]
