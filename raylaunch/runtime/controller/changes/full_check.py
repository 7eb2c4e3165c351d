"""Groups planned and checked while those that they replace still serve on some of the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from raylaunch.checks.check_all import check_nodes, check_recipe, common_names
from raylaunch.checks.findings import Finding, waive
from raylaunch.errors import PlacementError, RaylaunchError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import plan_group
from raylaunch.plan.wanted_weights import drafter_path
from raylaunch.recipe.groups import GroupSpec
from raylaunch.recipe.model import Recipe
from raylaunch.runtime.agent.probe_actor import ProbeActor, TinyModel
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.node_tasks import call_on_nodes
from raylaunch.runtime.controller.group.planning import wanted_ports
from raylaunch.runtime.controller.port_turns import ask_plans

IN_USE = frozenset({"leftovers", "memory-small", "npu-busy", "port-busy"})
"""Ids of the checks that find what a running server uses."""


@dataclass(frozen=True)
class Room:
    """Where the new groups may be."""

    freed: Mapping[str, int]
    """The NPUs that the old groups will release, by Ray's id of the node."""
    excluded: tuple[str, ...] = ()
    """Addresses of nodes that are not used, in Ray's words."""


async def has_room(specs: Sequence[GroupSpec], room: Room, without: tuple[str, ...] = ()) -> bool:
    """Return whether there are NPUs for every server of these groups.

    Args:
        specs: The groups, at least one.
        room: Where they may be.
        without: Ray's ids of further nodes that are not used.
    """
    # The largest stands for all: a guess too small only makes a change slower, or not tried.
    largest = max((spec.loaded.recipe for spec in specs), key=lambda one: one.npus_per_server)
    servers = sum(spec.loaded.recipe.parallel.servers for spec in specs)
    return await asyncio.to_thread(
        placement.has_spare, largest, without, room.excluded, servers, freed=room.freed
    )


async def find_problem(
    specs: Sequence[GroupSpec],
    deployment: str,
    room: Room,
    waived: Mapping[str, str],
) -> str:
    """Return why these groups would not start; "" if nothing is known.

    Args:
        specs: The groups.
        deployment: Its name.
        room: Where they may be.
        waived: Ids of checks whose errors do not count, with the reason given.
    """
    try:
        others = await ask_plans(deployment)
        plans = list(others.plans)
        for spec in specs:
            facts = await _probe(spec.loaded.recipe, room)
            plan = plan_group(spec, facts, deployment=deployment, others=plans)
            findings = waive(find_errors(spec, facts, plan, others.plans, room.freed), waived)
            errors = [one.what for one in findings if one.level == "error"]
            if errors:
                return "; ".join(errors)
            plans.append(plan)
    except RaylaunchError as error:
        return error.what
    return ""


def find_errors(
    spec: GroupSpec,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    others: Sequence[LaunchPlan],
    serving: Collection[str],
) -> list[Finding]:
    """Return the errors of a plan; what is in use on a node of the old ones is none.

    Args:
        spec: The group.
        nodes: The facts of its nodes.
        plan: Its plan.
        others: The plans of other deployments.
        serving: Ray's ids of the nodes where the groups serve that are replaced.
    """
    # A finding has Ray's address of its node. The plan may have another one.
    busy = [node.ip for node in nodes if node.node_id in serving]
    known = common_names(nodes)
    found = [*check_recipe(spec.loaded, nodes[0].versions, known=known)]
    found += check_nodes(spec.loaded, nodes, plan, others)
    errors = [one for one in found if one.level == "error"]
    return [one for one in errors if not (one.id in IN_USE and one.where in busy)]


async def _probe(recipe: Recipe, room: Room) -> list[Facts]:
    """Probe a node for each server, without its NPUs: the old groups have some of them."""
    places = await asyncio.to_thread(placement.places, recipe, room.freed, room.excluded)
    arguments = {
        node_id: (
            recipe.model.tiny,
            recipe.model.path,
            drafter_path(recipe),
            wanted_ports(recipe),
            recipe.hardware.platform != "cpu",
            recipe.timeouts.probe,
        )
        for node_id in places
    }
    answers, silent = await asyncio.to_thread(call_on_nodes, probe_here, arguments)
    if silent:
        raise PlacementError(f"{len(silent)} node(s) did not answer the probe")
    devices = tuple(range(recipe.npus_per_server))
    return [replace(answers[node_id], devices=devices) for node_id in places]


def probe_here(
    tiny: TinyModel | None,
    path: str,
    drafter: str | None,
    ports: tuple[int, ...],
    npu: bool,
    timeout_s: float,
) -> Facts:
    """Return the facts of this node, as an agent's probe does; see `ProbeActor.probe`."""
    prober = ProbeActor(GroupKey("", ""), 0, "")
    return asyncio.run(prober.probe(tiny, path, drafter, ports, npu, timeout_s))
