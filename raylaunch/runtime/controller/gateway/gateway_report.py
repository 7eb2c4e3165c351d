"""What a gateway's keeper reports, as part of a deployment's status."""

from __future__ import annotations

from raylaunch.gateway.gateway_messages import GatewayStatus
from raylaunch.plan.gateway_plan import gateway_url
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.supervise.deployment_status import GatewayCounters, GatewayNode


def node_report(settings: Gateway, ip: str, status: GatewayStatus) -> GatewayNode:
    """Return where the gateway of one node is, and what it counted."""
    seen = status.counters
    counters = GatewayCounters(
        requests=seen.requests,
        queue=seen.held,
        held=seen.held_total,
        held_s=seen.held_s,
        repeated=seen.retries,
        continued=seen.continued,
        broken=seen.broken,
        failed=seen.failed,
        rejected=seen.rejected,
        cancelled=seen.cancelled,
    )
    return GatewayNode(
        ip=ip,
        endpoint=f"{gateway_url(settings, ip, status.port)}/v1",
        keeper_pid=status.keeper_pid,
        counters=counters,
        haproxy_starts=status.haproxy_starts,
        relay_starts=status.relay_starts,
    )
