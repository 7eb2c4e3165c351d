"""Checks on what the servers share or must agree on: NPUs, versions, clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.node_checks import node_names
from raylaunch.plan.facts import Npu, NpuProcess
from raylaunch.plan.wanted_weights import shorten

MAX_SKEW_S = 5
VLLM_MEMORY_SHARE = 0.9
"""vLLM's own --gpu-memory-utilization."""
IDLE_SHARE, IDLE_MB, IDLE_LEAST_MB = 0.05, 200, 3000
"""What driver and firmware keep of an NPU that nobody uses: below 5 % and 200 MB, or below 3000 MB.

Recorded idle: 3380-3445 of 65536 MB on A2, 2876-3416 on A3, 2850-2900 of 32768 MB on 910B4. It does not count against
--gpu-memory-utilization, which is a share of what they leave (vLLM sees 60.96 of 64 GiB).
"""

_MUST_AGREE = ("vllm", "vllm-ascend", "torch", "torch-npu", "ray")
_SHOULD_AGREE = ("driver", "firmware", "cann")


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


def check_versions(view: View) -> Iterator[Finding]:
    """One gang, one set of versions: vLLM's handshake, Ray and HCCL each refuse, or misbehave, when they differ."""
    nodes = [node for node in view.nodes if node.answered("versions")]
    for name in (*_MUST_AGREE, *_SHOULD_AGREE):
        level: Level = "error" if name in _MUST_AGREE else "warning"
        found = [(node.facts.versions.get(name, "not installed"), node) for node in nodes]
        yield from _disagree(name, level, found)
    pythons = [
        (".".join(node.facts.python.split(".")[:2]), node)
        for node in view.nodes
        if node.facts.python
    ]
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
    holders.sort(
        key=lambda row: -row.memory_mb
    )  # contexts of some 114 MB belong to processes of other NPUs
    share = memory_share(view)
    full = [
        npu
        for npu in npus
        if not _is_idle(npu) and npu.hbm_total_mb - npu.hbm_used_mb < share * npu.hbm_total_mb
    ]
    if holders:
        rows = (
            f"NPU {row.npu}: pid {row.pid} {row.name} {row.memory_mb} MB" for row in holders[:8]
        )
        what = f"NPUs of node {node.name} are in use by pid {shorten(_users(holders))}"
        todo = f"end them: `ps -fp {holders[0].pid}` on the host says whose they are"
        yield Finding("npu-busy", "error", what, todo, node.facts.ip, "; ".join(rows))
    elif full:
        seen = ", ".join(f"NPU {npu.id}: {npu.hbm_used_mb}/{npu.hbm_total_mb} MB" for npu in full)
        what = f"NPUs of node {node.name} have less than {share:.0%} of their memory free; npu-smi names no process"
        todo = "look for processes in other containers, or lower args.gpu-memory-utilization"
        yield Finding("npu-busy", "error", what, todo, node.facts.ip, seen)


def _is_idle(npu: Npu) -> bool:
    return npu.hbm_used_mb < max(IDLE_SHARE * npu.hbm_total_mb + IDLE_MB, IDLE_LEAST_MB)


def _users(rows: list[NpuProcess]) -> list[str]:
    """Each process once, with what it holds on all the NPUs; npu-smi leaves out names from other containers."""
    held: dict[tuple[int, str], int] = {}
    for row in rows:
        user = (row.container_pid or row.pid, row.name or "in another container")
        held[user] = held.get(user, 0) + row.memory_mb
    return [f"{pid} ({name}, {memory_mb} MB)" for (pid, name), memory_mb in held.items()]


def memory_share(view: View) -> float:
    """The share of each NPU's memory that a server asks for at start."""
    try:
        return float(view.plan.primary.flag("--gpu-memory-utilization") or VLLM_MEMORY_SHARE)
    except ValueError:
        return VLLM_MEMORY_SHARE


def _disagree(name: str, level: Level, found: list[tuple[str, Node]]) -> Iterator[Finding]:
    groups: dict[str, list[Node]] = {}
    for version, node in found:
        groups.setdefault(version, []).append(node)
    if len(groups) > 1:
        seen = "; ".join(
            f"{version}: {node_names(nodes)}" for version, nodes in sorted(groups.items())
        )
        what = f"the nodes do not have the same {name}: {', '.join(sorted(groups))}"
        todo = f"bring {name} to one version everywhere, best by one image"
        yield Finding("version-mismatch", level, what, todo, "", seen)
