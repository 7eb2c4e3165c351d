"""Gateways on several nodes: each gets the newest order, and a silent node delays no other."""

from __future__ import annotations

import asyncio

import pytest
from fake_controllers import DEADLINE_S

from raylaunch.errors import NodeError
from raylaunch.gateway.gateway_messages import GatewayOptions, Member
from raylaunch.runtime.agent.gateway_host import GatewayOrder
from raylaunch.runtime.controller.gateway.node_gateways import NodeGateways


class FakeAgent:
    """Records what it is asked; waits while `held`."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.calls: list[str] = []
        self.refusal: NodeError | None = None
        self.held = asyncio.Event()
        self.held.set()

    async def run_gateway(self, *, order):
        self.orders.append(order.members[0].state)
        self.asked.put_nowait(order.members[0].state)
        await self.held.wait()
        if self.refusal is not None:
            raise self.refusal
        return f"status of {order.members[0].state}"

    async def drain_gateway(self, *, order, ids, drain_s):
        self.calls.append(f"drain {' '.join(ids)} {order.members[0].state}")
        return True

    async def stop_gateway(self, *, order, drain_s):
        self.calls.append("stop")
        if self.refusal is not None:
            raise self.refusal
        return True


def order(state):
    member = Member("serve-0/0", "http://192.0.2.10:8000", state=state)
    return GatewayOrder("d", "i", GatewayOptions(address=""), (member,))


def run(live):
    async def both():
        agents = {"a": FakeAgent(), "b": FakeAgent()}
        await live(NodeGateways(lambda: agents), agents)

    asyncio.run(asyncio.wait_for(both(), DEADLINE_S))


def test_a_silent_node_delays_no_other_and_gets_the_newest_order():
    async def live(nodes, agents):
        agents["a"].held.clear()
        for state in ("down", "draining", "ready"):
            nodes.push(order(state))
            assert await agents["b"].asked.get() == state
        agents["a"].held.set()
        await nodes.start(order("ready"))
        assert agents["a"].orders == ["down", "ready"]
        assert nodes.statuses == ["status of ready"] * 2

    run(live)


def test_a_node_without_haproxy_fails_the_first_start_and_no_later_push():
    async def live(nodes, agents):
        agents["b"].refusal = NodeError("HAProxy is not installed on this node")
        with pytest.raises(NodeError, match="HAProxy"):
            await nodes.start(order("ready"))
        nodes.push(order("down"))
        assert nodes.statuses == ["status of ready"]

    run(live)


def test_draining_waits_at_every_node_that_answers():
    async def live(nodes, agents):
        agents["b"].refusal = NodeError("it does not answer")
        assert await nodes.drain(order("draining"), ["serve-0/0"], 1.0)
        assert agents["a"].calls == ["drain serve-0/0 draining"]
        assert agents["b"].calls == []

    run(live)


def test_a_stop_reports_a_node_that_could_not_be_reached():
    async def live(nodes, agents):
        await nodes.start(order("ready"))
        assert await nodes.stop(order("ready"), 1.0)
        agents["b"].refusal = NodeError("it does not answer")
        assert not await nodes.stop(order("ready"), 1.0)
        assert agents["a"].calls == ["stop", "stop"]

    run(live)
