"""Checks on the interfaces and addresses that the servers were given: whether the others could reach them there."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import Node, View, interface_of, is_loopback
from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.recipe.recipe_settings import read_config

_CHOOSE = "set network.interface=auto, or the name or CIDR of the network between the nodes"


def check_loopback(view: View) -> Iterator[Finding]:
    """A server on `lo` is not seen by the others."""
    for node, server in _servers_apart(view):
        nic = interface_of(node.facts, server.node.interface)
        own = is_loopback(server.node.ip) or (nic is not None and nic.kind == "loopback")
        if own and not is_loopback(node.facts.ip):
            yield Finding(
                "loopback-interface",
                "error",
                f"server {server.index} on node {node.name} would use {server.node.interface} "
                f"({server.node.ip}), which the other nodes cannot reach",
                _CHOOSE,
                node.facts.ip,
                f"{server.node.interface} {server.node.ip}",
            )


def check_same_address(view: View) -> Iterator[Finding]:
    """docker0 has 172.17.0.1 on every machine: a server that connects there meets itself."""
    users: dict[str, list[tuple[Node, ServerPlan]]] = {}
    for node, server in _servers_apart(view):
        users.setdefault(server.node.ip, []).append((node, server))
    for address, here in users.items():
        nodes = {
            node.facts.ip: node for node, _ in here
        }  # two Ray nodes on one machine have one address: that is well
        if len(nodes) > 1 and not is_loopback(address):
            names = ", ".join(f"{node.name} {server.node.interface}" for node, server in here)
            what = f"several nodes would use the same address {address}: {names}"
            yield Finding("same-address", "error", what, _CHOOSE, "", address)


def check_interface_up(view: View) -> Iterator[Finding]:
    """The kernel answers on the address of an interface that is down, but nobody beyond the machine gets there."""
    for node, server in _servers_apart(view):
        nic = interface_of(node.facts, server.node.interface)
        if nic is not None and not nic.up:
            what = f"{nic.name} on node {node.name}, which server {server.index} would use, is down"
            todo = f"ip link set {nic.name} up on that host, look after its cable, or choose another network.interface"
            yield Finding(
                "interface-down", "error", what, todo, node.facts.ip, f"{nic.name} {server.node.ip}"
            )


def check_families(view: View) -> Iterator[Finding]:
    """Gloo and HCCL each speak one family in a group: a rank with IPv4 and one with IPv6 do not meet."""
    servers = [server for _, server in _servers_apart(view)]
    kinds = {ipaddress.ip_address(server.node.ip).version for server in servers}
    if len(kinds) > 1:
        seen = ", ".join(server.node.ip for server in servers)
        what = "some servers would use IPv4 and some IPv6 addresses"
        todo = "set network.interface to a CIDR of one of the two: an address of every node must be in it"
        yield Finding("mixed-families", "error", what, todo, "", seen)


def check_gloo_address(view: View) -> Iterator[Finding]:
    """Gloo takes the first address of the interface it is told, IPv4 before IPv6 (gloo, tcp/device.cc)."""
    for node, server in _servers_apart(view):
        nic = interface_of(node.facts, server.node.interface)
        first = nic.addresses[0].partition("/")[0] if nic and nic.addresses else server.node.ip
        if nic and ipaddress.ip_address(first) != ipaddress.ip_address(server.node.ip):
            ip = server.node.ip
            what = f"server {server.index} on node {node.name} uses {ip}, but Gloo will use {first} of {nic.name}"
            todo = f"make sure that the other nodes reach {first} too, or give {ip} an interface of its own"
            yield Finding(
                "gloo-address", "warning", what, todo, node.facts.ip, " ".join(nic.addresses)
            )


def check_api_host(view: View) -> Iterator[Finding]:
    """The API listens where it is told to; its clients, and raylaunch, come to the endpoint of the plan."""
    primary, host = view.plan.primary, view.recipe.network.host
    node = next((node for node in view.nodes if primary in node.servers), None)
    own = (
        {text.partition("/")[0] for nic in node.facts.interfaces for text in nic.addresses}
        if node
        else set()
    )
    where, what = view.loaded.origin("network.host"), ""
    if host == "0.0.0.0" and ":" in primary.node.ip:  # noqa: S104 - compared, not bound
        what = f"the API would listen on IPv4 alone (network.host=0.0.0.0), and its node is {primary.node.ip}"
    elif own and _is_one_address(host) and host not in own:
        what = f"the API would listen on {host} (network.host), which its node {primary.node.ip} does not have"
    if what:
        todo = "set network.host=node: the address of the chosen interface"
        yield Finding("api-host", "error", what, todo, where, " ".join(sorted(own)))


def check_mooncake(view: View) -> Iterator[Finding]:
    """vllm-ascend calls IPv6 experimental there (pull request 4161), for Mooncake does not support it by itself."""
    transfer = str(read_config(view.recipe, "kv-transfer-config").get("kv_connector", ""))
    if "mooncake" in transfer.lower() and ":" in view.plan.primary.node.ip:
        what = f"{transfer} over IPv6 is experimental in vllm-ascend: Mooncake itself does not support it"
        todo = "set network.interface to a CIDR of IPv4; with IPv6 alone try env.MC_USE_IPV6=1"
        where = view.loaded.origin("args.kv-transfer-config")
        yield Finding("ipv6-mooncake", "warning", what, todo, where, view.plan.primary.node.ip)


def check_hostname(view: View) -> Iterator[Finding]:
    """Libraries that look up the own name would offer 127.x to the others."""
    for node in view.nodes if view.several_addresses else ():
        bad = [address for address in node.facts.resolves_to if is_loopback(address)]
        if bad:
            what = f"node {node.name} resolves its own hostname to {bad[0]}"
            todo = f"let /etc/hosts map {node.facts.hostname or 'the hostname'} to {node.facts.ip}"
            yield Finding("hostname-loopback", "warning", what, todo, node.facts.ip, ", ".join(bad))


NETWORK_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_loopback,
    check_same_address,
    check_interface_up,
    check_families,
    check_gloo_address,
    check_api_host,
    check_mooncake,
    check_hostname,
)


def _is_one_address(host: str) -> bool:
    try:
        return not (ipaddress.ip_address(host).is_unspecified or is_loopback(host))
    except ValueError:  # "node", or a name
        return False


def _servers_apart(view: View) -> Iterator[tuple[Node, ServerPlan]]:
    """Every server with its node, when there is more than one node to be reached."""
    if view.several_addresses:
        for node in view.nodes:
            yield from ((node, server) for server in node.servers)
