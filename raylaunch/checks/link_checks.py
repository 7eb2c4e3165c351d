"""Checks of the NPUs' own network ports, as `hccn_tool` describes them, between machines.

HCCL carries the traffic between the machines over these ports and not over the hosts' interfaces.
On A3 the machines of one super-pod may also communicate over HCCS, which these ports do not show:
there the findings are warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.facts import NpuLink

_UNCHECKED = ("Init", "Detect IP set")
"""Words of `-net_health` for a port that monitors no address, so that nothing is known."""
_NO_ADDRESS = "0.0.0.0"  # noqa: S104 - compared, not bound
_SHOWN_NODES = 4
_SHOWN_ADDRESSES = 8
_SHOWN_OWNERS = 3


def check_links(context: CheckContext) -> Iterator[Finding]:
    """Find ports whose link is down."""
    for node, links in _ports(context):
        down = [link.npu for link in links if link.link not in (None, "UP")]
        if down:
            yield Finding(
                id="npu-link-down",
                level=_level(context),
                what=f"the network ports of NPU {ids(down)} on node {node.name} are down",
                todo=(
                    "check cables, optical modules and switch ports; "
                    "`hccn_tool -i ID -link_stat -g` has the history"
                ),
                where=node.facts.ip,
                seen=_values(links, down, "link"),
            )


def check_addresses(context: CheckContext) -> Iterator[Finding]:
    """Find ports without an address: they cannot communicate with other machines."""
    for node, links in _ports(context):
        without = [link.npu for link in links if link.link is not None and not link.ip]
        if without:
            yield Finding(
                id="npu-no-address",
                level=_level(context),
                what=f"the network ports of NPU {ids(without)} on node {node.name} have no address",
                todo=(
                    "hccn_tool -i ID -ip -s address ADDRESS netmask MASK, as root on that host, "
                    "one address per NPU"
                ),
                where=node.facts.ip,
                seen=_values(links, without, "ip"),
            )


def check_same_address(context: CheckContext) -> Iterator[Finding]:
    """Find addresses that two ports have, typically from a copied /etc/hccn.conf."""
    owners: dict[str, list[str]] = {}
    for node, links in _ports(context):
        for link in links:
            if link.ip:
                owners.setdefault(link.ip, []).append(f"NPU {link.npu} of {node.name}")
    shared = {address: names for address, names in owners.items() if len(names) > 1}
    if not shared:
        return
    address, names = next(iter(shared.items()))
    more = f", and {len(shared) - 1} more addresses" if len(shared) > 1 else ""
    rows = [f"{each}: {', '.join(its)}" for each, its in list(shared.items())[:_SHOWN_ADDRESSES]]
    yield Finding(
        id="npu-address-twice",
        level="error",
        what=f"{' and '.join(names[:_SHOWN_OWNERS])} have the same address {address}{more}",
        todo=(
            "give each NPU an address of its own "
            "(`hccn_tool -i ID -ip -s address ...`, /etc/hccn.conf)"
        ),
        seen="; ".join(rows),
    )


def check_net_health(context: CheckContext) -> Iterator[Finding]:
    """Report the port's own verdict on its network; it needs an address to monitor."""
    for node, links in _ports(context):
        not_healthy = [link for link in links if link.net_health not in (None, "Success")]
        unknown = [link.npu for link in not_healthy if _monitors_nothing(link)]
        unhealthy = [link.npu for link in not_healthy if not _monitors_nothing(link)]
        if unhealthy:
            yield Finding(
                id="npu-net-health",
                level=_level(context),
                what=(
                    f"NPU {ids(unhealthy)} on node {node.name} report that their network is not "
                    f"healthy"
                ),
                todo=(
                    "hccn_tool -i ID -netdetect -g shows the monitored address; "
                    "ping it: hccn_tool -i ID -ping -g"
                ),
                where=node.facts.ip,
                seen=_values(links, unhealthy, "net_health"),
            )
        elif unknown:
            yield Finding(
                id="npu-net-health",
                level="warning",
                what=(
                    f"NPU {ids(unknown)} on node {node.name} monitor no address: "
                    f"their network's health is unknown"
                ),
                todo="hccn_tool -i ID -netdetect -s address GATEWAY, as root on that host",
                where=node.facts.ip,
                seen=_values(links, unknown, "net_health"),
            )


def check_tls(context: CheckContext) -> Iterator[Finding]:
    """Find differing TLS switches: a port with TLS refuses one without (HCCL: EI0016)."""
    groups = _by_value(context, "tls")
    if len(groups) > 1:
        rows = [f"{'on' if value else 'off'}: {names}" for value, names in groups.items()]
        yield Finding(
            id="npu-tls-differs",
            level="error",
            what=(
                f"the TLS switch of the NPUs' network ports is not the same everywhere: "
                f"{'; '.join(rows[1:])}"
            ),
            todo=(
                "set it equal on all of them, for example `hccn_tool -i ID -tls -s enable 0` "
                "as root on the hosts"
            ),
            seen="; ".join(rows),
        )


def check_mtu(context: CheckContext) -> Iterator[Finding]:
    """Find differing MTUs: small packets pass, large ones are dropped, and collectives hang."""
    groups = _by_value(context, "mtu")
    if len(groups) > 1:
        rows = [f"{value}: {names}" for value, names in groups.items()]
        yield Finding(
            id="npu-mtu-differs",
            level="error",
            what=(
                f"the MTU of the NPUs' network ports is not the same everywhere: "
                f"{'; '.join(rows[1:])}"
            ),
            todo=(
                "set it equal on all of them: `hccn_tool -i ID -mtu -s mtu SIZE` as root on the "
                "hosts"
            ),
            seen="; ".join(rows),
        )


LINK_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_links,
    check_addresses,
    check_same_address,
    check_net_health,
    check_tls,
    check_mtu,
)


def planned_ports(node: Node) -> tuple[NpuLink, ...]:
    """Return the ports of the planned NPUs, by id.

    All of the node's when its tools number them otherwise.
    """
    wanted: set[int] = set()
    for server in node.servers:
        wanted.update(server.devices)
    links = sorted(node.facts.npu_links, key=lambda link: link.npu)
    planned = [link for link in links if link.npu in wanted]
    return tuple(planned or links)


def ids(npus: Iterable[int]) -> str:
    """Format ids as ranges: 0-3, 5."""
    spans: list[tuple[int, int]] = []
    for npu in sorted(set(npus)):
        if spans and spans[-1][1] == npu - 1:
            first, _ = spans.pop()
            spans.append((first, npu))
        else:
            spans.append((npu, npu))
    texts = []
    for first, last in spans:
        texts.append(str(first) if first == last else f"{first}-{last}")
    return ", ".join(texts)


def _level(context: CheckContext) -> Level:
    # On A3 HCCS may carry the traffic instead (module docstring).
    return "warning" if context.plan.platform == "ascend-a3" else "error"


def _monitors_nothing(link: NpuLink) -> bool:
    return link.net_health in _UNCHECKED or link.netdetect == _NO_ADDRESS


def _ports(context: CheckContext) -> list[tuple[Node, tuple[NpuLink, ...]]]:
    """Return each node with its ports, if they are used: inside one machine HCCL needs none."""
    if context.plan.platform == "cpu" or not context.several_addresses:
        return []
    return [(node, planned_ports(node)) for node in context.nodes]


def _by_value(context: CheckContext, name: str) -> Mapping[Hashable, str]:
    """Return each value of a setting with the ports that have it, the most frequent one first.

    Ports that did not report the setting are left out.
    """
    holders: dict[Hashable, dict[str, list[int]]] = {}
    for node, links in _ports(context):
        for link in links:
            value = getattr(link, name)
            if value is not None:
                holders.setdefault(value, {}).setdefault(node.name, []).append(link.npu)

    def port_count(value: Hashable) -> int:
        return sum(len(npus) for npus in holders[value].values())

    by_frequency = sorted(holders, key=port_count, reverse=True)
    return {value: _owners(holders[value]) for value in by_frequency}


def _owners(nodes: Mapping[str, list[int]]) -> str:
    owners = [f"NPU {ids(npus)} of {name}" for name, npus in nodes.items()]
    shown = ", ".join(owners[:_SHOWN_NODES])
    more = len(owners) - _SHOWN_NODES
    if more > 0:
        shown += f" and those of {more} more nodes"
    return shown


def _values(links: Iterable[NpuLink], npus: list[int], name: str) -> str:
    rows = []
    for link in links:
        if link.npu in npus:
            value = getattr(link, name) or "none"
            rows.append(f"NPU {link.npu}: {value}")
    return ", ".join(rows)
