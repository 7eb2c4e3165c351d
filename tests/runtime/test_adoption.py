"""Servers that lost their agent: what the loop does, without Ray."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fake_group import HEALTH, Stage, make_plan

from raylaunch.errors import LaunchError, NodeError
from raylaunch.node.process.guard_socket import GuardSilentError
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import ActorLostError
from raylaunch.runtime.controller.group.adoption import (
    NODE_WAIT_S,
    find_slots,
    move_nodes,
    sort_answers,
)
from raylaunch.supervise.state import Exit, Phase, ServerSeen

PATIENT = replace(HEALTH, orphan_grace_s=600.0)


def play(work) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


async def ready(health=PATIENT) -> Stage:
    stage = Stage(health)
    await stage.make_ready()
    stage.gang.calls.clear()
    return stage


async def steps(stage: Stage, count: int) -> None:
    for _ in range(count):
        await stage.loop.step()
        stage.clock.now += 1.0
        stage.gang.heartbeat()


def test_a_dead_agent_is_replaced_and_nothing_is_restarted():
    async def work():
        stage = await ready()
        stage.gang.adoptable = {1}
        stage.gang.kill_agent(1)
        assert not stage.loop.can_be_drilled
        await steps(stage, 20)
        assert (stage.phase, stage.loop.record.journal.attempt) == (Phase.READY, 1)
        assert stage.gang.calls == ["adopt", "watch"]
        assert stage.kinds[-2:] == ["orphaned", "adopted"]
        assert stage.loop.can_be_drilled

    play(work())


def test_a_controller_that_took_over_without_secrets_has_them_from_the_adopted_agents():
    async def work():
        stage = await ready()
        stage.gang.adoptable = {1}
        stage.loop.secrets = {}
        stage.gang.kill_agent(1)
        await steps(stage, 3)
        stage.gang.kill_server(0)
        await stage.step_to(Phase.RESTARTING)
        await stage.step_to(Phase.READY)
        assert stage.gang.secrets[-1] == {"VLLM_API_KEY": "of the agents"}

    play(work())


def test_both_agents_at_the_same_moment_are_replaced_in_one_try():
    async def work():
        stage = await ready()
        stage.gang.adoptable = {0, 1}
        stage.gang.kill_agent(0, "node died")
        stage.gang.kill_agent(1, "node died")
        await steps(stage, 20)
        assert stage.phase is Phase.READY
        assert stage.gang.calls == ["adopt", "watch"]

    play(work())


def test_without_a_grace_the_death_of_an_agent_restarts_the_group():
    async def work():
        stage = await ready(HEALTH)
        stage.gang.kill_agent(1)
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING
        assert "adopt" not in stage.gang.calls

    play(work())


def test_a_refusal_is_a_failure_like_before():
    async def work():
        stage = await ready()
        stage.gang.refusal = "its guard runs attempt 7"
        stage.gang.kill_agent(1)
        await stage.step_to(Phase.RESTARTING)
        assert [kind for kind in stage.kinds if kind in ("not-adopted", "failure")] == [
            "not-adopted",
            "failure",
        ]
        assert await stage.step_to(Phase.READY) is Phase.READY
        assert stage.loop.record.journal.attempt == 2

    play(work())


def test_a_node_that_comes_back_in_time_costs_nothing_and_one_that_does_not_a_restart():
    async def work():
        stage = await ready()
        stage.gang.kill_agent(1, "node died")
        await steps(stage, 30)
        assert stage.phase is Phase.READY, "its servers run on meanwhile"
        stage.gang.adoptable = {1}
        await steps(stage, 2)
        assert stage.kinds[-1] == "adopted"

        stage.gang.adoptable = set()
        stage.gang.kill_agent(1, "node died")
        lost_at = stage.clock.now
        while stage.phase is Phase.READY:
            await steps(stage, 1)
        assert NODE_WAIT_S <= stage.clock.now - lost_at <= NODE_WAIT_S + 10

    play(work())


def test_without_a_spare_node_the_servers_run_on_for_the_whole_grace():
    async def work():
        stage = await ready()
        stage.gang.spare = False
        stage.gang.kill_agent(1, "node died")
        lost_at = stage.clock.now
        await steps(stage, int(NODE_WAIT_S) + 60)
        assert stage.phase is Phase.READY, "a restart would wait for the same node"
        while stage.phase is Phase.READY:
            await steps(stage, 1)
        assert 0 <= stage.clock.now - lost_at - PATIENT.orphan_grace_s <= 10

    play(work())


def test_an_error_of_a_try_is_tried_again():
    async def work():
        stage = await ready()
        stage.gang.adoptable = {1}
        stage.gang.faults["adopt"] = [ActorLostError("the new agent died"), LaunchError("again")]
        stage.gang.kill_agent(1)
        await steps(stage, 10)
        assert stage.phase is Phase.READY
        assert stage.gang.calls == ["adopt", "adopt", "adopt", "watch"]

    play(work())


@pytest.mark.parametrize("why", ["node unreachable"])
def test_a_host_that_is_out_of_reach_is_a_failure_like_before(why):
    async def work():
        stage = await ready()
        stage.gang.adoptable = {1}
        stage.gang.kill_agent(1, why)
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING

    play(work())


def test_a_server_that_exits_while_another_has_no_agent_is_a_failure_without_delay():
    async def work():
        stage = await ready()
        stage.gang.kill_agent(1, "node died")
        await steps(stage, 3)
        assert stage.phase is Phase.READY
        stage.gang.show(0, exit=Exit(stage.clock.now, signal=9))
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING

    play(work())


def test_an_agent_that_dies_before_it_has_reported_its_attempt_is_lost_all_the_same():
    async def work():
        stage = await ready()
        stage.gang.adoptable = {1}
        stage.gang.dead.add(1)
        # As its watch reports it: of no attempt, for the agent has never answered.
        stage.gang.update(ServerSeen(1, agent_lost="agent died"))
        await steps(stage, 2)
        assert (stage.phase, stage.kinds[-2:]) == (Phase.READY, ["orphaned", "adopted"])
        stage.gang.update(ServerSeen(1, pid=7))
        assert stage.loop.record.seen[1].pid != 7, "what an earlier attempt was is no news"

    play(work())


def test_a_stop_does_not_wait_for_an_adoption():
    async def work():
        stage = await ready()
        stage.gang.kill_agent(1, "node died")
        await steps(stage, 3)
        stage.loop.request_stop()
        await stage.loop.step()
        assert stage.phase is Phase.STOPPED

    play(work())


SLOT_0 = Slot(0, "node-0", "10.0.0.1")
SLOT_1 = Slot(1, "node-1", "10.0.0.2")


def test_each_server_gets_the_slot_on_the_node_of_its_guard():
    assert find_slots(make_plan(), [SLOT_1, SLOT_0], {}) == [SLOT_0, SLOT_1]


def test_a_node_that_came_back_has_another_id_and_the_same_address():
    back = Slot(1, "node-9", "10.0.0.2")
    slots = find_slots(make_plan(), [back, SLOT_0], {})
    assert slots == [SLOT_0, back]
    moved = move_nodes(make_plan(), slots)
    assert [server.node.node_id for server in moved.servers] == ["node-0", "node-9"]


def test_an_address_of_the_plan_may_be_another_one_in_ray():
    back = Slot(1, "node-9", "192.168.0.2")
    assert find_slots(make_plan(), [back, SLOT_0], {"10.0.0.2": "192.168.0.2"})[1] == back


def test_a_reservation_on_another_host_or_on_a_dead_node_is_no_place():
    for elsewhere in (Slot(1, "node-9", "10.0.0.9"), Slot(1, "node-1", "")):
        slots = find_slots(make_plan(), [SLOT_0, elsewhere], {})
        assert [slot.ip for slot in slots] == ["10.0.0.1", ""]
        assert move_nodes(make_plan(), slots) == make_plan()


def test_only_an_agent_that_answers_can_refuse():
    answers = {
        0: 4711,
        1: NodeError("no", why="attempt 7"),
        2: ActorLostError("dead"),
        3: GuardSilentError("a loaded machine"),
    }
    assert sort_answers(answers) == ((0,), {1: "no: attempt 7"})
