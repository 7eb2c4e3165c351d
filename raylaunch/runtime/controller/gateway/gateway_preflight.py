"""The gateway before a start: what its nodes have for it, and where it would listen."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from raylaunch.checks.findings import Finding
from raylaunch.checks.gateway.gateway_checks import check_gateway_nodes, check_key_values
from raylaunch.errors import ClusterError
from raylaunch.gateway.gateway_probe import probe_gateway
from raylaunch.plan.deployment_plan import GatewayPlan
from raylaunch.plan.facts import Facts, GatewayFacts
from raylaunch.plan.gateway_plan import plan_gateway
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.node_tasks import call_on_nodes, head_node


def preflight_gateway(
    loaded: LoadedRecipe, plans: Sequence[LaunchPlan]
) -> tuple[GatewayPlan | None, list[Finding]]:
    """Probe the nodes that the gateway would run on; return its plan, and what is wrong.

    Args:
        loaded: The recipe.
        plans: Of the deployment's groups.

    Raises:
        ClusterError: one of the nodes did not answer.
    """
    settings = loaded.recipe.gateway
    if not settings.enabled:
        return None, []
    found = _probe(loaded, _wanted_nodes(loaded, plans))
    nodes = [Facts(facts.ip, listeners=facts.listeners) for facts in found]
    plan = plan_gateway(settings, nodes[0], nodes, plans)
    findings = check_gateway(loaded, found, _valued(loaded))
    return plan, findings


def check_gateway_here(loaded: LoadedRecipe, machine: Facts) -> list[Finding]:
    """Return what is wrong with a gateway on this machine.

    Args:
        loaded: The recipe.
        machine: This machine; its listeners count, so those of the deployment itself are left out.
    """
    settings = loaded.recipe.gateway
    if not settings.enabled:
        return []
    found = probe_gateway(settings, machine.ip)
    return check_gateway(loaded, [replace(found, listeners=machine.listeners)], _valued(loaded))


def check_gateway(
    loaded: LoadedRecipe, found: Sequence[GatewayFacts], secrets: Collection[str]
) -> list[Finding]:
    """Return what is wrong with the gateway's keys, and with its nodes.

    Args:
        loaded: The recipe.
        found: What was found on these nodes.
        secrets: Names of the secrets that have a value.
    """
    findings = check_gateway_nodes(loaded, found, time.time())
    return [*check_key_values(loaded, secrets), *findings]


def _valued(loaded: LoadedRecipe) -> list[str]:
    return [name for name in loaded.recipe.secrets if os.environ.get(name)]


def _wanted_nodes(loaded: LoadedRecipe, plans: Sequence[LaunchPlan]) -> dict[str, str]:
    """Return the addresses of the gateway's nodes by their ids, the head's first."""
    head = head_node()
    if head is None:
        raise ClusterError("the Ray cluster has no head that is alive", todo="`ray status`")
    nodes = {str(head["NodeID"]): str(head["NodeManagerAddress"])}
    if loaded.recipe.gateway.nodes == "all":
        addresses = {str(one["NodeID"]): str(one["NodeManagerAddress"]) for one in alive_nodes()}
        for plan in plans:
            for server in plan.servers:
                nodes[server.node.node_id] = addresses.get(server.node.node_id, server.node.ip)
    return nodes


def _probe(loaded: LoadedRecipe, nodes: dict[str, str]) -> list[GatewayFacts]:
    settings = loaded.recipe.gateway
    arguments = {node_id: (settings, ip) for node_id, ip in nodes.items()}
    answers, silent = call_on_nodes(probe_gateway, arguments)
    if silent:
        names = ", ".join(nodes[node_id] for node_id in silent)
        raise ClusterError(
            f"{names} did not report what it has for the gateway",
            todo="`ray status` shows whether the node is alive; then check again",
        )
    return [answers[node_id] for node_id in nodes]
