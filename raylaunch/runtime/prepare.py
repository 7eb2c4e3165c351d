"""From a request to a plan that may be launched: order the places, look from the agents, plan, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raylaunch.errors import ChecksFailedError, LaunchError, PlacementError
from raylaunch.plan.checks import check_nodes, check_recipe
from raylaunch.plan.facts import Facts
from raylaunch.plan.findings import Finding
from raylaunch.plan.planner import build_plan
from raylaunch.plan.spec import LaunchPlan
from raylaunch.recipe.model import Recipe
from raylaunch.runtime.agent import state_dir
from raylaunch.runtime.gang import Gang
from raylaunch.runtime.placement import Slot
from raylaunch.runtime.request import Request

AGENT_TIMEOUT_S = 60.0
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
    timeouts, network, model = recipe.timeouts, recipe.network, recipe.model
    await gang.demand("prepare", model.tiny, timeout_s=AGENT_TIMEOUT_S)
    path = f"{state_dir()}/models/tiny-{model.tiny}" if model.tiny else model.path
    npu = recipe.hardware.platform != "cpu"
    ports = (network.http_port, network.rpc_port)
    probed = await gang.demand("probe", path, ports, npu, timeouts.probe, timeout_s=timeouts.probe + AGENT_TIMEOUT_S)
    return {index: probed[index] for index in sorted(probed)}


def plan_and_judge(request: Request, nodes: Sequence[Facts]) -> tuple[LaunchPlan, tuple[Finding, ...]]:
    """Plan on the nodes as they are, and check; errors the operator has answered for are warnings.

    Raises:
        PlanError: the nodes cannot hold the recipe.
    """
    plan = build_plan(request.loaded, nodes, deployment=request.deployment)
    findings = [*check_recipe(request.loaded, nodes[0].versions), *check_nodes(request.loaded, nodes, plan)]
    return plan, tuple(_forgive(finding, request.skipped or {}) for finding in findings)


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise ChecksFailedError with every finding of level error, if there is one."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        lines = [f"  {one.id}: {f'{one.where}: ' if one.where else ''}{one.what}" for one in errors]
        todo = "; ".join(dict.fromkeys(one.todo for one in errors if one.todo))
        raise ChecksFailedError(
            f"{len(errors)} check(s) failed, nothing was launched", evidence="\n".join(lines), todo=todo
        )


async def clean_ground(gang: Gang, recipe: Recipe) -> None:
    """Prove that nothing of an earlier attempt lives and that nobody is on the deployment's ports.

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
    ports = (recipe.network.http_port, recipe.network.rpc_port)
    holders = await gang.agents[0].occupied.remote(ports, PORTS_PATIENCE_S)
    if holders:
        raise LaunchError(
            "a port of the deployment was taken while it restarted",
            why="; ".join(holders),
            todo="end that process, or choose other ports (network.http_port, network.rpc_port), and start again",
        )


def flatten(answers: Mapping[int, object]) -> list[str]:
    """What resisted on each node; an agent that did not answer is left to its guard."""
    return [f"server {index}: {one}" for index, left in answers.items() if isinstance(left, list) for one in left]


def _forgive(finding: Finding, skipped: Mapping[str, str]) -> Finding:
    reason = skipped.get(finding.id)
    if reason is None or finding.level != "error":
        return finding
    return replace(finding, level="warning", what=f"{finding.what} (skipped: {reason})")
