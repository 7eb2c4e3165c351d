"""The checks of a recipe on the cluster, without a launch: reserve, probe, plan, check, release.

Reservation and agents belong to this process: Ray removes them with it, however it exits.
"""

from __future__ import annotations

import asyncio
import secrets

from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import plan_group
from raylaunch.recipe.groups import GroupSpec
from raylaunch.runtime.agent.flag_lookup import ask_flags, with_flags
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group.planning import check_plan, probe_nodes
from raylaunch.runtime.controller.port_turns import ask_plans


def preflight(spec: GroupSpec, deployment: str) -> tuple[LaunchPlan, list[Finding]]:
    """Plan and check a recipe on the connected cluster, from the nodes that `start` would use now.

    Raises:
        PlacementError: the cluster cannot give the NPUs.
        PlanError: the recipe cannot be laid out on these nodes.
        ClusterError: an agent did not answer.
    """
    # No deployment can have a name with spaces.
    label = f"check of {deployment} {secrets.token_hex(3)}"
    key = GroupKey(label, spec.name)
    gang = Gang(
        key,
        reservation=placement.reserve(key, spec.loaded.recipe, detached=False),
        kind=ProbeActor,
        detached=False,
    )
    try:
        return asyncio.run(_probe_and_plan(gang, spec, deployment))
    finally:
        gang.kill()
        placement.release(gang.reservation)


async def _probe_and_plan(
    gang: Gang, spec: GroupSpec, deployment: str
) -> tuple[LaunchPlan, list[Finding]]:
    gang.create(placement.slots(gang.reservation))
    # Takes the longest, when the answer is not remembered.
    asking = asyncio.ensure_future(ask_flags(gang))
    # The checks compare the clocks of the nodes, so all agents must be up before the first probe.
    await gang.demand_all(lambda agent: agent.hello())
    nodes = await probe_nodes(gang, spec.loaded.recipe)
    facts = list(with_flags(nodes, await asking).values())
    neighbours = await ask_plans(deployment)
    plan = plan_group(spec, facts, deployment=deployment, others=neighbours.plans)
    return plan, await check_plan(gang, spec.loaded, facts, plan, neighbours)
