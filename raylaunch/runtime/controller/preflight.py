"""The checks of a recipe on the cluster, without a launch: reserve, probe, plan, check, release.

Reservation and agents belong to this process: Ray removes them with it, however it exits.
"""

from __future__ import annotations

import asyncio
import secrets

from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller.planning import plan_and_check, probe_nodes
from raylaunch.runtime.controller.port_turns import ask_plans


def preflight(loaded: LoadedRecipe, deployment: str) -> tuple[LaunchPlan, list[Finding]]:
    """Plan and check a recipe on the connected cluster, from the nodes that `start` would use now.

    Raises:
        PlacementError: the cluster cannot give the NPUs.
        PlanError: the recipe cannot be laid out on these nodes.
        ClusterError: an agent did not answer.
    """
    # No deployment can have a name with spaces.
    label = f"check of {deployment} {secrets.token_hex(3)}"
    gang = Gang(
        label,
        group=placement.reserve(label, loaded.recipe, detached=False),
        kind=ProbeActor,
        detached=False,
    )
    try:
        return asyncio.run(_probe_and_plan(gang, loaded, deployment))
    finally:
        gang.kill()
        placement.release(gang.group)


async def _probe_and_plan(
    gang: Gang, loaded: LoadedRecipe, deployment: str
) -> tuple[LaunchPlan, list[Finding]]:
    gang.create(placement.slots(gang.group))
    # The checks compare the clocks of the nodes, so all agents must be up before the first probe.
    await gang.demand_all(lambda agent: agent.hello())
    nodes = await probe_nodes(gang, loaded.recipe)
    neighbours = await ask_plans(deployment)
    return await plan_and_check(
        gang, loaded, deployment, list(nodes.values()), neighbours, dry_run=True
    )
