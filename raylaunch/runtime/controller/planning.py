"""From a request to a plan that may be launched: order the places, look from the agents, plan, judge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.checks.findings import Finding
from raylaunch.checks.join_checks import check_joined
from raylaunch.checks.ping_checks import Ping, Pinged, check_pings, choose_pings
from raylaunch.checks.port_checks import check_silent_neighbours
from raylaunch.checks.reach_checks import Unreached, check_reach
from raylaunch.errors import ChecksFailedError, LaunchError, PlacementError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan, Ports
from raylaunch.plan.planner import build_plan
from raylaunch.plan.ports import HCCL_PORTS, is_fixed
from raylaunch.plan.wanted_weights import drafter_path
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.recipe_settings import given_args
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.cluster.missing_workers import missing_workers
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.controller.port_turns import Neighbours

AGENT_TIMEOUT_S = 60.0
KNOCK_S = 3.0
"""A packet that a firewall drops is answered by nobody."""
PING_S = 8.0
"""For the pings between NPUs: a good one takes 2-3 s, and each NPU sends at most two."""
PORTS_PATIENCE_S = 15.0
"""How long a restart waits for its ports to become free: long enough for a socket that closes late."""


def put_primary_first(slots: list[Slot], primary: str | None) -> list[Slot]:
    """Order the reserved places so that the wanted primary comes first.

    Raises:
        PlacementError: it is not among them.
    """
    if primary is None:
        return slots
    if all(slot.ip != primary for slot in slots):
        raise PlacementError(
            f"the primary {primary} is not among the nodes that were reserved",
            why=f"reserved: {', '.join(slot.ip for slot in slots)}",
            todo="give the Ray address of one of these nodes to --primary, or leave it out",
        )
    return sorted(slots, key=lambda slot: slot.ip != primary)


async def look(gang: Gang, recipe: Recipe) -> dict[int, Facts]:
    """Have every agent make what the recipe wants made, and look at its node.

    Raises:
        RaylaunchError: an agent refused or did not answer.
    """
    model, timeout_s = recipe.model, recipe.timeouts.probe
    network = recipe.network
    hccl = range(network.hccl_base_port, network.hccl_base_port + HCCL_PORTS)
    ports = (network.http_port, network.rpc_port, *hccl)
    asked = (
        model.tiny,
        model.path,
        drafter_path(recipe),
        ports,
        recipe.hardware.platform != "cpu",
        timeout_s,
    )
    seen = await gang.demand("survey", *asked, timeout_s=timeout_s + AGENT_TIMEOUT_S)
    return {index: seen[index] for index in sorted(seen)}


async def plan_and_check(
    gang: Gang,
    loaded: LoadedRecipe,
    deployment: str,
    nodes: Sequence[Facts],
    neighbours: Neighbours,
) -> tuple[LaunchPlan, list[Finding]]:
    """Plan on the nodes as they are, and check recipe, nodes and the ways between them and between their NPUs.

    Raises:
        PlanError: the nodes cannot hold the recipe.
    """
    plan = build_plan(loaded, nodes, deployment=deployment, others=neighbours.plans)
    asked = all(node.known_flags for node in nodes)
    findings = [*check_recipe(loaded, nodes[0].versions, flags_asked=asked)]
    findings += check_nodes(loaded, nodes, plan, neighbours.plans)
    findings += check_silent_neighbours(neighbours.silent)
    findings += check_joined(missing_workers())
    pings = choose_pings(loaded, nodes, plan)
    missed, pinged = await asyncio.gather(_try_ways(gang, plan), _ping_npus(gang, pings))
    return plan, [
        *findings,
        *check_reach(missed, {server.node.ip: server.node.interface for server in plan.servers}),
        *check_pings(loaded, nodes, plan, pinged),
    ]


async def _try_ways(gang: Gang, plan: LaunchPlan) -> list[Unreached]:
    """Both ways between all hosts; nothing to try when there is only one."""
    first = {server.node.ip: server for server in reversed(plan.servers)}
    if len(first) < 2:
        return []
    wanted = {server.index: (ip, _ports_to_try(server.ports)) for ip, server in first.items()}
    try:
        opened = await gang.demand("open_doors", wanted, timeout_s=AGENT_TIMEOUT_S)
        doors = tuple(door for some in opened.values() for door in some)
        sources = {index: ip for index, (ip, _) in wanted.items()}
        missed = await gang.demand("knock", sources, doors, KNOCK_S, timeout_s=AGENT_TIMEOUT_S)
    finally:
        await gang.ask("close_doors", timeout_s=AGENT_TIMEOUT_S)
    return [one for index in sorted(missed) for one in missed[index]]


async def _ping_npus(gang: Gang, pings: Mapping[int, tuple[Ping, ...]]) -> list[Pinged]:
    if not pings:
        return []
    answers = await gang.demand("ping_npus", pings, PING_S, timeout_s=PING_S + AGENT_TIMEOUT_S)
    return [one for index in sorted(answers) for one in answers[index]]


def _ports_to_try(ports: Ports) -> dict[str, int]:
    tried = {"http": ports.http, "rpc": ports.rpc, "any": 0}
    return tried if ports.hccl_base is None else {**tried, "hccl": ports.hccl_base}


def read_ahead_folder(recipe: Recipe) -> str:
    """The folder of weights that each host reads ahead; "" where nothing is to be gained."""
    from_files = given_args(recipe).get("load-format") in (None, "auto", "safetensors", "pt")
    return recipe.model.path if recipe.model.read_ahead and from_files else ""


async def await_launch(calls: Sequence[Any]) -> None:
    """Wait until every agent has started its server. A lost agent is left to whoever watches it.

    Raises:
        LaunchError: a server could not be started.
    """
    import ray

    try:
        async with asyncio.timeout(AGENT_TIMEOUT_S):
            await asyncio.gather(*calls)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", error)
        raise LaunchError("a server could not be started", why=str(cause)) from error
    except (ray.exceptions.RayActorError, TimeoutError):
        return


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise ChecksFailedError with every finding of level error, if there is one."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        lines = [
            f"  {one.id}: {f'{one.where}: ' if one.where else ''}{one.what}{_more(one)}"
            for one in errors
        ]
        todo = "; ".join(dict.fromkeys(one.todo for one in errors if one.todo))
        raise ChecksFailedError(
            f"{len(errors)} check(s) failed, nothing was launched",
            evidence="\n".join(lines),
            todo=todo,
        )


def _more(finding: Finding) -> str:
    """What was seen, unless the words say it already: which node has what, who holds the memory."""
    return "" if not finding.seen or finding.seen in finding.what else f" ({finding.seen})"


async def clean_ground(gang: Gang, loaded: LoadedRecipe) -> None:
    """Prove that nothing of an earlier attempt lives and that nobody is on the ports that cannot be moved.

    Raises:
        LaunchError: something resisted, or somebody else took a port; it is named.
    """
    left = flatten(await gang.ask("sweep", timeout_s=AGENT_TIMEOUT_S))
    if left:
        raise LaunchError(
            "processes of the last attempt cannot be ended",
            evidence="\n".join(f"  {one}" for one in left),
            todo="a process inside a driver call ends only with it; see `npu-smi info`",
        )
    network = loaded.recipe.network
    ports = (
        network.http_port,
        *([network.rpc_port] if is_fixed(loaded, "network.rpc_port") else []),
    )
    holders = await gang.agents[0].occupied.remote(ports, PORTS_PATIENCE_S)
    if holders:
        raise LaunchError(
            "a port of the deployment was taken while it restarted",
            why="; ".join(holders),
            todo="end that process, or choose other ports (network.http_port, network.rpc_port), and start again",
        )


def flatten(answers: Mapping[int, object]) -> list[str]:
    """What resisted on each node; an agent that did not answer is left to its guard."""
    return [
        f"server {index}: {one}"
        for index, left in answers.items()
        if isinstance(left, list)
        for one in left
    ]
