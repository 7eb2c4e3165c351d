"""Checks of ports: which are in use, which were moved, which the kernel reserves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding
from raylaunch.plan.facts import Listener
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.plan.ports import (
    HCCL_PORTS,
    collide,
    describe_holder,
    find_taken,
    index_by_node,
    wanted_ports,
)

MAX_PORT = 65535
_HCCL_FIELD = "network.hccl_base_port"


def check_ports(context: CheckContext) -> Iterator[Finding]:
    """Find planned ports that another deployment plans to use or that have a listener.

    Listeners are read, not probed with bind(): with SO_REUSEPORT a second vLLM can bind the same
    port, and the kernel then splits the traffic between the two.
    """
    others = index_by_node(context.others, context.plan.deployment)
    for node in context.nodes:
        owners = {process.pid: process.owner for process in node.facts.marked}
        by_port: dict[int, list[Listener]] = {}
        for listener in node.facts.listeners:
            by_port.setdefault(listener.port, []).append(listener)
        for server in node.servers:
            planned = find_taken(node.facts, server.node, others, listeners=False)
            for name, port, address in wanted_ports(server):
                if port in planned:
                    yield _busy(context, node, name, port, planned[port], "in its plan")
                    continue
                listeners = [one for one in by_port.get(port, ()) if collide(one.address, address)]
                if listeners:
                    owner = describe_holder(listeners[0], owners)
                    seen = f"{listeners[0].address}:{port} {owner}"
                    yield _busy(context, node, name, port, owner, seen)


def check_moved_ports(context: CheckContext) -> Iterator[Finding]:
    """Report ports that the planner moved because they are in use.

    The handshake's and HCCL's ports may be any; that of the API stays what the user asked for. A
    port that makes room for another group of the deployment is no news: nothing else was possible.
    """
    primary = context.plan.primary
    network = context.recipe.network
    rpc = next((flag for flag in primary.flags if flag.name == "--data-parallel-rpc-port"), None)
    if rpc and primary.ports.rpc != network.rpc_port and not _makes_room(rpc.origin):
        yield _moved(context, "network.rpc_port", network.rpc_port, primary.ports.rpc, rpc.origin)
    base = primary.ports.hccl_base
    variable = primary.env.get("HCCL_IF_BASE_PORT")
    if base is None or variable is None or _makes_room(variable.origin):
        return
    if base != network.hccl_base_port:
        yield _moved(context, _HCCL_FIELD, network.hccl_base_port, base, variable.origin)


def check_silent_neighbours(silent: Sequence[str]) -> Iterator[Finding]:
    """Report deployments that did not send their plan.

    Their ports are known only while they listen.
    """
    if silent:
        yield Finding(
            id="neighbour-silent",
            level="info",
            what=(f"{', '.join(silent)} did not report its ports: only its listeners were checked"),
            todo=f"`raylaunch status {silent[0]}` shows whether it is alive",
        )


def check_port_range(context: CheckContext) -> Iterator[Finding]:
    """Find HCCL ranges beyond the last port.

    Several servers on a node use consecutive HCCL ranges.
    """
    bases = [server.ports.hccl_base or 0 for node in context.nodes for server in node.servers]
    last_base = max(bases, default=0)
    last_port = last_base + HCCL_PORTS - 1
    if last_port > MAX_PORT:
        yield Finding(
            id="port-range",
            level="error",
            what=f"the HCCL ports of the last server on a node would end at {last_port}",
            todo=f"lower {_HCCL_FIELD}",
            where=_HCCL_FIELD,
            seen=str(last_base),
        )


def check_reserved_ports(context: CheckContext) -> Iterator[Finding]:
    """Find HCCL ranges that are not reserved.

    They are ephemeral ports: the kernel may use one as the source of an outgoing connection.
    """
    for node in context.nodes:
        # One setting for all the groups on the node: the sysctl replaces the whole list.
        servers = (*node.servers, *context.siblings_on(node))
        all_bases = [server.ports.hccl_base for server in servers]
        bases = [base for base in all_bases if base is not None]
        if not bases or not node.answered("host"):
            continue
        low = min(bases)
        high = max(bases) + HCCL_PORTS - 1
        reserved = node.facts.reserved_ports
        if not _covers(reserved, low, high):
            # The sysctl replaces the whole list, so what is reserved now must be in it.
            wanted = ",".join(filter(None, (reserved, f"{low}-{high}")))
            yield Finding(
                id="hccl-ports-not-reserved",
                level="info",
                what=f"node {node.name} does not reserve HCCL's ports {low}-{high}",
                todo=f"sysctl -w net.ipv4.ip_local_reserved_ports={wanted} on the host",
                where=node.facts.ip,
                seen=reserved,
            )


PORT_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_ports,
    check_moved_ports,
    check_port_range,
    check_reserved_ports,
)


def _busy(
    context: CheckContext, node: Node, name: str, port: int, owner: str, seen: str
) -> Finding:
    setting = f"--set {name}={_next_free(context, node, name, port)}"
    if owner.startswith("deployment "):
        todo = f"{setting}, or `raylaunch stop {owner.partition(' ')[2]}`"
    elif owner.startswith("group "):
        todo = f"leave {name} out, so that each group gets ports of its own"
    else:
        todo = f"stop that one process, or set another {name}: {setting}"
    return Finding(
        id="port-busy",
        level="error",
        what=f"port {port} on node {node.name} is taken by {owner}",
        todo=todo,
        where=node.facts.ip,
        seen=seen,
    )


def _next_free(context: CheckContext, node: Node, name: str, port: int) -> int:
    """Return the next port (for HCCL: range) that is free; `port` itself when there is none."""
    first_server = node.servers[0]
    others = index_by_node(context.others, context.plan.deployment)
    taken = set(find_taken(node.facts, first_server.node, others))
    for server in node.servers:
        taken.update(_own_ports(server))
    # HCCL's setting is the base of a range, every other one a single port.
    width = HCCL_PORTS if name == _HCCL_FIELD else 1
    base = port
    if name == _HCCL_FIELD:
        base = first_server.ports.hccl_base or port
    for candidate in range(base + width, MAX_PORT + 1, width):
        if taken.isdisjoint(range(candidate, candidate + width)):
            return candidate
    return port


def _own_ports(server: ServerPlan) -> Iterator[int]:
    yield from (port for _, port, _ in wanted_ports(server))


def _makes_room(origin: str) -> bool:
    """Return whether the planner moved a port away from another group of the deployment."""
    return " is used by group " in origin


def _moved(context: CheckContext, field: str, asked: int, used: int, origin: str) -> Finding:
    why = origin.removeprefix("raylaunch: ")
    return Finding(
        id="port-moved",
        level="info",
        what=f"{field} is {used} instead of {asked}: {why}",
        todo=f"--set {field}={used} keeps it there",
        where=context.loaded.origin(field),
        seen=why,
    )


def _covers(reserved: str, low: int, high: int) -> bool:
    """Return whether ip_local_reserved_ports ("60000-60015,61000") contains low..high."""
    covered: set[int] = set()
    for part in reserved.split(","):
        if not part.strip():
            continue
        first, _, last = part.partition("-")
        # A single port has no "-".
        end = int(last or first)
        covered.update(range(int(first), end + 1))
    return covered.issuperset(range(low, high + 1))
