"""The checks of a recipe on the cluster, without a launch: reserve, probe, plan, check, release.

Reservations and agents belong to this process: Ray removes them with it, however it exits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from raylaunch.checks.check_all import check_fallback_recipes
from raylaunch.checks.findings import Finding
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import plan_group
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.gateway.gateway_preflight import preflight_gateway
from raylaunch.runtime.controller.group.planning import check_plan, probe_nodes
from raylaunch.runtime.controller.monitoring.tracing_preflight import preflight_tracing
from raylaunch.runtime.controller.port_turns import ask_plans


def preflight(
    loaded: LoadedRecipe, deployment: str, only: str | None = None
) -> tuple[DeploymentPlan, list[Finding]]:
    """Plan and check a recipe on the connected cluster, from the nodes that `start` would use now.

    The NPUs of all groups are reserved together, and all are planned. With `only`, that group and
    the gateway alone are checked.

    Raises:
        PlacementError: the cluster cannot give the NPUs.
        PlanError: the recipe cannot be laid out on these nodes.
        ClusterError: an agent did not answer.
    """
    # No deployment can have a name with spaces.
    label = f"check of {deployment} {secrets.token_hex(3)}"
    plans: list[LaunchPlan] = []
    # What equal groups have in common is reported once.
    findings: dict[Finding, None] = {}
    with ExitStack() as stack:
        specs = expand_groups(loaded)
        gangs = [_reserve(GroupKey(label, spec.name), spec, stack) for spec in specs]
        for spec, gang in zip(specs, gangs, strict=True):
            is_checked = only in (None, spec.name)
            work = _probe_and_plan(gang, spec, deployment, plans, is_checked=is_checked)
            plan, found = asyncio.run(work)
            plans.append(plan)
            findings.update(dict.fromkeys(found))
    findings.update(dict.fromkeys(check_fallback_recipes(loaded, {})))
    gateway, found = preflight_gateway(loaded, plans)
    findings.update(dict.fromkeys([*found, *preflight_tracing(loaded)]))
    return DeploymentPlan(deployment, loaded.name, tuple(plans), gateway), list(findings)


def _reserve(key: GroupKey, spec: GroupSpec, stack: ExitStack) -> Gang:
    reservation = placement.reserve(key, spec.loaded.recipe, detached=False)
    stack.callback(placement.release, reservation)
    gang = Gang(key, reservation=reservation, kind=ProbeActor, detached=False)
    stack.callback(gang.kill)
    return gang


async def _probe_and_plan(
    gang: Gang,
    spec: GroupSpec,
    deployment: str,
    siblings: Sequence[LaunchPlan],
    *,
    is_checked: bool,
) -> tuple[LaunchPlan, list[Finding]]:
    gang.create(placement.slots(gang.reservation))
    # The checks compare the clocks of the nodes, so all agents must be up before the first probe.
    await gang.demand_all(lambda agent: agent.hello())
    nodes = await probe_nodes(gang, spec.loaded.recipe)
    facts = list(nodes.values())
    others = await ask_plans(deployment)
    neighbours = replace(others, plans=(*others.plans, *siblings))
    plan = plan_group(spec, facts, deployment=deployment, others=neighbours.plans)
    if not is_checked:
        return plan, []
    findings = await check_plan(gang, spec.loaded, facts, plan, neighbours, dry_run=True)
    return plan, findings
