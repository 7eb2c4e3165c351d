"""Who runs where: servers onto nodes, ranks onto servers, the address and interface each server uses."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.errors import PlanError
from raylaunch.plan.facts import Facts, Interface
from raylaunch.plan.launch_plan import Place

if TYPE_CHECKING:
    from raylaunch.recipe.model import Recipe


@dataclass(frozen=True)
class Seat:
    """One server's place: the node it is on, and its number among the servers of that node."""

    index: int
    facts: Facts
    place: Place
    slot: int


def lay_out(recipe: Recipe, nodes: Sequence[Facts], primary: str | None = None) -> list[Seat]:
    """Give each server a seat. `nodes` holds one entry per server, or one per node that several servers share.

    The first seat is the primary's: the node at address `primary`, or the first of `nodes`.

    Raises:
        PlanError: too few nodes, an unknown primary, or no usable interface.
    """
    ordered = _primary_first(nodes, primary)
    seated = _seat(recipe, ordered)
    slots: dict[str, int] = {}
    seats = []
    for index, facts in enumerate(seated):
        key = facts.node_id or facts.ip
        seats.append(
            Seat(index, facts, choose_place(facts, recipe.network.interface), slots.get(key, 0))
        )
        slots[key] = slots.get(key, 0) + 1
    return seats


def _primary_first(nodes: Sequence[Facts], primary: str | None) -> list[Facts]:
    if primary is None:
        return list(nodes)
    chosen = [facts for facts in nodes if facts.ip == primary]
    if not chosen:
        known = ", ".join(facts.ip for facts in nodes)
        raise PlanError(f"the primary {primary} is not among the nodes", why=f"nodes: {known}")
    return [*chosen, *(facts for facts in nodes if facts.ip != primary)]


def _seat(recipe: Recipe, nodes: Sequence[Facts]) -> list[Facts]:
    servers = recipe.parallel.servers
    if len(nodes) == servers:
        return list(nodes)
    per_node = (
        1 if recipe.hardware.spread else max(1, recipe.npus_per_node // recipe.npus_per_server)
    )
    seats = [facts for facts in nodes for _ in range(per_node)]
    if len(seats) < servers:
        raise PlanError(
            f"{servers} servers do not fit on {len(nodes)} node(s)",
            why=f"data={recipe.parallel.data} with data_local={recipe.parallel.ranks_per_server} makes {servers} "
            f"servers of {recipe.npus_per_server} NPUs, {per_node} per node",
            todo=f"give {-(-servers // per_node)} nodes (--host IP%NIC, repeated), or lower parallel.data",
        )
    return seats[:servers]


def choose_place(facts: Facts, wanted: str) -> Place:
    """Choose the address and interface a server uses on its node.

    `wanted` is the recipe's `network.interface`; an interface fixed in `facts` wins over it.

    Raises:
        PlanError: nothing on the node fits.
    """
    if facts.interface:
        return Place(facts.ip, facts.interface, facts.node_id)
    if not facts.interfaces:
        raise PlanError(
            f"the network interface of {facts.ip} is not known",
            todo=f"write --host {facts.ip}%NIC; `ip -br addr` on that host shows its interfaces",
        )
    found = _find_interface(facts, wanted)
    if found is None:
        raise PlanError(
            f"node {facts.ip} has no interface that fits network.interface={wanted}",
            evidence="\n".join(
                f"  {nic.name}: {' '.join(nic.addresses) or '-'}" for nic in facts.interfaces
            ),
            todo="set network.interface to one of these names, or to a CIDR that one of the addresses is in",
        )
    return Place(found[1], found[0].name, facts.node_id)


def _find_interface(facts: Facts, wanted: str) -> tuple[Interface, str] | None:
    own = _as_address(facts.ip)
    pairs = [
        (nic, ipaddress.ip_interface(text)) for nic in facts.interfaces for text in nic.addresses
    ]
    # A link-local IPv6 address says nothing without its zone, and no flag or variable of vLLM or HCCL carries one.
    pairs = [(nic, at) for nic, at in pairs if at.version == 4 or not at.is_link_local]
    if wanted == "auto":
        fitting = [(nic, at) for nic, at in pairs if at.ip == own]
    elif "/" in wanted:
        network = ipaddress.ip_network(wanted, strict=False)
        fitting = [(nic, at) for nic, at in pairs if at.ip in network]
    else:
        fitting = [(nic, at) for nic, at in pairs if nic.name == wanted]
    fitting.sort(
        key=lambda pair: (
            pair[1].ip != own,
            not pair[0].up,
            pair[1].ip.is_loopback,
            pair[1].version,
        )
    )
    return (fitting[0][0], str(fitting[0][1].ip)) if fitting else None


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Compare addresses as such: IPv6 has many spellings. None for a host's name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def choose_devices(recipe: Recipe, seat: Seat) -> tuple[int, ...]:
    """NPU ids of a server, ascending: those Ray granted, or the slot's share of the node's."""
    if seat.facts.devices is not None:
        return tuple(sorted(seat.facts.devices))
    count = recipe.npus_per_server
    return tuple(range(seat.slot * count, (seat.slot + 1) * count))


def bracket(ip: str) -> str:
    """An address as it stands in a URL: IPv6 in brackets."""
    return f"[{ip}]" if ":" in ip else ip
