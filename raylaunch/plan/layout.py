"""The layout: servers onto nodes, and the address, interface and devices of each server."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.errors import PlanError
from raylaunch.plan.facts import Facts, Interface
from raylaunch.plan.launch_plan import LaunchPlan, Place
from raylaunch.recipe.fallbacks import count_nodes

if TYPE_CHECKING:
    from raylaunch.recipe.groups import GroupSpec
    from raylaunch.recipe.model import Recipe

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Seat:
    """One server's place: its node, and its number (`slot`) among the servers of that node."""

    index: int
    facts: Facts
    place: Place
    slot: int


def lay_out(recipe: Recipe, nodes: Sequence[Facts], primary: str | None = None) -> list[Seat]:
    """Assign each server to a node.

    `nodes` holds one entry per server, or one per node that several servers share. The first seat
    is the primary's: the node at address `primary`, or the first of `nodes`.

    Raises:
        PlanError: Too few nodes, an unknown primary, or no usable interface.
    """
    ordered = put_first(nodes, primary)
    servers_on: dict[str, int] = {}
    seats = []
    for index, facts in enumerate(_repeat_nodes(recipe, ordered)):
        node = facts.node_id or facts.ip
        slot = servers_on.get(node, 0)
        servers_on[node] = slot + 1
        place = choose_place(facts, recipe.network.interface)
        seats.append(Seat(index, facts, place, slot))
    return seats


def put_first(nodes: Sequence[Facts], primary: str | None) -> list[Facts]:
    """Return the nodes with the one at address `primary` in front; as given without one.

    Raises:
        PlanError: It is not among them.
    """
    if primary is None:
        return list(nodes)
    wanted = _as_address(primary) or primary
    chosen: list[Facts] = []
    others: list[Facts] = []
    for facts in nodes:
        is_primary = (_as_address(facts.ip) or facts.ip) == wanted
        (chosen if is_primary else others).append(facts)
    if not chosen:
        known = ", ".join(facts.ip for facts in nodes)
        raise PlanError(
            f"the primary {primary} is not among the nodes",
            why=f"nodes: {known}",
            todo="give the address of one of them",
        )
    return [*chosen, *others]


def _repeat_nodes(recipe: Recipe, nodes: Sequence[Facts]) -> list[Facts]:
    """Return one node per server: as given, or each as often as servers fit on it."""
    servers = recipe.parallel.servers
    if len(nodes) == servers:
        return list(nodes)
    per_node = 1
    if not recipe.hardware.spread:
        per_node = max(1, recipe.npus_per_node // recipe.npus_per_server)
    if len(nodes) * per_node < servers:
        raise _too_few_nodes(recipe, len(nodes), per_node)
    repeated = [facts for facts in nodes for _ in range(per_node)]
    return repeated[:servers]


def share_nodes(groups: Sequence[GroupSpec], nodes: Sequence[Facts]) -> list[list[Facts]]:
    """Return the nodes of each group, one entry per server where there are several groups.

    With as many nodes as servers, each server gets the next one. Otherwise a group takes the
    nodes on which the groups before it use the fewest NPUs, so that groups share a node only when
    there are too few. If they do not fit so, each takes the first nodes with enough free NPUs.

    Raises:
        PlanError: The nodes do not have enough NPUs for all the groups.
    """
    if len(groups) == 1:
        return [list(nodes)]
    sizes = [group.loaded.recipe.parallel.servers for group in groups]
    if len(nodes) == sum(sizes):
        left = iter(nodes)
        return [list(itertools.islice(left, size)) for size in sizes]
    for emptiest_first in (True, False):
        used = [0] * len(nodes)
        taken = [_take_nodes(group, used, emptiest_first=emptiest_first) for group in groups]
        if None not in taken:
            return [[nodes[at] for at in places or ()] for places in taken]
    failed = groups[taken.index(None)]
    raise PlanError(
        f"group {failed.name} does not fit on the {len(nodes)} node(s)",
        why=f"it has {failed.loaded.recipe.parallel.servers} server(s) of "
        f"{failed.loaded.recipe.npus_per_server} NPUs, and the groups before it use the others",
        todo=f"give more nodes (--host IP%NIC, repeated; {sum(sizes)} give each server its own), "
        "or lower the replicas",
    )


def nodes_needed(groups: Sequence[GroupSpec]) -> int:
    """Return on how many nodes the groups fit, when each takes free NPUs of those before it."""
    return count_nodes(group.loaded.recipe for group in groups)


def _take_nodes(group: GroupSpec, used: list[int], *, emptiest_first: bool) -> list[int] | None:
    """Choose the node of each server of a group, and count its NPUs in `used`.

    Returns:
        The nodes' places in `used`; None if there are too few NPUs.
    """
    recipe = group.loaded.recipe
    servers = recipe.parallel.servers
    order = range(len(used))
    taken: list[int] = []
    for at in sorted(order, key=lambda node: used[node]) if emptiest_first else order:
        free = (recipe.npus_per_node - used[at]) // recipe.npus_per_server
        most = 1 if recipe.hardware.spread else servers
        count = max(0, min(free, most, servers - len(taken)))
        used[at] += count * recipe.npus_per_server
        taken += [at] * count
    return taken if len(taken) == servers else None


def _too_few_nodes(recipe: Recipe, nodes: int, per_node: int) -> PlanError:
    parallel = recipe.parallel
    servers = parallel.servers
    needed = -(-servers // per_node)
    return PlanError(
        f"{servers} servers do not fit on {nodes} node(s)",
        why=f"data={parallel.data} with data_local={parallel.ranks_per_server} makes {servers} "
        f"servers of {recipe.npus_per_server} NPUs, {per_node} per node",
        todo=f"give {needed} nodes (--host IP%NIC, repeated), or lower parallel.data",
    )


def choose_place(facts: Facts, wanted: str) -> Place:
    """Choose the address and interface a server uses on its node.

    `wanted` is the recipe's `network.interface`; an interface fixed in `facts` overrides it.

    Raises:
        PlanError: No interface of the node fits, or none is known.
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
        listed = [f"  {nic.name}: {' '.join(nic.addresses) or '-'}" for nic in facts.interfaces]
        raise PlanError(
            f"node {facts.ip} has no interface that fits network.interface={wanted}",
            evidence="\n".join(listed),
            todo="set network.interface to one of these names or to a CIDR of an address",
        )
    interface, address = found
    return Place(address, interface.name, facts.node_id)


def _find_interface(facts: Facts, wanted: str) -> tuple[Interface, str] | None:
    """Return the interface that fits best, and its address there."""
    own = _as_address(facts.ip)
    network = _as_network(wanted) if "/" in wanted else None
    fitting = []
    for nic in facts.interfaces:
        for text in nic.addresses:
            at = ipaddress.ip_interface(text)
            if _fits(nic, at, wanted, own, network):
                fitting.append((nic, at))
    if not fitting:
        return None

    def preference(pair: tuple[Interface, InterfaceAddress]) -> tuple[bool, bool, bool, int]:
        nic, at = pair
        return at.ip != own, not nic.up, at.ip.is_loopback, at.version

    nic, at = min(fitting, key=preference)
    return nic, str(at.ip)


def _fits(
    nic: Interface,
    at: InterfaceAddress,
    wanted: str,
    own: Address | None,
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None,
) -> bool:
    # A link-local IPv6 address needs its zone, and no flag or variable of vLLM or HCCL has one.
    if at.version == 6 and at.is_link_local:
        return False
    if network is not None:
        return at.ip in network
    if wanted == "auto":
        return at.ip == own
    return nic.name == wanted


def _as_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise PlanError(
            f"network.interface={text} is not a network",
            why=str(error),
            todo="write a CIDR such as 192.0.2.0/24, an interface name, or auto",
        ) from error


def _as_address(text: str) -> Address | None:
    """Parse an address, so that spellings of IPv6 compare equal; None for a host name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def choose_devices(
    recipe: Recipe, seat: Seat, others: Sequence[LaunchPlan] = ()
) -> tuple[int, ...]:
    """Return the NPU ids of a server, ascending: granted by Ray, or the slot's share.

    The share is one of the ids that the plans in `others` leave free on the node.
    """
    if seat.facts.devices is not None:
        return tuple(sorted(seat.facts.devices))
    held: set[int] = set()
    for plan in others:
        for server in plan.servers:
            if _is_on(server.node, seat):
                held.update(server.devices)
    count = recipe.npus_per_server
    first = seat.slot * count
    free = (device for device in itertools.count() if device not in held)
    return tuple(itertools.islice(free, first, first + count))


def _is_on(node: Place, seat: Seat) -> bool:
    if node.node_id and seat.facts.node_id:
        return node.node_id == seat.facts.node_id
    return node.ip in (seat.facts.ip, seat.place.ip)


def bracket(ip: str) -> str:
    """Return an address as a URL needs it: IPv6 in brackets."""
    return f"[{ip}]" if ":" in ip else ip
