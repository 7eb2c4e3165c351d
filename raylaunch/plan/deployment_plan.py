"""The plan of a deployment: the plans of its groups, and its address."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan

DEPLOYMENT_SCHEMA = 2


@dataclass(frozen=True)
class GatewayPlan:
    """The router in front of the groups. `nodes` are the addresses of the nodes it runs on."""

    endpoint: str
    """The first node's."""
    port: int
    nodes: tuple[str, ...]
    policy: str = "least-loaded"
    """Which group gets a request; see `Gateway.policy`."""


@dataclass(frozen=True)
class DeploymentPlan:
    """A whole deployment, ready to be printed, rendered or checked."""

    deployment: str
    recipe: str
    groups: tuple[LaunchPlan, ...]
    gateway: GatewayPlan | None = None
    schema: int = DEPLOYMENT_SCHEMA

    @property
    def endpoint(self) -> str:
        """The address for clients: the gateway's, without one that of the first group."""
        return self.gateway.endpoint if self.gateway else self.groups[0].endpoint

    @property
    def primary(self) -> ServerPlan:
        """The server with the API of the first group."""
        return self.groups[0].primary

    @property
    def servers(self) -> tuple[ServerPlan, ...]:
        """The servers of all groups. Their indexes start at 0 in each group."""
        return tuple(server for group in self.groups for server in group.servers)

    def only(self, name: str) -> DeploymentPlan:
        """Return the plan with the group `name` ("serve-0") alone.

        Raises:
            KeyError: There is no such group.
        """
        found = tuple(group for group in self.groups if group.group == name)
        if not found:
            raise KeyError(name)
        return replace(self, groups=found)
