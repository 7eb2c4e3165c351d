"""Checks on ports: who has those that the servers want, which were moved, what the kernel keeps free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raylaunch.checks.check_context import Node, View
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


def check_ports(view: View) -> Iterator[Finding]:
    """Look at listeners, not at bind: with SO_REUSEPORT a second vLLM binds the same port and splits the traffic."""
    others = index_by_node(view.others)
    for node in view.nodes:
        owners = {process.pid: process.deployment for process in node.facts.marked}
        by_port: dict[int, list[Listener]] = {}
        for listener in node.facts.listeners:
            by_port.setdefault(listener.port, []).append(listener)
        for server in node.servers:
            planned = find_taken(node.facts, server.node, others, listeners=False)
            for name, port, address in wanted_ports(server):
                holders = [one for one in by_port.get(port, ()) if collide(one.address, address)]
                if port in planned:
                    yield _busy(view, node, name, port, planned[port], "in its plan")
                elif holders:
                    owner = describe_holder(holders[0], owners)
                    yield _busy(
                        view, node, name, port, owner, f"{holders[0].address}:{port} {owner}"
                    )


def check_moved_ports(view: View) -> Iterator[Finding]:
    """A port that somebody has is not fought for where another one does as well; the API's stays what was asked for."""
    primary, network = view.plan.primary, view.recipe.network
    rpc = next((flag for flag in primary.flags if flag.name == "--data-parallel-rpc-port"), None)
    if rpc and primary.ports.rpc != network.rpc_port:
        yield _moved(view, "network.rpc_port", network.rpc_port, primary.ports.rpc, rpc.origin)
    base = primary.ports.hccl_base
    if base is not None and base != network.hccl_base_port and "HCCL_IF_BASE_PORT" in primary.env:
        origin = primary.env["HCCL_IF_BASE_PORT"].origin
        yield _moved(view, "network.hccl_base_port", network.hccl_base_port, base, origin)


def check_silent_neighbours(silent: Sequence[str]) -> Iterator[Finding]:
    """Ports of a deployment that does not say its plan can only be seen while it listens."""
    if silent:
        what = f"{', '.join(silent)} did not say which ports it uses: only its listeners were looked at"
        todo = f"`raylaunch status {silent[0]}` shows whether it is alive"
        yield Finding("neighbour-silent", "info", what, todo)


def check_port_range(view: View) -> Iterator[Finding]:
    """Several servers on a node take one HCCL range after the other."""
    last = max(
        (server.ports.hccl_base or 0 for node in view.nodes for server in node.servers), default=0
    )
    if last + HCCL_PORTS - 1 > 65535:
        what = f"the HCCL ports of the last server on a node would end at {last + HCCL_PORTS - 1}"
        yield Finding(
            "port-range",
            "error",
            what,
            "lower network.hccl_base_port",
            "network.hccl_base_port",
            str(last),
        )


def check_reserved_ports(view: View) -> Iterator[Finding]:
    """HCCL's range lies among the ephemeral ports: the kernel may give one away as the source of a connection."""
    for node in view.nodes:
        bases = [
            server.ports.hccl_base for server in node.servers if server.ports.hccl_base is not None
        ]
        if not bases or not node.answered("host"):
            continue
        low, high = min(bases), max(bases) + HCCL_PORTS - 1
        if not _covers(node.facts.reserved_ports, low, high):
            what = f"node {node.name} does not keep HCCL's ports {low}-{high} from being handed out"
            wanted = ",".join(filter(None, (node.facts.reserved_ports, f"{low}-{high}")))
            todo = f"sysctl -w net.ipv4.ip_local_reserved_ports={wanted} on the host"
            yield Finding(
                "hccl-ports-not-reserved",
                "info",
                what,
                todo,
                node.facts.ip,
                node.facts.reserved_ports,
            )


PORT_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_ports,
    check_moved_ports,
    check_port_range,
    check_reserved_ports,
)


def _busy(view: View, node: Node, name: str, port: int, owner: str, seen: str) -> Finding:
    what = f"port {port} on node {node.name} is taken by {owner}"
    todo = f"end that one process, or set another {name}: --set {name}={_next_free(view, node, name, port)}"
    if owner.startswith("deployment "):
        todo = f"--set {name}={_next_free(view, node, name, port)}, or `raylaunch stop {owner.partition(' ')[2]}`"
    return Finding("port-busy", "error", what, todo, node.facts.ip, seen)


def _next_free(view: View, node: Node, name: str, port: int) -> int:
    """The next number that nobody has and that this deployment does not use for something else."""
    own = {used for server in node.servers for used in _own_ports(server)}
    taken = {*find_taken(node.facts, node.servers[0].node, index_by_node(view.others)), *own}
    if name == "network.hccl_base_port":
        base = node.servers[0].ports.hccl_base or port
        steps = range(base + HCCL_PORTS, 65536, HCCL_PORTS)
        return next(
            (one for one in steps if not taken.intersection(range(one, one + HCCL_PORTS))), port
        )
    return next((one for one in range(port + 1, 65536) if one not in taken), port)


def _own_ports(server: ServerPlan) -> Iterator[int]:
    yield from (port for _, port, _ in wanted_ports(server))


def _moved(view: View, field: str, asked: int, taken: int, origin: str) -> Finding:
    why = origin.removeprefix("raylaunch: ")
    what = f"{field} is {taken} instead of {asked}: {why}"
    return Finding(
        "port-moved",
        "info",
        what,
        f"--set {field}={taken} keeps it there",
        view.loaded.origin(field),
        why,
    )


def _covers(reserved: str, low: int, high: int) -> bool:
    """Whether ip_local_reserved_ports ("60000-60015,61000") holds low..high."""
    ranges = [part.partition("-") for part in reserved.split(",") if part.strip()]
    held = [range(int(first), int(last or first) + 1) for first, _, last in ranges]
    return all(any(port in span for span in held) for port in range(low, high + 1))
