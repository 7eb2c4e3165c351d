"""Checks on what the servers share or must agree on: NPUs, ports, network, versions, clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.plan.facts import Listener, Npu
from raylaunch.plan.findings import Finding, Level
from raylaunch.plan.node_checks import node_names
from raylaunch.plan.seen import Node, View, interface_of, is_loopback
from raylaunch.plan.spec import ServerPlan

HCCL_PORTS = 16
MAX_SKEW_S = 5
VLLM_MEMORY_SHARE = 0.9
"""vLLM's own --gpu-memory-utilization."""

_MUST_AGREE = ("vllm", "vllm-ascend", "torch", "torch-npu", "ray")
_SHOULD_AGREE = ("driver", "firmware", "cann")
_EVERYWHERE = ("0.0.0.0", "::", "*", "")  # noqa: S104 - compared, not bound


def check_devices(view: View) -> Iterator[Finding]:
    """The NPUs that the plan wants must be there, well and free. A node that shows none was not asked, or failed."""
    if view.plan.platform == "cpu":
        return
    for node in view.nodes:
        wanted = sorted(device for server in node.servers for device in server.devices)
        if len(set(wanted)) < len(wanted) or len(wanted) > view.recipe.npus_per_node:
            yield _too_few(node, len(wanted), view.recipe.npus_per_node)
        elif node.facts.npus and len(node.facts.npus) < len(wanted):
            yield _too_few(node, len(wanted), len(node.facts.npus))
        yield from _sick(node, _npus(node, wanted))
        yield from _in_use(view, node, _npus(node, wanted))


def check_ports(view: View) -> Iterator[Finding]:
    """Look at listeners, not at bind: with SO_REUSEPORT a second vLLM binds the same port and splits the traffic."""
    for node in view.nodes:
        by_port: dict[int, list[Listener]] = {}
        for listener in node.facts.listeners:
            by_port.setdefault(listener.port, []).append(listener)
        for server in node.servers:
            for name, port, address in _wanted_ports(server):
                for holder in by_port.get(port, ()):
                    if _collide(holder.address, address):
                        yield _busy(node, name, port, holder)
                        break


def check_port_range(view: View) -> Iterator[Finding]:
    """Several servers on a node take one HCCL range after the other."""
    last = max((server.ports.hccl_base or 0 for node in view.nodes for server in node.servers), default=0)
    if last + HCCL_PORTS - 1 > 65535:
        what = f"the HCCL ports of the last server on a node would end at {last + HCCL_PORTS - 1}"
        yield Finding("port-range", "error", what, "lower network.hccl_base_port", "network.hccl_base_port", str(last))


def check_reserved_ports(view: View) -> Iterator[Finding]:
    """HCCL's range lies among the ephemeral ports: the kernel may give one away as the source of a connection."""
    for node in view.nodes:
        bases = [server.ports.hccl_base for server in node.servers if server.ports.hccl_base is not None]
        if not bases or not node.answered("host"):
            continue
        low, high = min(bases), max(bases) + HCCL_PORTS - 1
        if not _covers(node.facts.reserved_ports, low, high):
            what = f"node {node.name} does not keep HCCL's ports {low}-{high} from being handed out"
            todo = f"sysctl -w net.ipv4.ip_local_reserved_ports={low}-{high} on the host"
            yield Finding("hccl-ports-not-reserved", "info", what, todo, node.facts.ip, node.facts.reserved_ports)


def check_loopback(view: View) -> Iterator[Finding]:
    """A server on `lo` is not seen by the others."""
    if not view.several_addresses:
        return
    for node in view.nodes:
        for server in node.servers:
            nic = interface_of(node.facts, server.node.interface)
            own = is_loopback(server.node.ip) or (nic is not None and nic.kind == "loopback")
            if own and not is_loopback(node.facts.ip):
                yield Finding(
                    "loopback-interface",
                    "error",
                    f"server {server.index} on node {node.name} would use {server.node.interface} "
                    f"({server.node.ip}), which the other nodes cannot reach",
                    "set network.interface=auto, or the name of the network between the nodes",
                    node.facts.ip,
                    f"{server.node.interface} {server.node.ip}",
                )


def check_hostname(view: View) -> Iterator[Finding]:
    """Libraries that look up the own name would offer 127.x to the others."""
    for node in view.nodes if view.several_addresses else ():
        bad = [address for address in node.facts.resolves_to if is_loopback(address)]
        if bad:
            what = f"node {node.name} resolves its own hostname to {bad[0]}"
            todo = f"let /etc/hosts map {node.facts.hostname or 'the hostname'} to {node.facts.ip}"
            yield Finding("hostname-loopback", "warning", what, todo, node.facts.ip, ", ".join(bad))


def check_versions(view: View) -> Iterator[Finding]:
    """One gang, one set of versions: vLLM's handshake, Ray and HCCL each refuse, or misbehave, when they differ."""
    nodes = [node for node in view.nodes if node.answered("versions")]
    for name in (*_MUST_AGREE, *_SHOULD_AGREE):
        level: Level = "error" if name in _MUST_AGREE else "warning"
        found = [(node.facts.versions.get(name, "not installed"), node) for node in nodes]
        yield from _disagree(name, level, found)
    pythons = [(".".join(node.facts.python.split(".")[:2]), node) for node in view.nodes if node.facts.python]
    yield from _disagree("python", "error", pythons)


def check_clocks(view: View) -> Iterator[Finding]:
    """Logs of several nodes can be read together only if their clocks agree."""
    probed = sorted((node for node in view.nodes if node.probed), key=lambda node: node.facts.clock)
    skew = probed[-1].facts.clock - probed[0].facts.clock if probed else 0
    if skew > MAX_SKEW_S:
        what = f"the clocks of {probed[0].name} and {probed[-1].name} are {skew:.0f} s apart"
        todo = "start chronyd or ntpd on the nodes"
        yield Finding("clock-skew", "warning", what, todo, probed[0].facts.ip, f"{skew:.1f} s")


GANG_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_devices,
    check_ports,
    check_port_range,
    check_reserved_ports,
    check_loopback,
    check_hostname,
    check_versions,
    check_clocks,
)


def _too_few(node: Node, wanted: int, there: int) -> Finding:
    what = f"the servers on node {node.name} take {wanted} NPUs and it has {there}"
    todo = "lower parallel.tensor or parallel.data_local, give more nodes, or see `npu-smi info` for the lost ones"
    return Finding("devices-too-few", "error", what, todo, node.facts.ip, f"{there} of {wanted}")


def _npus(node: Node, wanted: list[int]) -> list[Npu]:
    """The planned NPUs; all of the node's when its tool counts otherwise (inside some containers)."""
    return [npu for npu in node.facts.npus if npu.id in wanted] or list(node.facts.npus)


def _sick(node: Node, npus: list[Npu]) -> Iterator[Finding]:
    sick = [f"NPU {npu.id} {npu.health}" for npu in npus if npu.health.upper() != "OK"]
    if sick:
        what = f"node {node.name} has NPUs that are not healthy: {', '.join(sick)}"
        todo = "npu-smi info -t health -i ID; take the node out, or use others of its NPUs"
        yield Finding("npu-unhealthy", "error", what, todo, node.facts.ip, ", ".join(sick))


def _in_use(view: View, node: Node, npus: list[Npu]) -> Iterator[Finding]:
    """Foreign processes on the NPUs, or less free memory than the servers will ask for at start."""
    ids = {npu.id for npu in npus}
    holders = [process for process in node.facts.npu_processes if process.npu in ids]
    share = _memory_share(view)
    full = [npu for npu in npus if npu.hbm_total_mb and 1 - npu.hbm_used_mb / npu.hbm_total_mb < share]
    if holders:
        pids = sorted({process.container_pid or process.pid for process in holders})
        rows = (f"NPU {row.npu}: pid {row.pid} {row.name} {row.memory_mb} MB" for row in holders[:8])
        what = f"NPUs of node {node.name} are in use by pid {', '.join(map(str, pids))}"
        todo = f"end them: `ps -fp {pids[0]}` on the host says whose they are"
        yield Finding("npu-busy", "error", what, todo, node.facts.ip, "; ".join(rows))
    elif full:
        seen = ", ".join(f"NPU {npu.id}: {npu.hbm_used_mb}/{npu.hbm_total_mb} MB" for npu in full)
        what = (
            f"NPUs of node {node.name} have less than {share:.0%} of their memory free, and no process to show for it"
        )
        todo = "look for processes in other containers, or lower args.gpu-memory-utilization"
        yield Finding("npu-busy", "error", what, todo, node.facts.ip, seen)


def _memory_share(view: View) -> float:
    try:
        return float(view.plan.primary.flag("--gpu-memory-utilization") or VLLM_MEMORY_SHARE)
    except ValueError:
        return VLLM_MEMORY_SHARE


def _wanted_ports(server: ServerPlan) -> Iterator[tuple[str, int, str]]:
    """Name, port and address of what a server binds. A headless one has no API, and only the primary the handshake."""
    if server.role == "primary":
        yield "network.http_port", server.ports.http, server.flag("--host") or ""
        if (address := server.flag("--data-parallel-address")) is not None:
            yield "network.rpc_port", server.ports.rpc, address
    if server.ports.hccl_base is not None:
        for port in range(server.ports.hccl_base, server.ports.hccl_base + HCCL_PORTS):
            yield "network.hccl_base_port", port, server.node.ip


def _collide(held: str, wanted: str) -> bool:
    return held == wanted or held in _EVERYWHERE or wanted in _EVERYWHERE


def _busy(node: Node, name: str, port: int, holder: Listener) -> Finding:
    owner = f"pid {holder.pid} ({holder.process or 'unknown'})" if holder.pid else "a process of another user"
    what = f"port {port} on node {node.name} is taken by {owner}"
    todo = f"end that one process, or set another {name}"
    return Finding("port-busy", "error", what, todo, node.facts.ip, f"{holder.address}:{holder.port} {owner}")


def _covers(reserved: str, low: int, high: int) -> bool:
    """Whether ip_local_reserved_ports ("60000-60015,61000") holds low..high."""
    ranges = [part.partition("-") for part in reserved.split(",") if part.strip()]
    held = [range(int(first), int(last or first) + 1) for first, _, last in ranges]
    return all(any(port in span for span in held) for port in range(low, high + 1))


def _disagree(name: str, level: Level, found: list[tuple[str, Node]]) -> Iterator[Finding]:
    groups: dict[str, list[Node]] = {}
    for version, node in found:
        groups.setdefault(version, []).append(node)
    if len(groups) > 1:
        seen = "; ".join(f"{version}: {node_names(nodes)}" for version, nodes in sorted(groups.items()))
        what = f"the nodes do not have the same {name}: {', '.join(sorted(groups))}"
        todo = f"bring {name} to one version everywhere, best by one image"
        yield Finding("version-mismatch", level, what, todo, "", seen)
