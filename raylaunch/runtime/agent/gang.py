"""All agents of a group: created together, found again by name, called in parallel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raylaunch.errors import RaylaunchError
from raylaunch.node.process.process_markers import new_instance
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.agent_handle import AgentHandle, agent_handle, agent_name, find_agent
from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.cluster.placement import Slot

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Gang:
    """The agents of a group by server index.

    An agent that is lost is None: its index stays known, so that `create` can replace it.
    """

    key: GroupKey
    instance: str = field(default_factory=new_instance)
    """Id of this start of the group, in the marker of every process it starts."""
    reservation: Any = None
    """Ray's placement group that holds the NPUs."""
    incomplete_since: float | None = None
    """Since when it lacks the NPUs of a server although all nodes are there (monotonic clock)."""
    agents: dict[int, AgentHandle | None] = field(default_factory=dict)
    kind: type[ProbeActor] = Agent
    detached: bool = True
    """Whether the agents survive the process that created them."""

    def create(self, slots: Sequence[Slot]) -> None:
        """Create the agent of server i on slot i, for every server that has no agent."""
        missing = {
            index: slot for index, slot in enumerate(slots) if self.agents.get(index) is None
        }
        if missing:
            self.create_on(missing)

    def create_on(self, slots: Mapping[int, Slot]) -> None:
        """Create the agents of these servers on their slots."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # One actor class for all agents: Ray then uploads the packed code of raylaunch once.
        actor_class = ray.remote(packaged(self.kind))
        bundles = ray.util.placement_group_table(self.reservation)["bundles"]
        for index, slot in slots.items():
            strategy = PlacementGroupSchedulingStrategy(
                placement_group=self.reservation, placement_group_bundle_index=slot.bundle
            )
            options = actor_class.options(
                name=agent_name(self.key, index),
                namespace=NAMESPACE,
                lifetime="detached" if self.detached else None,
                num_cpus=0,
                resources={"NPU": bundles[slot.bundle]["NPU"]},
                scheduling_strategy=strategy,
                max_restarts=0,
            )
            actor = options.remote(self.key, index, self.instance)
            self.agents[index] = agent_handle(actor, index)

    def find(self, servers: int) -> None:
        """Look up the agents of servers 0 to `servers` - 1 that are alive."""
        for index in range(servers):
            self.agents[index] = find_agent(self.key, index)

    def give_up(self, index: int) -> None:
        """Drop a lost agent. If it comes back from behind a cut network, Ray kills it."""
        agent = self.agents.get(index)
        self.agents[index] = None
        if agent is not None:
            log.warning("gave up %s of %s", agent.peer, self.key)
            agent.kill()

    @property
    def alive(self) -> dict[int, AgentHandle]:
        """The agents that are not lost."""
        return {index: agent for index, agent in self.agents.items() if agent is not None}

    async def ask_all(
        self,
        call: Callable[[AgentHandle], Awaitable[T]],
        *,
        servers: Collection[int] | None = None,
    ) -> dict[int, T | RaylaunchError]:
        """Call every agent that is not lost, in parallel, and return the answers by server.

        The answer of an agent that failed, or that did not answer in time, is the error.

        Args:
            call: Makes the call: `lambda agent: agent.hello()`.
            servers: Only the agents of these servers.
        """
        asked = self.alive
        if servers is not None:
            asked = {index: agent for index, agent in asked.items() if index in servers}
        calls = [_ask_one(agent, call) for agent in asked.values()]
        answers = await asyncio.gather(*calls)
        return dict(zip(asked, answers, strict=True))

    async def demand_all(
        self,
        call: Callable[[AgentHandle], Awaitable[T]],
        *,
        servers: Collection[int] | None = None,
    ) -> dict[int, T]:
        """Call as `ask_all` does, but every agent must answer.

        Raises:
            RaylaunchError: the first error among the answers, by server index.
        """
        answers = await self.ask_all(call, servers=servers)
        demanded: dict[int, T] = {}
        for index, answer in sorted(answers.items()):
            if isinstance(answer, RaylaunchError):
                raise answer
            demanded[index] = answer
        return demanded

    def kill(self) -> None:
        """Kill every agent. Servers that run are first stopped, or wait for another agent."""
        for agent in self.alive.values():
            agent.kill()
        self.agents = {}


async def _ask_one(
    agent: AgentHandle, call: Callable[[AgentHandle], Awaitable[T]]
) -> T | RaylaunchError:
    try:
        return await call(agent)
    except RaylaunchError as error:
        log.warning("%s", error.what)
        return error
