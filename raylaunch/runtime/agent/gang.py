"""All agents of a deployment: made together, found again by name, asked in parallel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylaunch.errors import ClusterError, RaylaunchError
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.probe_actor import Scout
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.cluster.placement import Slot


@dataclass
class Gang:
    """The agents by server index. An agent that is lost is None."""

    deployment: str
    group: Any = None
    agents: dict[int, Any] = field(default_factory=dict)
    kind: type[Scout] = Agent
    detached: bool = True
    """Whether the agents live on when the process that made them ends."""

    def create(self, slots: Sequence[Slot]) -> None:
        """Create one agent per slot, server i on slot i; those that live are kept."""
        missing = [index for index in range(len(slots)) if self.agents.get(index) is None]
        if missing:
            self._create_on({index: slots[index] for index in missing})

    def _create_on(self, places: Mapping[int, Slot]) -> None:
        import ray

        kind = ray.remote(packaged(self.kind))  # once for all: the code goes to Ray with it
        bundles = ray.util.placement_group_table(self.group)["bundles"]
        for index, slot in places.items():
            self.agents[index] = self._create_one(kind, index, slot, bundles[slot.bundle]["NPU"])

    def _create_one(self, kind: Any, index: int, slot: Slot, npus: float) -> Any:  # noqa: ANN401
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=slot.bundle
        )
        actor = kind.options(
            name=agent_name(self.deployment, index),
            namespace=NAMESPACE,
            lifetime="detached" if self.detached else None,
            num_cpus=0,
            resources={"NPU": npus},
            scheduling_strategy=strategy,
            max_restarts=0,
        )
        return actor.remote(self.deployment, index)

    def find(self, servers: int) -> None:
        """Find the agents that are alive."""
        import ray

        for index in range(servers):
            try:
                self.agents[index] = ray.get_actor(agent_name(self.deployment, index), NAMESPACE)
            except ValueError:
                self.agents[index] = None

    def give_up(self, index: int) -> None:
        """Forget an agent that is lost. Should it come back from behind a cut network, Ray ends it."""
        import ray

        agent, self.agents[index] = self.agents.get(index), None
        if agent is not None:
            ray.kill(agent, no_restart=True)

    @property
    def alive(self) -> dict[int, Any]:
        """The agents that are not lost."""
        return {index: agent for index, agent in self.agents.items() if agent is not None}

    async def ask(self, method: str, *args: Any, timeout_s: float) -> dict[int, Any]:  # noqa: ANN401
        """Call `method` on every living agent at once; an agent that fails or is late answers with the exception."""
        calls = {
            index: self._ask_one(agent, method, args, timeout_s)
            for index, agent in self.alive.items()
        }
        answers = await asyncio.gather(*calls.values())
        return dict(zip(calls, answers, strict=True))

    async def demand(self, method: str, *args: Any, timeout_s: float) -> dict[int, Any]:  # noqa: ANN401
        """As `ask`, but every agent must answer.

        Raises:
            RaylaunchError: the first refusal.
        """
        answers = await self.ask(method, *args, timeout_s=timeout_s)
        for index, answer in answers.items():
            if isinstance(answer, BaseException):
                raise _explain(index, method, answer)
        return answers

    async def _ask_one(
        self,
        agent: Any,  # noqa: ANN401
        method: str,
        args: tuple[Any, ...],
        timeout_s: float,
    ) -> Any:  # noqa: ANN401
        import ray

        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(agent, method).remote(*args)
        except (TimeoutError, ray.exceptions.RayError, RaylaunchError) as error:
            return error

    def kill(self) -> None:
        """End every agent; the guards end what is left below them."""
        import ray

        for agent in self.alive.values():
            ray.kill(agent, no_restart=True)
        self.agents = {}


def agent_name(deployment: str, index: int) -> str:
    """Ray name of the agent of server `index`."""
    return f"agent:{deployment}:{index}"


def _explain(index: int, method: str, error: BaseException) -> RaylaunchError:
    cause = getattr(error, "cause", None)
    for known in (cause, error):
        if isinstance(known, RaylaunchError):
            return known
    said = str(error).strip().splitlines() or ["no answer in time"]
    return ClusterError(
        f"the agent of server {index} did not answer ({method})",
        why=f"{type(error).__name__}: {said[0]}",
        todo="`ray status` shows whether its node is alive; its log is in Ray's session folder on that node",
    )
