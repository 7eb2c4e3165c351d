"""What a deployment has lost: nodes that are avoided, agents that a controller which takes over does not find."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.supervise.policy import Restart
from raylaunch.supervise.state import ServerSeen


def lost_nodes(
    plan: LaunchPlan | None, seen: Mapping[int, ServerSeen], decision: Restart | None
) -> dict[int, str]:
    """Server -> Ray's id of its node, for the nodes that are lost. One that Ray gave up comes back under a new id."""
    gone = {index for index, one in seen.items() if one.agent_lost not in (None, "agent died")}
    if decision is not None and decision.cause == "node-lost" and decision.root is not None:
        gone.add(decision.root)  # silence alone, and nobody has found out more
    return (
        {server.index: server.node.node_id for server in plan.servers if server.index in gone}
        if plan
        else {}
    )


def find_again(plan: LaunchPlan, attempt: int, alive: Collection[int]) -> dict[int, ServerSeen]:
    """The servers of a running attempt, for a controller that takes over; `alive` are those whose agents it found."""
    nodes = {node["NodeID"] for node in alive_nodes()}
    found = {}
    for server in plan.servers:
        reason = "agent died" if server.node.node_id in nodes else "node died"
        lost = None if server.index in alive else reason
        found[server.index] = ServerSeen(server.index, attempt=attempt, agent_lost=lost)
    return found
