"""The gateways on the nodes beside the controller's (`gateway.nodes: all`), through the agents.

An agent only passes on: its death leaves the gateway of its node as it is, with the membership it
had, until the next agent on that node takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Protocol

from raylaunch.errors import RaylaunchError
from raylaunch.gateway.gateway_messages import GatewayStatus
from raylaunch.runtime.agent.gateway_host import GatewayOrder

log = logging.getLogger(__name__)


class GatewayAgent(Protocol):
    """The part of `AgentHandle` that is needed here."""

    async def run_gateway(self, *, order: GatewayOrder) -> GatewayStatus:
        """Call `Agent.run_gateway`."""
        ...

    async def drain_gateway(
        self, *, order: GatewayOrder, ids: Sequence[str], drain_s: float
    ) -> bool:
        """Call `Agent.drain_gateway`."""
        ...

    async def stop_gateway(self, *, order: GatewayOrder, drain_s: float) -> bool:
        """Call `Agent.stop_gateway`."""
        ...


class NodeGateway:
    """The gateway of one node. Orders are carried out one after the other; only the newest counts.

    So a node that does not answer delays no other.
    """

    def __init__(self) -> None:
        self.status: GatewayStatus | None = None
        self.error: RaylaunchError | None = None
        self.agent: GatewayAgent | None = None
        self._wanted: GatewayOrder | None = None
        self._task: asyncio.Task[None] | None = None

    def push(self, agent: GatewayAgent, order: GatewayOrder) -> None:
        """Have the agent start or update the gateway of its node; does not wait."""
        self.agent = agent
        self._wanted = order
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._carry_out(agent))

    async def settled(self) -> None:
        """Wait until the last order was carried out, or failed."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _carry_out(self, agent: GatewayAgent) -> None:
        while self._wanted is not None:
            order, self._wanted = self._wanted, None
            try:
                self.status = await agent.run_gateway(order=order)
            except RaylaunchError as error:
                log.warning("a gateway cannot be started or reached: %s", error)
                self.error = error
            else:
                self.error = None


class NodeGateways:
    """The gateways of all nodes with an agent, except the controller's own.

    Args:
        find_agents: Returns one living agent for each of these nodes, by the node's id.
    """

    def __init__(self, find_agents: Callable[[], dict[str, GatewayAgent]]) -> None:
        self._find_agents = find_agents
        self._nodes: dict[str, NodeGateway] = {}

    @property
    def statuses(self) -> list[GatewayStatus]:
        """The newest status of each gateway that answered."""
        return [node.status for node in self._nodes.values() if node.status is not None]

    def push(self, order: GatewayOrder) -> None:
        """Have every node start or update its gateway; does not wait."""
        for node_id, agent in self._find_agents().items():
            self._nodes.setdefault(node_id, NodeGateway()).push(agent, order)

    async def start(self, order: GatewayOrder) -> None:
        """Have every node start its gateway.

        Raises:
            RaylaunchError: one of them could not.
        """
        self.push(order)
        await self._settled()
        for node in self._nodes.values():
            if node.error is not None:
                raise node.error

    async def drain(self, order: GatewayOrder, ids: Sequence[str], drain_s: float) -> bool:
        """Push an order in which members are draining; wait until none has a request in flight."""
        self.push(order)
        await self._settled()
        agents = self._answering()
        return await _all(
            agent.drain_gateway(order=order, ids=ids, drain_s=drain_s) for agent in agents
        )

    async def stop(self, order: GatewayOrder, drain_s: float) -> bool:
        """Stop every gateway; return whether all requests finished."""
        await self._settled()
        agents = {**self._find_agents()}.values()
        return await _all(agent.stop_gateway(order=order, drain_s=drain_s) for agent in agents)

    def _answering(self) -> list[GatewayAgent]:
        nodes = self._nodes.values()
        return [node.agent for node in nodes if node.agent is not None and node.error is None]

    async def _settled(self) -> None:
        await asyncio.gather(*(node.settled() for node in self._nodes.values()))


async def _all(calls: Iterable[Coroutine[object, object, bool]]) -> bool:
    """Await all calls; one that fails counts as False."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, RaylaunchError):
            log.warning("a gateway could not be reached: %s", answer)
        elif isinstance(answer, BaseException):
            raise answer
    return all(answer is True for answer in answers)
