"""The gateway of a deployment before it runs: its node, its port, its address."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from raylaunch.plan.deployment_plan import GatewayPlan
from raylaunch.plan.facts import Facts
from raylaunch.plan.layout import bracket
from raylaunch.plan.ports import EVERYWHERE, collide, wanted_ports

if TYPE_CHECKING:
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.recipe.gateway_settings import Gateway


def plan_gateway(
    settings: Gateway,
    head: Facts,
    nodes: Sequence[Facts],
    plans: Iterable[LaunchPlan],
) -> GatewayPlan | None:
    """Return where the gateway will listen; None when the recipe has none.

    Args:
        settings: The section `gateway` of the recipe.
        head: The node of the controller.
        nodes: Those of the servers.
        plans: Of the deployment's groups, and of others on these nodes. The port avoids theirs.
    """
    if not settings.enabled:
        return None
    where = [head] if settings.nodes == "head" else [head, *nodes]
    by_address = {facts.ip: facts for facts in where}
    taken = planned_ports(plans)
    for facts in by_address.values():
        taken |= _listened_ports(settings, facts)
    port = choose_gateway_port(settings.port, taken)
    return GatewayPlan(
        endpoint=f"{gateway_url(settings, head.ip, port)}/v1",
        port=port,
        nodes=tuple(by_address),
        policy=settings.policy,
    )


def planned_ports(plans: Iterable[LaunchPlan]) -> set[int]:
    """Return the ports that servers listen on, or will."""
    return {
        port for plan in plans for server in plan.servers for _, port, _ in wanted_ports(server)
    }


def choose_gateway_port(wanted: int, taken: Collection[int]) -> int:
    """Return the first port from `wanted` on that is not taken; `wanted` if all of them are."""
    return next((port for port in range(wanted, 65536) if port not in taken), wanted)


def listen_address(settings: Gateway, node: str) -> str:
    """Return the address that the gateway on the node at address `node` listens on."""
    return node if settings.host == "node" else settings.host


def gateway_url(settings: Gateway, node: str, port: int) -> str:
    """Return the root of the address for clients of the gateway on the node at address `node`."""
    scheme = "http" if settings.tls is None else "https"
    host = listen_address(settings, node)
    # No client can connect to "every address".
    return f"{scheme}://{bracket(node if host in EVERYWHERE else host)}:{port}"


def _listened_ports(settings: Gateway, facts: Facts) -> set[int]:
    address = listen_address(settings, facts.ip)
    return {one.port for one in facts.listeners if collide(one.address, address)}
