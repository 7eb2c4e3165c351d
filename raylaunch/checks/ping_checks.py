"""Pings between the NPUs of different machines: which to run, and what the results mean.

Every NPU pings once per pair of machines, so one round takes as long as one ping (2-3 s). On the
first machine it pings the counterpart with its own number, on the second the counterpart of its
neighbour. The first half is what back-to-back cabling connects, the second half only a switch does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from raylaunch.checks.check_context import CheckContext, Node, build_context
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.link_checks import ids, planned_ports
from raylaunch.plan.facts import Facts, NpuLink
from raylaunch.plan.launch_plan import LaunchPlan

if TYPE_CHECKING:
    from raylaunch.recipe.load import LoadedRecipe

_SHOWN = 8
_SHOWN_SWITCH_PORTS = 4


@dataclass(frozen=True)
class Ping:
    """A ping of one NPU to an NPU of another machine.

    `source` and `target` are the machines' addresses. `straight`: between counterparts, which must
    reach each other even when two machines are cabled back to back.
    """

    source: str
    npu: int
    address: str
    target: str
    target_npu: int
    target_address: str
    straight: bool


@dataclass(frozen=True)
class PingResult:
    """Result of a ping.

    `reached` is None when the tool counted no packets; `complaint` is the tool's message.
    """

    ping: Ping
    reached: bool | None
    complaint: str = ""


def choose_pings(
    loaded: LoadedRecipe, nodes: Sequence[Facts], plan: LaunchPlan
) -> dict[int, tuple[Ping, ...]]:
    """Choose which NPU pings which, by the index of the server whose agent runs the ping.

    Two machines ping each other; more of them ping around a ring, so that the time does not grow
    with their number. Ports without an address or with a link that is down are left out: other
    findings name them.
    """
    context = build_context(loaded, nodes, plan)
    chosen: dict[int, tuple[Ping, ...]] = {}
    for first, second in _ring(context):
        # The second machine pings the neighbours' counterparts (module docstring).
        directions = ((first, second, 0), (second, first, 1))
        for source, target, shift in directions:
            index = source.servers[0].index
            earlier = chosen.get(index, ())
            chosen[index] = (*earlier, *_pings(source, target, shift))
    return {index: pings for index, pings in chosen.items() if pings}


def check_pings(
    loaded: LoadedRecipe, nodes: Sequence[Facts], plan: LaunchPlan, results: Sequence[PingResult]
) -> Iterator[Finding]:
    """Yield what the results mean, pair of machines by pair of machines."""
    context = build_context(loaded, nodes, plan)
    by_pair: dict[frozenset[str], list[PingResult]] = {}
    for result in results:
        pair = frozenset((result.ping.source, result.ping.target))
        by_pair.setdefault(pair, []).append(result)
    for first, second in _ring(context):
        between = by_pair.get(frozenset((first.facts.ip, second.facts.ip)), [])
        if _are_back_to_back(context, between):
            yield _back_to_back(first, second)
        else:
            yield from _unreached(context, first, second, between)
        yield from _without_result(first, second, between)
    yield from _check_switch(context)


def _ring(context: CheckContext) -> list[tuple[Node, Node]]:
    """Return pairs of neighbouring machines; the last one is a neighbour of the first."""
    if context.plan.platform == "cpu" or not context.several_addresses:
        return []
    nodes = list(context.nodes)
    if len(nodes) > 2:
        nodes.append(nodes[0])
    return list(pairwise(nodes))


def _pings(source: Node, target: Node, shift: int) -> Iterator[Ping]:
    """Yield the pings of one machine to another.

    Paired by position, not by id: rank i communicates with rank i, whichever NPUs Ray granted.
    """
    source_ports = planned_ports(source)
    target_ports = planned_ports(target)
    if not target_ports:
        return
    for position, port in enumerate(source_ports):
        other = target_ports[(position + shift) % len(target_ports)]
        if _can_ping(port) and _can_ping(other):
            yield Ping(
                source=source.facts.ip,
                npu=port.npu,
                address=port.ip or "",
                target=target.facts.ip,
                target_npu=other.npu,
                target_address=other.ip or "",
                straight=shift == 0,
            )


def _can_ping(port: NpuLink) -> bool:
    return bool(port.ip) and port.link in (None, "UP")


def _are_back_to_back(context: CheckContext, between: Sequence[PingResult]) -> bool:
    """Return whether two machines are cabled without a switch.

    Then no switch is visible and the NPUs reach exactly their counterparts.
    """
    if len(context.nodes) != 2 or _sees_switch(context):
        return False
    straight = [result.reached for result in between if result.ping.straight]
    across = [result.reached for result in between if not result.ping.straight]
    counterparts_reached = bool(straight) and all(straight)
    # One failed ping may be chance; at least two must agree.
    others_unreached = len(across) > 1 and all(reached is False for reached in across)
    return counterparts_reached and others_unreached


def _sees_switch(context: CheckContext) -> bool:
    ports = [port for node in context.nodes for port in planned_ports(node)]
    return any(port.lldp_port for port in ports)


def _back_to_back(first: Node, second: Node) -> Finding:
    return Finding(
        id="npu-back-to-back",
        level="info",
        what=(
            f"the NPUs of {first.name} and {second.name} are cabled back to back: each reaches "
            f"its counterpart and no other, and LLDP shows no switch"
        ),
        todo=(
            "enough for traffic between counterparts; if the start fails with EI0006, connect the "
            "machines by a switch"
        ),
    )


def _unreached(
    context: CheckContext, first: Node, second: Node, between: Sequence[PingResult]
) -> Iterator[Finding]:
    """Find NPUs that do not reach each other.

    HCCL would wait until its time-out (EI0006), minutes after the weights were read.
    """
    level: Level = "warning" if context.plan.platform == "ascend-a3" else "error"
    lost = [result for result in between if result.reached is False]
    if not lost:
        return
    names = {first.facts.ip: first.name, second.facts.ip: second.name}
    directions = dict.fromkeys(
        f"{names[result.ping.source]} → {names[result.ping.target]}" for result in lost
    )
    shown = ", ".join(_describe(result.ping) for result in lost[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    yield Finding(
        id="npu-unreachable",
        level=level,
        what=f"NPUs do not reach each other, {', '.join(directions)}: {shown}{more}",
        todo=_advise(context, lost[0].ping),
        where=lost[0].ping.source,
        seen=_complaints(lost),
    )


def _without_result(first: Node, second: Node, between: Sequence[PingResult]) -> Iterator[Finding]:
    """Report pings that the tool did not run: they say nothing about the network."""
    unknown = [result for result in between if result.reached is None]
    if not unknown:
        return
    npus = ids(result.ping.npu for result in unknown)
    ping = unknown[0].ping
    yield Finding(
        id="npu-not-pinged",
        level="warning",
        what=(
            f"{len(unknown)} pings between the NPUs of {first.name} and {second.name} had no "
            f"result (NPU {npus})"
        ),
        todo=f"by hand: hccn_tool -i {ping.npu} -ping -g address {ping.target_address}",
        where=ping.source,
        seen=_complaints(unknown),
    )


def _check_switch(context: CheckContext) -> Iterator[Finding]:
    """Find ports that see no switch while others do.

    Their cable is in the wrong socket, or the switch sends LLDP on some ports only.
    """
    if context.plan.platform == "cpu" or not context.several_addresses:
        return
    ports = {}
    switched = []
    for node in context.nodes:
        ports[node.name] = [port for port in planned_ports(node) if port.link is not None]
        switched += [(node.name, port) for port in ports[node.name] if port.lldp_port]
    if not switched:
        return
    rows = [
        f"NPU {port.npu} of {name}: {port.lldp_port}"
        for name, port in switched[:_SHOWN_SWITCH_PORTS]
    ]
    for node in context.nodes:
        without = [port.npu for port in ports[node.name] if not port.lldp_port]
        if without:
            yield Finding(
                id="npu-cabling",
                level="warning",
                what=(
                    f"NPU {ids(without)} of node {node.name} see no switch port (LLDP), "
                    f"while others do"
                ),
                todo="check where their cables end; or let the switch send LLDP on all ports",
                where=node.facts.ip,
                seen=", ".join(rows),
            )


def _describe(ping: Ping) -> str:
    source = f"NPU {ping.npu} ({ping.address})"
    target = f"NPU {ping.target_npu} ({ping.target_address})"
    return f"{source} → {target}"


def _complaints(results: Iterable[PingResult]) -> str:
    complaints = [result.complaint for result in results if result.complaint]
    # One driver fault makes every NPU's tool print the same line.
    return "; ".join(dict.fromkeys(complaints))


def _advise(context: CheckContext, ping: Ping) -> str:
    by_hand = f"by hand: hccn_tool -i {ping.npu} -ping -g address {ping.target_address}"
    if _sees_switch(context):
        return (
            f"check switch ports, VLAN, netmask and gateway of these NPUs "
            f"(`hccn_tool -i ID -gateway -g`); {by_hand}"
        )
    return (
        f"LLDP shows no switch: if the machines are cabled back to back, each NPU must be "
        f"connected to the one with its own number, in one subnet; with a switch check its ports "
        f"and VLAN; {by_hand}"
    )
