"""From reserved nodes to a plan that may be launched: clean up, probe, plan, check."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from raylaunch.checks.check_all import check_nodes, check_recipe, common_names
from raylaunch.checks.engine.engine_checks import check_engines
from raylaunch.checks.findings import Finding
from raylaunch.checks.join_checks import check_joined
from raylaunch.checks.ping_checks import Ping, PingResult, check_pings, choose_pings
from raylaunch.checks.port_checks import check_silent_neighbours
from raylaunch.checks.reach_checks import FailedConnection, check_reach
from raylaunch.errors import ChecksFailedError, LaunchError, PlacementError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan, Ports
from raylaunch.plan.ports import HCCL_PORTS, is_fixed
from raylaunch.plan.wanted_weights import drafter_path
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.recipe_settings import given_args
from raylaunch.runtime.agent.engine_lookup import GroupReport, dry_run_engines
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.cluster.missing_workers import missing_workers
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.controller.port_turns import Neighbours

CONNECT_S = 3.0
"""A packet that a firewall drops gets no answer at all."""
PING_S = 8.0
"""For the pings between NPUs: a good one takes 2-3 s, and each NPU sends at most two."""
FREE_PORTS_S = 15.0
"""How long a restart waits for its ports to become free: enough for a socket that closes late."""


def put_primary_first(slots: list[Slot], primary: str | None) -> list[Slot]:
    """Order the reserved places so that the wanted primary comes first.

    Raises:
        PlacementError: it is not among them.
    """
    if primary is None:
        return slots
    reserved = [slot.ip for slot in slots]
    if primary not in reserved:
        raise PlacementError(
            f"the primary {primary} is not among the nodes that were reserved",
            why=f"reserved: {', '.join(reserved)}",
            todo="give the Ray address of one of these nodes to --primary, or leave it out",
        )
    return sorted(slots, key=lambda slot: slot.ip != primary)


async def probe_nodes(gang: Gang, recipe: Recipe) -> dict[int, Facts]:
    """Have every agent create the tiny model if the recipe wants one, and probe its node.

    Raises:
        RaylaunchError: an agent refused or did not answer.
    """
    network = recipe.network
    hccl_ports = range(network.hccl_base_port, network.hccl_base_port + HCCL_PORTS)
    ports = (network.http_port, network.rpc_port, *hccl_ports)
    facts = await gang.demand_all(
        lambda agent: agent.probe(
            tiny=recipe.model.tiny,
            path=recipe.model.path,
            drafter=drafter_path(recipe),
            ports=ports,
            npu=recipe.hardware.platform != "cpu",
            timeout_s=recipe.timeouts.probe,
        )
    )
    return {index: facts[index] for index in sorted(facts)}


async def check_plan(
    gang: Gang,
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    neighbours: Neighbours,
    *,
    dry_run: bool = False,
) -> list[Finding]:
    """Check recipe, nodes, and the links between hosts and NPUs.

    With `dry_run` the nodes' own vLLM builds the engine configuration too, which takes the longest.

    Raises:
        RaylaunchError: an agent refused or did not answer.
    """
    pings = choose_pings(loaded, nodes, plan)
    unreached, pinged, engines = await asyncio.gather(
        _try_links(gang, plan),
        _ping_npus(gang, pings),
        dry_run_engines(gang, plan) if dry_run else _no_dry_run(),
    )
    by_server = {server.index: facts for server, facts in zip(plan.servers, nodes, strict=True)}
    nodes = [*engines.add_to(by_server).values()]
    findings = [*check_recipe(loaded, nodes[0].versions, known=common_names(nodes))]
    findings += check_nodes(loaded, nodes, plan, neighbours.plans)
    findings += check_silent_neighbours(neighbours.silent)
    findings += check_joined(missing_workers())
    if dry_run:
        findings += check_engines(loaded, nodes, plan, engines.answers, findings)
    interfaces = {server.node.ip: server.node.interface for server in plan.servers}
    findings += check_reach(unreached, interfaces)
    findings += check_pings(loaded, nodes, plan, pinged)
    return findings


async def _no_dry_run() -> GroupReport:
    return GroupReport()


async def _try_links(gang: Gang, plan: LaunchPlan) -> list[FailedConnection]:
    """Connect from every host to every other one; there is nothing to try on a single host."""
    first_on_host = {server.node.ip: server for server in reversed(plan.servers)}
    if len(first_on_host) < 2:
        return []
    ips = {server.index: ip for ip, server in first_on_host.items()}
    ports = {server.index: _ports_to_try(server.ports) for server in first_on_host.values()}
    try:
        opened = await gang.demand_all(
            lambda agent: agent.open_listeners(ip=ips[agent.index], ports=ports[agent.index]),
            servers=ips,
        )
        listeners = tuple(listener for some in opened.values() for listener in some)
        unreached = await gang.demand_all(
            lambda agent: agent.try_connections(
                source=ips[agent.index], listeners=listeners, connect_s=CONNECT_S
            ),
            servers=ips,
        )
    finally:
        # The servers need these ports.
        await gang.ask_all(lambda agent: agent.close_listeners(), servers=ips)
    return [one for index in sorted(unreached) for one in unreached[index]]


async def _ping_npus(gang: Gang, pings: Mapping[int, tuple[Ping, ...]]) -> list[PingResult]:
    if not pings:
        return []
    answers = await gang.demand_all(
        lambda agent: agent.ping_npus(pings=pings[agent.index], ping_s=PING_S),
        servers=pings,
    )
    return [one for index in sorted(answers) for one in answers[index]]


def _ports_to_try(ports: Ports) -> dict[str, int]:
    tried = {"http": ports.http, "rpc": ports.rpc, "any": 0}
    if ports.hccl_base is not None:
        tried["hccl"] = ports.hccl_base
    return tried


def read_ahead_folder(recipe: Recipe) -> str:
    """Return the folder of weights that each host reads ahead; "" if that gains nothing."""
    from_files = given_args(recipe).get("load-format") in (None, "auto", "safetensors", "pt")
    return recipe.model.path if recipe.model.read_ahead and from_files else ""


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Refuse a plan with findings of level error.

    Raises:
        ChecksFailedError: there is one; it names them all.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    hints = dict.fromkeys(finding.todo for finding in errors if finding.todo)
    # Events show this sentence alone, so it names the checks.
    ids = ", ".join(dict.fromkeys(finding.id for finding in errors))
    raise ChecksFailedError(
        f"{len(errors)} check(s) failed ({ids}), nothing was launched",
        evidence="\n".join(_describe(finding) for finding in errors),
        todo="; ".join(hints),
    )


def _describe(finding: Finding) -> str:
    place = f"{finding.where}: " if finding.where else ""
    # What was seen (which node has what, what holds the memory), unless the text has it already.
    seen = ""
    if finding.seen and finding.seen not in finding.what:
        seen = f" ({finding.seen})"
    return f"  {finding.id}: {place}{finding.what}{seen}"


async def clean_up(gang: Gang, loaded: LoadedRecipe, plan: LaunchPlan | None) -> None:
    """Kill orphans of earlier attempts, and wait until the ports that cannot be moved are free.

    Args:
        gang: The group's agents.
        loaded: Its recipe.
        plan: That of the last attempt, if there was one.

    Raises:
        LaunchError: a process could not be killed, or another one took a port; it is named.
    """
    left = flatten(await gang.ask_all(lambda agent: agent.kill_orphans()))
    if left:
        raise LaunchError(
            "processes of the last attempt cannot be killed",
            evidence="\n".join(f"  {one}" for one in left),
            todo="a process inside a driver call exits only after that call; see `npu-smi info`",
        )
    network = loaded.recipe.network
    # A group beside others may have got other ports than the recipe's.
    chosen = None if plan is None else plan.primary.ports
    ports = [network.http_port if chosen is None else chosen.http]
    if is_fixed(loaded, "network.rpc_port"):
        ports.append(network.rpc_port if chosen is None else chosen.rpc)
    # Server 0 is the primary: only it listens on these.
    held = await gang.demand_all(
        lambda agent: agent.await_free_ports(ports=ports, wait_s=FREE_PORTS_S), servers=(0,)
    )
    holders = [holder for found in held.values() for holder in found]
    if holders:
        raise LaunchError(
            "a port of the deployment was taken while it restarted",
            why="; ".join(holders),
            todo="stop that process, or choose other ports (network.http_port, network.rpc_port), "
            "and start again",
        )


def flatten(answers: Mapping[int, object]) -> list[str]:
    """Return what is left on each node; where an agent did not answer, its guard kills the rest."""
    return [
        f"server {index}: {one}"
        for index, left in answers.items()
        if isinstance(left, list)
        for one in left
    ]
