"""A group on Ray replaces agents that died unnoticed, and reserves again when a node is dead."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fake_group import make_plan
from ray import exceptions as ray_exceptions

from raylaunch.errors import LaunchError, NodeError, RecipeError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.runtime.agent.probe_actor import Hello
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import ActorError, ActorLostError, ActorTimeoutError
from raylaunch.runtime.controller.group import agent_replacement, orphan_stop, ray_group
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.health_config import HealthConfig

HELLO = Hello("10.0.0.1", "node", (), 1, "a1b2c3d4e5f60718", "/logs")


class FakeAgents:
    """Stands in for `Gang`: agent 1 answers `hello` as `answers` say, one after the other."""

    key = "d/serve"

    def __init__(self, *answers, name_taken: int = 0) -> None:
        self.reservation = None
        self.answers = list(answers)
        self.created = 0
        self.given_up: list[int] = []
        self.name_taken = name_taken
        self.incomplete_since: float | None = None
        self.alive: dict[int, object] = {}
        self.places: list[dict[int, Slot]] = []

    def create_on(self, slots) -> None:
        if self.created and self.name_taken:
            self.name_taken -= 1
            raise ValueError("the name is taken")
        self.created += 1
        self.places.append(dict(slots))
        self.alive |= dict.fromkeys(slots, "an agent")

    async def ask_all(self, call, *, servers=None):
        return {0: HELLO, 1: self.answers.pop(0)}

    def give_up(self, index: int) -> None:
        self.given_up.append(index)
        self.alive.pop(index, None)

    def kill(self) -> None:
        self.created = 0
        self.alive = {}


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(placement, "request", lambda *_: "the reservation")
    monkeypatch.setattr(placement, "await_reserved", lambda *_: None)
    monkeypatch.setattr(placement, "release", lambda _: None)
    monkeypatch.setattr(placement, "slots", lambda _: [Slot(0, "a", "1.1.1.1")] * 2)
    monkeypatch.setattr(agent_replacement, "NAME_POLL_S", 0.0)
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


def test_a_name_that_stays_taken_is_an_error_that_is_tried_again(group, monkeypatch):
    monkeypatch.setattr(agent_replacement, "NAME_TAKEN_S", 0.0)
    with pytest.raises(LaunchError, match="still has its name") as refused:
        reserve(group, FakeAgents(ActorLostError("dead"), HELLO, name_taken=10**6))
    assert refused.value.why == "the name is taken"


class Adopting(FakeAgents):
    """Agents that answer `adopt`, each with its own of these."""

    async def ask_all(self, call, *, servers=None):
        return {index: self.answers[0][index] for index in servers}


def adopt(group, gang, servers, reservation="the reservation"):
    group.gang = gang
    gang.reservation = reservation
    work = group.adopt(make_plan(), 3, servers, {})
    return asyncio.run(asyncio.wait_for(work, 60))


def test_an_orphan_gets_an_agent_on_the_node_of_its_guard(group, monkeypatch):
    slots = [Slot(1, "node-0", "10.0.0.1"), Slot(0, "node-9", "10.0.0.2")]
    monkeypatch.setattr(placement, "slots", lambda _: slots)
    gang = Adopting({1: 4711})
    gang.alive = {0: "an agent"}
    adopted = adopt(group, gang, (1,))
    assert (gang.given_up, gang.places) == ([1], [{1: slots[1]}])
    assert (adopted.servers, adopted.refused) == ((1,), {})
    assert adopted.plan.servers[1].node.node_id == "node-9", "its raylet came back"


def test_an_agent_without_a_guard_to_adopt_refuses_and_one_that_dies_is_tried_again(group):
    gang = Adopting({0: NodeError("no guard", why="x"), 1: ActorLostError("dead")})
    slots = [Slot(0, "node-0", "10.0.0.1"), Slot(1, "node-1", "10.0.0.2")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "slots", lambda _: slots)
        adopted = adopt(group, gang, (0, 1))
    assert (adopted.servers, adopted.refused) == ((), {0: "no guard: x"})


def test_an_orphan_whose_node_is_not_back_gets_no_agent_yet(group, monkeypatch):
    slots = [Slot(0, "node-0", "10.0.0.1"), Slot(1, "node-1", "")]
    monkeypatch.setattr(placement, "slots", lambda _: slots)
    monkeypatch.setattr(agent_replacement, "alive_nodes", lambda: NODES[:1])
    gang = Adopting({})
    adopted = adopt(group, gang, (1,))
    assert (adopted.servers, adopted.refused, gang.created) == ((), {}, 0)
    assert gang.incomplete_since is None


NODES = [{"NodeID": f"n{end}", "NodeManagerAddress": f"10.0.0.{end}"} for end in (1, 2)]


def test_a_reservation_that_ray_does_not_complete_is_released_once_all_nodes_are_there(
    group, monkeypatch
):
    """As when the GCS was stopped after it had stored a node's death, and nothing more."""
    released = []
    slots = [Slot(0, "n1", "10.0.0.1"), Slot(1, "dead", "")]
    monkeypatch.setattr(placement, "slots", lambda _: slots)
    monkeypatch.setattr(placement, "release", released.append)
    monkeypatch.setattr(agent_replacement, "alive_nodes", lambda: NODES)
    gang = Adopting({})
    adopt(group, gang, (1,))
    assert (released, gang.reservation) == ([], "the reservation"), "Ray may be about to"
    gang.incomplete_since -= agent_replacement.STUCK_S
    assert adopt(group, gang, (1,)).servers == ()
    assert (released, gang.reservation) == (["the reservation"], None)
    assert gang.incomplete_since is None


class GcsError(ray_exceptions.RayError):
    """A GCS that was just started again does not answer in time."""


def test_an_error_of_ray_itself_is_one_of_that_try_and_not_of_the_group(group, monkeypatch):
    def fail(_):
        raise GcsError("Deadline exceeded")

    monkeypatch.setattr(placement, "slots", fail)
    with pytest.raises(ActorError, match="Ray did not answer") as caught:
        adopt(group, Adopting({}), (1,))
    assert caught.value.why == "Deadline exceeded"


def test_npus_are_reserved_again_on_the_nodes_of_the_guards_when_ray_has_lost_its_tables(
    group, monkeypatch
):
    reserved = []
    monkeypatch.setattr(placement, "find_reservation", lambda _: None)
    monkeypatch.setattr(
        placement, "request", lambda *_, **given: reserved.append(given["nodes"]) or "another"
    )
    nodes = [{"NodeID": f"n{end}", "NodeManagerAddress": f"10.0.0.{end}"} for end in (3, 2, 1)]
    monkeypatch.setattr(agent_replacement, "alive_nodes", lambda: nodes[:1])
    gang = Adopting({0: 11, 1: 12})
    assert adopt(group, gang, (0, 1), None).servers == ()
    assert reserved == [], "their nodes are not back"
    monkeypatch.setattr(agent_replacement, "alive_nodes", lambda: nodes)
    slots = [Slot(0, "n1", "10.0.0.1"), Slot(1, "n2", "10.0.0.2")]
    monkeypatch.setattr(placement, "slots", lambda _: slots)
    assert adopt(group, gang, (0, 1), None).servers == (0, 1)
    assert reserved == [("n1", "n2")]
    assert gang.reservation == "another"


def test_a_reservation_that_ray_has_forgotten_is_looked_up_again(group, monkeypatch):
    def fail(_):
        raise KeyError("bundles_to_node_id")

    monkeypatch.setattr(placement, "slots", fail)
    gang = Adopting({})
    assert adopt(group, gang, (1,)).servers == ()
    assert gang.reservation is None


def test_each_server_has_a_node_of_its_own_where_several_have_one_address():
    nodes = [{"NodeID": name, "NodeManagerAddress": "127.0.0.1"} for name in ("a", "b")]
    addresses = {"10.0.0.1": "127.0.0.1", "10.0.0.2": "127.0.0.1"}
    assert agent_replacement.choose_nodes(make_plan(), nodes, addresses) == ("a", "b")
    assert agent_replacement.choose_nodes(make_plan(), nodes[:1], addresses) == ("a", "")


def test_an_agent_that_ray_still_lists_and_that_is_dead_is_not_found(group, monkeypatch):
    monkeypatch.setattr(placement, "find_reservation", lambda _: "the reservation")
    gang = FakeAgents(ActorLostError("dead"))
    gang.find = lambda _: gang.alive.update({0: "an agent", 1: "a dead one"})
    group.gang = gang
    assert asyncio.run(asyncio.wait_for(group.find(), 60)) == {0: HELLO}
    assert group.servers == (0,)


@pytest.mark.parametrize(("grace_s", "stopped"), [(600.0, [1]), (0.0, [])])
def test_a_stop_reaches_servers_without_an_agent(group, monkeypatch, grace_s, stopped):
    found = []

    async def stop_orphans(servers, _gang, _grace_s):
        found.extend(server.index for server in servers)
        return ["server 1: 10.0.0.2 cannot be reached"]

    class Stopping(FakeAgents):
        async def ask_all(self, call, *, servers=None):
            return {0: ["pid 7"]}

    monkeypatch.setattr(orphan_stop, "stop_orphans", stop_orphans)
    group.apply(group._request, HealthConfig(orphan_grace_s=grace_s))
    group.gang, group.chosen = Stopping(), make_plan()
    left = asyncio.run(asyncio.wait_for(group.stop_servers(1.0), 60))
    assert found == stopped
    assert left[0] == "server 0: pid 7"
    assert len(left) == 1 + len(stopped)


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
