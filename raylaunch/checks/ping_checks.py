"""Whether the NPUs of one machine reach those of another: which ones to ask, and what their answers mean.

Every NPU pings once per pair of machines, so one round takes as long as one ping (2-3 s): on the first machine the
counterpart with its own number, on the second the counterpart of its neighbour. The first half is what back-to-back
cabling joins, the second half is what only a switch joins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from raylaunch.checks.check_context import Node, View, look
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.link_checks import ids, planned_ports
from raylaunch.plan.facts import Facts, NpuLink
from raylaunch.plan.launch_plan import LaunchPlan

if TYPE_CHECKING:
    from raylaunch.recipe.load import LoadedRecipe

_SHOWN = 8


@dataclass(frozen=True)
class Ping:
    """One NPU's ping to one of another machine. `source` and `target` are the machines' addresses.

    `straight`: between counterparts, which also two machines cabled back to back must be able to do.
    """

    source: str
    npu: int
    address: str
    target: str
    target_npu: int
    target_address: str
    straight: bool


@dataclass(frozen=True)
class Pinged:
    """How a ping ended. `reached` is None when the tool counted no packets; `complaint` is its word."""

    ping: Ping
    reached: bool | None
    complaint: str = ""


def choose_pings(
    loaded: LoadedRecipe, nodes: Sequence[Facts], plan: LaunchPlan
) -> dict[int, tuple[Ping, ...]]:
    """Which NPU pings which, by the index of the server whose agent has to see to it.

    Two machines ask each other; more of them ask around a ring, so that the time does not grow with their number.
    Ports without an address or with a link that is down are left out: other findings name them.
    """
    view = look(loaded, nodes, plan)
    chosen: dict[int, tuple[Ping, ...]] = {}
    for first, second in _ring(view):
        for source, target, shift in ((first, second, 0), (second, first, 1)):
            index = source.servers[0].index
            chosen[index] = (*chosen.get(index, ()), *_pings(source, target, shift))
    return {index: pings for index, pings in chosen.items() if pings}


def check_pings(
    loaded: LoadedRecipe, nodes: Sequence[Facts], plan: LaunchPlan, pinged: Sequence[Pinged]
) -> Iterator[Finding]:
    """Yield what the answers mean, pair of machines by pair of machines."""
    view = look(loaded, nodes, plan)
    by_pair: dict[frozenset[str], list[Pinged]] = {}
    for one in pinged:
        by_pair.setdefault(frozenset((one.ping.source, one.ping.target)), []).append(one)
    for first, second in _ring(view):
        between = by_pair.get(frozenset((first.facts.ip, second.facts.ip)), [])
        if _are_back_to_back(view, between):
            yield _back_to_back(first, second)
        else:
            yield from _unreached(view, first, second, between)
        yield from _unanswered(first, second, between)
    yield from _check_switch(view)


def _ring(view: View) -> list[tuple[Node, Node]]:
    """Neighbours, the last one beside the first; a pair only once."""
    if view.plan.platform == "cpu" or not view.several_addresses:
        return []
    nodes = list(view.nodes)
    return list(pairwise([*nodes, nodes[0]] if len(nodes) > 2 else nodes))


def _pings(source: Node, target: Node, shift: int) -> Iterator[Ping]:
    """By place and not by id: rank i meets rank i, whichever NPUs Ray granted."""
    here, there = planned_ports(source), planned_ports(target)
    for place, port in enumerate(here):
        other = there[(place + shift) % len(there)] if there else None
        if other is not None and _may_ping(port) and _may_ping(other):
            yield Ping(
                source.facts.ip,
                port.npu,
                port.ip or "",
                target.facts.ip,
                other.npu,
                other.ip or "",
                shift == 0,
            )


def _may_ping(port: NpuLink) -> bool:
    return bool(port.ip) and port.link in (None, "UP")


def _are_back_to_back(view: View, between: Sequence[Pinged]) -> bool:
    """Two machines without a switch in sight, whose NPUs reach exactly their counterparts."""
    straight = [one.reached for one in between if one.ping.straight]
    across = [one.reached for one in between if not one.ping.straight]
    return (
        len(view.nodes) == 2
        and not any(port.lldp_port for node in view.nodes for port in planned_ports(node))
        and len(across) > 1
        and all(straight)
        and bool(straight)
        and all(reached is False for reached in across)
    )


def _back_to_back(first: Node, second: Node) -> Finding:
    what = (
        f"the NPUs of {first.name} and {second.name} are cabled back to back: each reaches its counterpart and no "
        "other, and no switch shows itself by LLDP"
    )
    todo = "enough for traffic between counterparts; if the start ends with EI0006, join the machines by a switch"
    return Finding("npu-back-to-back", "info", what, todo)


def _unreached(
    view: View, first: Node, second: Node, between: Sequence[Pinged]
) -> Iterator[Finding]:
    """HCCL would wait for the other NPU until its timeout (EI0006), minutes after the weights were read."""
    level: Level = "warning" if view.plan.platform == "ascend-a3" else "error"
    lost = [one for one in between if one.reached is False]
    if lost:
        shown = [_said(one.ping) for one in lost[:_SHOWN]]
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        names = {first.facts.ip: first.name, second.facts.ip: second.name}
        ways = dict.fromkeys(f"{names[one.ping.source]} → {names[one.ping.target]}" for one in lost)
        what = f"NPUs do not reach each other, {', '.join(ways)}: {', '.join(shown)}{more}"
        yield Finding(
            "npu-unreachable",
            level,
            what,
            _advise(view, lost),
            lost[0].ping.source,
            _complaints(lost),
        )


def _unanswered(first: Node, second: Node, between: Sequence[Pinged]) -> Iterator[Finding]:
    """A ping that the tool did not carry out says nothing about the network."""
    silent = [one for one in between if one.reached is None]
    if silent:
        npus = ids(one.ping.npu for one in silent)
        what = f"{len(silent)} pings between the NPUs of {first.name} and {second.name} had no result (NPU {npus})"
        todo = f"by hand: hccn_tool -i {silent[0].ping.npu} -ping -g address {silent[0].ping.target_address}"
        yield Finding(
            "npu-not-pinged", "warning", what, todo, silent[0].ping.source, _complaints(silent)
        )


def _check_switch(view: View) -> Iterator[Finding]:
    """Where most ports see a switch, one that sees none is in the wrong socket; or the switch tells it to some only."""
    if view.plan.platform == "cpu" or not view.several_addresses:
        return
    ports = {
        node.name: [port for port in planned_ports(node) if port.link is not None]
        for node in view.nodes
    }
    switched = [(name, port) for name, here in ports.items() for port in here if port.lldp_port]
    for node in view.nodes if switched else ():
        bare = [port.npu for port in ports[node.name] if not port.lldp_port]
        if bare:
            what = f"NPU {ids(bare)} of node {node.name} see no switch port (LLDP), while others do"
            todo = "look where their cables end; or let the switch send LLDP on all ports"
            seen = ", ".join(
                f"NPU {port.npu} of {name}: {port.lldp_port}" for name, port in switched[:4]
            )
            yield Finding("npu-cabling", "warning", what, todo, node.facts.ip, seen)


def _said(ping: Ping) -> str:
    return f"NPU {ping.npu} ({ping.address}) → NPU {ping.target_npu} ({ping.target_address})"


def _complaints(pinged: Iterable[Pinged]) -> str:
    return "; ".join(dict.fromkeys(one.complaint for one in pinged if one.complaint))


def _advise(view: View, lost: Sequence[Pinged]) -> str:
    ping = lost[0].ping
    hand = f"hccn_tool -i {ping.npu} -ping -g address {ping.target_address}"
    if any(port.lldp_port for node in view.nodes for port in planned_ports(node)):
        return f"switch ports, VLAN, netmask and gateway of these NPUs (`hccn_tool -i ID -gateway -g`); by hand: {hand}"
    return (
        "no switch shows itself by LLDP: if the machines are cabled back to back, each NPU must meet the one with its "
        f"own number, in one subnet; with a switch look at its ports and VLAN; by hand: {hand}"
    )
