"""Input of a node check: recipe, plan, and each node once with the servers that run on it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.plan.facts import Facts, Interface
from raylaunch.plan.launch_plan import LaunchPlan, Place, ServerPlan

if TYPE_CHECKING:
    from raylaunch.recipe.load import LoadedRecipe
    from raylaunch.recipe.model import Recipe


@dataclass(frozen=True)
class Node:
    """One node with the servers of the plan that run on it."""

    facts: Facts
    servers: tuple[ServerPlan, ...]

    @property
    def name(self) -> str:
        """Name of the node in findings: address and host name."""
        if self.facts.hostname:
            return f"{self.facts.ip} ({self.facts.hostname})"
        return self.facts.ip

    @property
    def probed(self) -> bool:
        """Whether a probe ran there; facts made from `--host` alone hold only an address."""
        return self.facts.clock > 0

    def answered(self, *probes: str) -> bool:
        """Return whether the node was probed and none of `probes` failed."""
        failed = {failure.probe for failure in self.facts.failures}
        return self.probed and not failed.intersection(probes)


@dataclass(frozen=True)
class CheckContext:
    """Everything that a node check may read."""

    loaded: LoadedRecipe
    plan: LaunchPlan
    nodes: tuple[Node, ...]
    others: tuple[LaunchPlan, ...] = ()
    """Plans of the deployment's other groups, and of the other deployments of the cluster."""

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    @property
    def several_addresses(self) -> bool:
        """Whether the servers run on nodes with different addresses."""
        return len({node.facts.ip for node in self.nodes}) > 1

    def siblings_on(self, node: Node) -> list[ServerPlan]:
        """Return the servers of the deployment's other groups that run on `node`."""
        here = {node.facts.ip, *(server.node.ip for server in node.servers)}
        return [
            server
            for plan in self.others
            if plan.deployment == self.plan.deployment
            for server in plan.servers
            if _is_on(server.node, node.facts.node_id, here)
        ]


def build_context(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    others: Sequence[LaunchPlan] = (),
) -> CheckContext:
    """Assign the servers of the plan to their nodes. Nodes without a server are left out."""
    unique = {facts.node_id or facts.ip: facts for facts in nodes}
    owners: dict[str, str] = {}
    for key, facts in unique.items():
        for address in _addresses(facts):
            owners[address] = key
    servers: dict[str, list[ServerPlan]] = {key: [] for key in unique}
    for server in plan.servers:
        owner: str | None = server.node.node_id
        # A plan made from `--host` knows addresses only.
        if owner not in unique:
            owner = owners.get(server.node.ip)
        if owner is not None:
            servers[owner].append(server)
    used = [Node(unique[key], tuple(here)) for key, here in servers.items() if here]
    return CheckContext(loaded, plan, tuple(used), tuple(others))


def is_loopback(address: str) -> bool:
    """Return whether a literal address (with or without zone) never leaves its machine."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def interface_of(facts: Facts, name: str) -> Interface | None:
    """Return the interface called `name`; None when the probe found no such interface."""
    return next((nic for nic in facts.interfaces if nic.name == name), None)


def _is_on(place: Place, node_id: str, addresses: set[str]) -> bool:
    if place.node_id and node_id:
        return place.node_id == node_id
    return place.ip in addresses


def _addresses(facts: Facts) -> list[str]:
    addresses = [facts.ip]
    for nic in facts.interfaces:
        for text in nic.addresses:
            address, _, _ = text.partition("/")
            # Every machine has the loopback addresses, so they identify none.
            if not is_loopback(address):
                addresses.append(address)
    return addresses
