"""The checks of a recipe on the cluster without a launch: reserve, look from the agents, plan, judge, let go of all.

Reservation and agents belong to this process: they end with it, however it ends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from raylaunch.node import reach
from raylaunch.plan.checks import check_nodes, check_recipe
from raylaunch.plan.facts import Facts
from raylaunch.plan.findings import Finding
from raylaunch.plan.planner import build_plan
from raylaunch.plan.reach_checks import Door, Unreached, check_reach
from raylaunch.plan.spec import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.runtime import placement
from raylaunch.runtime.agent import Agent, state_dir
from raylaunch.runtime.gang import Gang

AGENT_TIMEOUT_S = 60.0
KNOCK_S = 3.0
"""A packet that a firewall drops is answered by nobody."""


class Scout(Agent):
    """An agent that only looks."""

    async def survey(self, tiny: str | None, path: str, ports: tuple[int, ...], npu: bool, timeout_s: float) -> Facts:
        """Make the tiny model if the recipe wants one, and look at this node."""
        await self.prepare(tiny)
        model = str(state_dir() / "models" / f"tiny-{tiny}") if tiny else path
        return await self.probe(model, ports, npu, timeout_s)

    async def open_doors(self, wanted: Mapping[int, tuple[str, Mapping[str, int]]]) -> tuple[Door, ...]:
        """Listen where `wanted` says for this server: address and ports."""
        if self._index not in wanted:
            return ()
        self._servers, doors = await reach.open_doors(*wanted[self._index])
        return doors

    async def knock(self, sources: Mapping[int, str], doors: tuple[Door, ...], timeout_s: float) -> list[Unreached]:
        """Connect from this node to the doors of the others."""
        source = sources.get(self._index)
        return await reach.knock(source, doors, timeout_s) if source else []


def preflight(loaded: LoadedRecipe, deployment: str) -> tuple[LaunchPlan, list[Finding]]:
    """Plan and check a recipe on the connected cluster, from the nodes that `start` would use now.

    Raises:
        PlacementError: the cluster cannot give the NPUs.
        PlanError: the recipe cannot be laid out on these nodes.
        ClusterError: an agent did not answer.
    """
    label = f"check of {deployment} {secrets.token_hex(3)}"  # no deployment can have this name
    gang = Gang(label, placement.reserve(label, loaded.recipe, detached=False), kind=Scout, detached=False)
    try:
        return asyncio.run(_look(gang, loaded, deployment))
    finally:
        gang.kill()
        placement.release(gang.group)


async def _look(gang: Gang, loaded: LoadedRecipe, deployment: str) -> tuple[LaunchPlan, list[Finding]]:
    await gang.create(placement.slots(gang.group), {})
    nodes = await _survey(gang, loaded.recipe)
    plan = build_plan(loaded, nodes, deployment=deployment)
    findings = [*check_recipe(loaded, nodes[0].versions), *check_nodes(loaded, nodes, plan)]
    return plan, [*findings, *check_reach(await _try_ways(gang, plan))]


async def _survey(gang: Gang, recipe: Recipe) -> list[Facts]:
    model, timeout_s = recipe.model, recipe.timeouts.probe
    ports = (recipe.network.http_port, recipe.network.rpc_port)
    asked = (model.tiny, model.path, ports, recipe.hardware.platform != "cpu", timeout_s)
    seen = await gang.demand("survey", *asked, timeout_s=timeout_s + AGENT_TIMEOUT_S)
    return [seen[index] for index in sorted(seen)]


async def _try_ways(gang: Gang, plan: LaunchPlan) -> list[Unreached]:
    """Both ways between all hosts; nothing to try when there is only one."""
    first = {server.node.ip: server for server in reversed(plan.servers)}
    if len(first) < 2:
        return []
    wanted = {}
    for ip, server in first.items():
        ports = {"http": server.ports.http, "rpc": server.ports.rpc, "any": 0}
        if server.ports.hccl_base is not None:
            ports["hccl"] = server.ports.hccl_base
        wanted[server.index] = (ip, ports)
    opened = await gang.demand("open_doors", wanted, timeout_s=AGENT_TIMEOUT_S)
    doors = tuple(door for some in opened.values() for door in some)
    sources = {index: ip for index, (ip, _) in wanted.items()}
    missed = await gang.demand("knock", sources, doors, KNOCK_S, timeout_s=AGENT_TIMEOUT_S)
    return [one for index in sorted(missed) for one in missed[index]]
