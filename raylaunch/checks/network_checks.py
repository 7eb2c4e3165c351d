"""Checks of the interfaces and addresses chosen for the servers: whether the others reach them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import CheckContext, Node, interface_of, is_loopback
from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.recipe.recipe_settings import read_config

_CHOOSE = "set network.interface=auto, or the name or CIDR of the network between the nodes"


def check_loopback(context: CheckContext) -> Iterator[Finding]:
    """Find servers on `lo`, which no other node can reach."""
    for node, server in _servers_on_several_nodes(context):
        place = server.node
        nic = interface_of(node.facts, place.interface)
        on_loopback = is_loopback(place.ip) or (nic is not None and nic.kind == "loopback")
        # A Ray cluster on loopback addresses only (tests) is consistent in itself.
        if on_loopback and not is_loopback(node.facts.ip):
            yield Finding(
                id="loopback-interface",
                level="error",
                what=(
                    f"server {server.index} on node {node.name} would use {place.interface} "
                    f"({place.ip}), which the other nodes cannot reach"
                ),
                todo=_CHOOSE,
                where=node.facts.ip,
                seen=f"{place.interface} {place.ip}",
            )


def check_same_address(context: CheckContext) -> Iterator[Finding]:
    """Find addresses that several nodes have.

    docker0 has 172.17.0.1 on every machine: a server that connects there reaches itself.
    """
    users: dict[str, list[tuple[Node, ServerPlan]]] = {}
    for node, server in _servers_on_several_nodes(context):
        users.setdefault(server.node.ip, []).append((node, server))
    for address, servers in users.items():
        # Two Ray nodes on one machine share one address, and may.
        machines = {node.facts.ip for node, _ in servers}
        if len(machines) > 1 and not is_loopback(address):
            names = ", ".join(f"{node.name} {server.node.interface}" for node, server in servers)
            yield Finding(
                id="same-address",
                level="error",
                what=f"several nodes would use the same address {address}: {names}",
                todo=_CHOOSE,
                seen=address,
            )


def check_interface_up(context: CheckContext) -> Iterator[Finding]:
    """Find interfaces that are down: only the machine itself can reach their addresses."""
    for node, server in _servers_on_several_nodes(context):
        nic = interface_of(node.facts, server.node.interface)
        if nic is not None and not nic.up:
            yield Finding(
                id="interface-down",
                level="error",
                what=(
                    f"{nic.name} on node {node.name}, which server {server.index} would use, "
                    f"is down"
                ),
                todo=(
                    f"ip link set {nic.name} up on that host, check its cable, or choose another "
                    f"network.interface"
                ),
                where=node.facts.ip,
                seen=f"{nic.name} {server.node.ip}",
            )


def check_families(context: CheckContext) -> Iterator[Finding]:
    """Find a mix of IPv4 and IPv6: Gloo and HCCL each use one family in a group."""
    addresses = [server.node.ip for _, server in _servers_on_several_nodes(context)]
    versions = {ipaddress.ip_address(address).version for address in addresses}
    if len(versions) > 1:
        yield Finding(
            id="mixed-families",
            level="error",
            what="some servers would use IPv4 and some IPv6 addresses",
            todo=(
                "set network.interface to a CIDR of one of the two: "
                "an address of every node must be in it"
            ),
            seen=", ".join(addresses),
        )


def check_gloo_address(context: CheckContext) -> Iterator[Finding]:
    """Find interfaces where Gloo would choose another address than the plan.

    Gloo uses the first address of the interface, IPv4 before IPv6 (gloo, tcp/device.cc).
    """
    for node, server in _servers_on_several_nodes(context):
        nic = interface_of(node.facts, server.node.interface)
        if nic is None or not nic.addresses:
            continue
        planned = server.node.ip
        first = nic.addresses[0].partition("/")[0]
        if ipaddress.ip_address(first) != ipaddress.ip_address(planned):
            yield Finding(
                id="gloo-address",
                level="warning",
                what=(
                    f"server {server.index} on node {node.name} uses {planned}, "
                    f"but Gloo will use {first} of {nic.name}"
                ),
                todo=(
                    f"make sure that the other nodes reach {first} too, "
                    f"or give {planned} an interface of its own"
                ),
                where=node.facts.ip,
                seen=" ".join(nic.addresses),
            )


def check_api_host(context: CheckContext) -> Iterator[Finding]:
    """Find an API that would not listen on the address that its clients connect to."""
    primary = context.plan.primary
    host = context.recipe.network.host
    own = _own_addresses(context, primary)
    what = ""
    if host == "0.0.0.0" and ":" in primary.node.ip:  # noqa: S104 - compared, not bound
        what = (
            f"the API would listen on IPv4 alone (network.host=0.0.0.0), "
            f"and its node is {primary.node.ip}"
        )
    elif own and _is_one_address(host) and host not in own:
        what = (
            f"the API would listen on {host} (network.host), "
            f"which its node {primary.node.ip} does not have"
        )
    if what:
        yield Finding(
            id="api-host",
            level="error",
            what=what,
            todo="set network.host=node: the address of the chosen interface",
            where=context.loaded.origin("network.host"),
            seen=" ".join(sorted(own)),
        )


def check_mooncake(context: CheckContext) -> Iterator[Finding]:
    """Warn of Mooncake over IPv6, which Mooncake itself does not support.

    vllm-ascend calls it experimental (pull request 4161).
    """
    connector = str(read_config(context.recipe, "kv-transfer-config").get("kv_connector", ""))
    address = context.plan.primary.node.ip
    if "mooncake" in connector.lower() and ":" in address:
        yield Finding(
            id="ipv6-mooncake",
            level="warning",
            what=(
                f"{connector} over IPv6 is experimental in vllm-ascend: "
                f"Mooncake itself does not support it"
            ),
            todo=("set network.interface to a CIDR of IPv4; with IPv6 alone try env.MC_USE_IPV6=1"),
            where=context.loaded.origin("args.kv-transfer-config"),
            seen=address,
        )


def check_hostname(context: CheckContext) -> Iterator[Finding]:
    """Find host names that resolve to loopback: libraries would announce 127.x to the others."""
    if not context.several_addresses:
        return
    for node in context.nodes:
        loopback = [address for address in node.facts.resolves_to if is_loopback(address)]
        if loopback:
            hostname = node.facts.hostname or "the hostname"
            yield Finding(
                id="hostname-loopback",
                level="warning",
                what=f"node {node.name} resolves its own hostname to {loopback[0]}",
                todo=f"map {hostname} to {node.facts.ip} in /etc/hosts",
                where=node.facts.ip,
                seen=", ".join(loopback),
            )


NETWORK_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_loopback,
    check_same_address,
    check_interface_up,
    check_families,
    check_gloo_address,
    check_api_host,
    check_mooncake,
    check_hostname,
)


def _own_addresses(context: CheckContext, server: ServerPlan) -> set[str]:
    """Return the addresses of a server's node; empty when it was not probed."""
    addresses: set[str] = set()
    for node in context.nodes:
        if server not in node.servers:
            continue
        for nic in node.facts.interfaces:
            addresses.update(text.partition("/")[0] for text in nic.addresses)
    return addresses


def _is_one_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # "node", or a name
        return False
    return not (address.is_unspecified or is_loopback(host))


def _servers_on_several_nodes(context: CheckContext) -> Iterator[tuple[Node, ServerPlan]]:
    """Yield every server with its node; nothing when all are on one node."""
    if context.several_addresses:
        for node in context.nodes:
            for server in node.servers:
                yield node, server
