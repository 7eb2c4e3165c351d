"""Checks on the NPUs' own network ports, as `hccn_tool` described them, where the servers sit on several machines.

HCCL carries the traffic between the machines over these ports and not over the hosts' interfaces. On A3 the machines
of one super-pod may also talk over HCCS, which these ports say nothing about: there the findings are warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.facts import NpuLink

_UNCHECKED = ("Init", "Detect IP set")
"""Words of `-net_health` for a port that watches no address, so that nothing is known."""
_NO_ADDRESS = "0.0.0.0"  # noqa: S104 - compared, not bound


def check_links(view: View) -> Iterator[Finding]:
    """A port that is down joins nobody."""
    level: Level = "warning" if view.plan.platform == "ascend-a3" else "error"
    for node, links in _ports(view):
        down = [link.npu for link in links if link.link not in (None, "UP")]
        if down:
            what = f"the network ports of NPU {ids(down)} on node {node.name} are down"
            todo = "look at cables, optical modules and switch ports; `hccn_tool -i ID -link_stat -g` has the history"
            yield Finding(
                "npu-link-down", level, what, todo, node.facts.ip, _told(links, down, "link")
            )


def check_addresses(view: View) -> Iterator[Finding]:
    """Without an address a port cannot talk to other machines."""
    level: Level = "warning" if view.plan.platform == "ascend-a3" else "error"
    for node, links in _ports(view):
        without = [link.npu for link in links if link.link is not None and not link.ip]
        if without:
            what = f"the network ports of NPU {ids(without)} on node {node.name} have no address"
            todo = "hccn_tool -i ID -ip -s address ADDRESS netmask MASK, as root on that host, one address per NPU"
            yield Finding(
                "npu-no-address", level, what, todo, node.facts.ip, _told(links, without, "ip")
            )


def check_same_address(view: View) -> Iterator[Finding]:
    """An address that two ports have leads to one of them, if at all: a copied /etc/hccn.conf."""
    owners: dict[str, list[str]] = {}
    for node, links in _ports(view):
        for link in links:
            owners.setdefault(link.ip or "", []).append(f"NPU {link.npu} of {node.name}")
    twice = {address: names for address, names in owners.items() if address and len(names) > 1}
    if twice:
        address, names = next(iter(twice.items()))
        more = f", and {len(twice) - 1} more addresses" if len(twice) > 1 else ""
        what = f"{' and '.join(names[:3])} have the same address {address}{more}"
        todo = "give each NPU an address of its own (`hccn_tool -i ID -ip -s address ...`, /etc/hccn.conf)"
        seen = "; ".join(
            f"{address}: {', '.join(names)}" for address, names in list(twice.items())[:8]
        )
        yield Finding("npu-address-twice", "error", what, todo, "", seen)


def check_net_health(view: View) -> Iterator[Finding]:
    """The port's own verdict on its network; it is asked to watch an address, and without one it has no verdict."""
    for node, links in _ports(view):
        told = [link for link in links if link.net_health not in (None, "Success")]
        blind = [
            link.npu
            for link in told
            if link.net_health in _UNCHECKED or link.netdetect == _NO_ADDRESS
        ]
        sick = [link.npu for link in told if link.npu not in blind]
        if sick:
            level: Level = "warning" if view.plan.platform == "ascend-a3" else "error"
            what = f"NPU {ids(sick)} on node {node.name} say that their network is not healthy"
            todo = "hccn_tool -i ID -netdetect -g names the address that is watched; ping it: hccn_tool -i ID -ping -g"
            yield Finding(
                "npu-net-health", level, what, todo, node.facts.ip, _told(links, sick, "net_health")
            )
        elif blind:
            what = f"NPU {ids(blind)} on node {node.name} watch no address: their network's health is not known"
            todo = "hccn_tool -i ID -netdetect -s address GATEWAY, as root on that host"
            yield Finding(
                "npu-net-health",
                "warning",
                what,
                todo,
                node.facts.ip,
                _told(links, blind, "net_health"),
            )


def check_tls(view: View) -> Iterator[Finding]:
    """A port with TLS refuses one without (HCCL: EI0016)."""
    groups = _by_value(view, "tls")
    if len(groups) > 1:
        said = [f"{'on' if value else 'off'}: {names}" for value, names in groups.items()]
        what = f"the TLS switch of the NPUs' network ports is not the same everywhere: {'; '.join(said[1:])}"
        todo = "make it equal on all of them, for example `hccn_tool -i ID -tls -s enable 0` as root on the hosts"
        yield Finding("npu-tls-differs", "error", what, todo, "", "; ".join(said))


def check_mtu(view: View) -> Iterator[Finding]:
    """What the port with the larger MTU sends, the other one drops: small packets go through and collectives hang."""
    groups = _by_value(view, "mtu")
    if len(groups) > 1:
        said = [f"{value}: {names}" for value, names in groups.items()]
        what = (
            f"the MTU of the NPUs' network ports is not the same everywhere: {'; '.join(said[1:])}"
        )
        todo = (
            "make it equal on all of them: `hccn_tool -i ID -mtu -s mtu SIZE` as root on the hosts"
        )
        yield Finding("npu-mtu-differs", "error", what, todo, "", "; ".join(said))


LINK_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_links,
    check_addresses,
    check_same_address,
    check_net_health,
    check_tls,
    check_mtu,
)


def planned_ports(node: Node) -> tuple[NpuLink, ...]:
    """The ports of the NPUs that the plan uses, by id; all of the node's when its tools count otherwise."""
    wanted = {device for server in node.servers for device in server.devices}
    links = sorted(node.facts.npu_links, key=lambda link: link.npu)
    return tuple([link for link in links if link.npu in wanted] or links)


def ids(npus: Iterable[int]) -> str:
    """Ids as a person writes them: 0-3, 5."""
    spans: list[list[int]] = []
    for npu in sorted(set(npus)):
        if spans and spans[-1][1] == npu - 1:
            spans[-1][1] = npu
        else:
            spans.append([npu, npu])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _ports(view: View) -> list[tuple[Node, tuple[NpuLink, ...]]]:
    """Each node with its ports, where they are needed: inside one machine HCCL does without them."""
    if view.plan.platform == "cpu" or not view.several_addresses:
        return []
    return [(node, planned_ports(node)) for node in view.nodes]


def _by_value(view: View, name: str) -> Mapping[Hashable, str]:
    """Each value of a setting with the ports that have it, the most frequent one first; silent ports are left out."""
    holders: dict[Hashable, dict[str, list[int]]] = {}
    for node, links in _ports(view):
        for link in links:
            if (value := getattr(link, name)) is not None:
                holders.setdefault(value, {}).setdefault(node.name, []).append(link.npu)
    frequent = sorted(holders.items(), key=lambda item: -sum(map(len, item[1].values())))
    return {value: _owners(nodes) for value, nodes in frequent}


def _owners(nodes: Mapping[str, list[int]]) -> str:
    shown = [f"NPU {ids(npus)} of {name}" for name, npus in list(nodes.items())[:4]]
    return ", ".join(shown) + (
        f" and those of {len(nodes) - 4} more nodes" if len(nodes) > 4 else ""
    )


def _told(links: Iterable[NpuLink], npus: list[int], name: str) -> str:
    return ", ".join(
        f"NPU {link.npu}: {getattr(link, name) or 'none'}" for link in links if link.npu in npus
    )
