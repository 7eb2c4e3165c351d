"""Stops servers without an agent: their guards would wait for one, and hold the NPUs meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.node.process.process_markers import find_marked, terminate_marked
from raylaunch.plan.facts import MarkedProcess
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.node_tasks import call_on_nodes
from raylaunch.runtime.controller.group.agent_watch import probe_raylet

ANSWER_S = 10.0
"""Beyond the grace period. A new worker process has to start and to import the code first."""
KILL_S = 10.0


async def stop_orphans(servers: Sequence[ServerPlan], gang: Gang, grace_s: float) -> list[str]:
    """Stop these servers with their guards, by their markers; return what may still live.

    Args:
        servers: Those without an agent.
        gang: Names the deployment and the instance.
        grace_s: Between SIGTERM and SIGKILL.
    """
    if not servers:
        return []
    reached = await _reached_nodes({server.node.node_id for server in servers})
    by_node: dict[str, list[int]] = {}
    left = []
    for server in servers:
        if server.node.node_id in reached:
            by_node.setdefault(server.node.node_id, []).append(server.index)
        else:
            left.append(_unreachable(server.index, server.node.ip))
    arguments = {
        node: (gang.key.deployment, gang.instance, tuple(indices), grace_s)
        for node, indices in by_node.items()
    }
    if not arguments:
        return left
    timeout_s = grace_s + KILL_S + ANSWER_S
    answers, silent = await asyncio.to_thread(call_on_nodes, _stop_servers, arguments, timeout_s)
    for found in answers.values():
        left += [f"pid {process.pid} {process.command}" for process in found]
    for server in servers:
        if server.node.node_id in silent:
            left.append(_unreachable(server.index, server.node.ip))
    return left


@dataclass(frozen=True)
class StoppedInstances:
    """What a search on all nodes has found and stopped."""

    found: Mapping[str, str]
    """The groups that had processes, in words, by the address of the node."""
    left: tuple[str, ...] = ()
    """What still lives, and nodes that gave no answer."""


async def stop_instances(
    deployment: str, instances: Sequence[str], grace_s: float
) -> StoppedInstances:
    """Stop every process of these instances of groups, with their guards, on all reached nodes.

    Args:
        deployment: Its name.
        instances: Ids in the markers: of groups that are removed, and of no other.
        grace_s: Between SIGTERM and SIGKILL.
    """
    if not instances:
        return StoppedInstances({})
    reached = await _reached_nodes()
    arguments = dict.fromkeys(reached, (deployment, tuple(instances), grace_s))
    timeout_s = grace_s + KILL_S + ANSWER_S
    answers, silent = await asyncio.to_thread(call_on_nodes, _stop_instances, arguments, timeout_s)
    found, left = {}, [f"{reached[node]} did not answer" for node in silent]
    for node, (groups, still) in answers.items():
        if groups:
            found[reached[node]] = ", ".join(groups)
        left += [f"{reached[node]}: pid {process.pid} {process.command}" for process in still]
    return StoppedInstances(found, tuple(left))


async def _reached_nodes(wanted: Collection[str] | None = None) -> dict[str, str]:
    """Return those of the nodes that are alive and whose raylet accepts a connection.

    By Ray's id, with the address. Without `wanted` all nodes count.

    Ray calls a host alive for up to 75 s after its network was cut, and a task there would be
    waited for in vain, before every restart.
    """
    alive = await asyncio.to_thread(alive_nodes)
    nodes = [node for node in alive if wanted is None or node["NodeID"] in wanted]
    states = await asyncio.gather(*(asyncio.to_thread(probe_raylet, node) for node in nodes))
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node, state in zip(nodes, states, strict=True)
        if state == "alive"
    }


def _unreachable(server: int, ip: str) -> str:
    return f"server {server}: {ip} cannot be reached; its guard stops it after its grace period"


def _stop_servers(
    deployment: str, instance: str, servers: tuple[int, ...], grace_s: float
) -> list[MarkedProcess]:
    """Run on a node: terminate the processes of these servers."""
    left = []
    for server in servers:
        left += terminate_marked(
            deployment, None, server, instance=instance, grace_s=grace_s, kill_timeout_s=KILL_S
        )
    return left


def _stop_instances(
    deployment: str, instances: tuple[str, ...], grace_s: float
) -> tuple[list[str], list[MarkedProcess]]:
    """Run on a node: terminate the processes of these instances.

    Returns:
        The groups that had any, and what is left.
    """
    groups: set[str] = set()
    left = []
    for instance in instances:
        found = find_marked(deployment, instance=instance)
        groups |= {process.group for process in found}
        if found:
            left += terminate_marked(
                deployment, instance=instance, grace_s=grace_s, kill_timeout_s=KILL_S
            )
    return sorted(groups), left
