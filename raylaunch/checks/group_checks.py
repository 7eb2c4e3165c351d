"""Checks of what the servers share or must agree on: NPUs, versions, clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.node_checks import shorten_node_names
from raylaunch.plan.facts import Npu, NpuProcess
from raylaunch.plan.wanted_weights import shorten

MAX_SKEW_S = 5
VLLM_MEMORY_SHARE = 0.9
"""vLLM's own --gpu-memory-utilization."""
IDLE_SHARE = 0.05
IDLE_MB = 200
IDLE_LEAST_MB = 3000
"""Memory that driver and firmware keep of an unused NPU: below 5 % and 200 MB, or below 3000 MB.

Recorded idle: 3380-3445 of 65536 MB on A2, 2876-3416 on A3, 2850-2900 of 32768 MB on 910B4. It does
not count against --gpu-memory-utilization, which is a share of the rest (vLLM sees 60.96 of
64 GiB).
"""
_SHOWN_PROCESSES = 8

_MUST_AGREE = ("vllm", "vllm-ascend", "torch", "torch-npu", "ray")
_SHOULD_AGREE = ("driver", "firmware", "cann")


def check_devices(context: CheckContext) -> Iterator[Finding]:
    """Find planned NPUs that are absent, unhealthy or in use.

    A node that shows no NPU was not probed, or its probe failed: another finding reports that.
    """
    if context.plan.platform == "cpu":
        return
    per_node = context.recipe.npus_per_node
    for node in context.nodes:
        wanted = sorted(device for server in node.servers for device in server.devices)
        has_duplicates = len(set(wanted)) < len(wanted)
        if has_duplicates or len(wanted) > per_node:
            yield _too_few(node, len(wanted), per_node)
        elif node.facts.npus and len(node.facts.npus) < len(wanted):
            yield _too_few(node, len(wanted), len(node.facts.npus))
        npus = _planned_npus(node, wanted)
        yield from _unhealthy(node, npus)
        yield from _in_use(context, node, npus)


def check_shared_nodes(context: CheckContext) -> Iterator[Finding]:
    """Find nodes whose NPUs do not suffice for all the groups that share them.

    Only a plan from given hosts can ask that of a node: `start` reserves the NPUs of each group.
    """
    if context.plan.platform == "cpu":
        return
    per_node = context.recipe.npus_per_node
    for node in context.nodes:
        siblings = context.siblings_on(node)
        if not siblings:
            continue
        servers = (*node.servers, *siblings)
        wanted = [device for server in servers for device in server.devices]
        available = len(node.facts.npus) or per_node
        if len(wanted) > available or len(set(wanted)) < len(wanted):
            yield _too_few(node, len(wanted), available)


def check_versions(context: CheckContext) -> Iterator[Finding]:
    """Find differing versions: vLLM's handshake, Ray and HCCL refuse them, or misbehave."""
    nodes = [node for node in context.nodes if node.answered("versions")]
    for name in (*_MUST_AGREE, *_SHOULD_AGREE):
        level: Level = "error" if name in _MUST_AGREE else "warning"
        found = [(node.facts.versions.get(name, "not installed"), node) for node in nodes]
        yield from _disagreement(name, level, found)
    pythons = []
    for node in context.nodes:
        if node.facts.python:
            minor_version = ".".join(node.facts.python.split(".")[:2])
            pythons.append((minor_version, node))
    yield from _disagreement("python", "error", pythons)


def check_clocks(context: CheckContext) -> Iterator[Finding]:
    """Find clocks that differ: logs of several nodes can be compared only if they agree."""
    probed = [node for node in context.nodes if node.probed]
    if not probed:
        return
    earliest = min(probed, key=lambda node: node.facts.clock)
    latest = max(probed, key=lambda node: node.facts.clock)
    skew = latest.facts.clock - earliest.facts.clock
    if skew > MAX_SKEW_S:
        yield Finding(
            id="clock-skew",
            level="warning",
            what=f"the clocks of {earliest.name} and {latest.name} are {skew:.0f} s apart",
            todo="start chronyd or ntpd on the nodes",
            where=earliest.facts.ip,
            seen=f"{skew:.1f} s",
        )


GROUP_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_devices,
    check_versions,
    check_clocks,
)


def _too_few(node: Node, wanted: int, available: int) -> Finding:
    return Finding(
        id="devices-too-few",
        level="error",
        what=f"the servers on node {node.name} take {wanted} NPUs and it has {available}",
        todo=(
            "lower parallel.tensor or parallel.data_local, add nodes, or look for lost NPUs in "
            "`npu-smi info`"
        ),
        where=node.facts.ip,
        seen=f"{available} of {wanted}",
    )


def _planned_npus(node: Node, wanted: list[int]) -> list[Npu]:
    """Return the planned NPUs; all of the node's when its tool numbers them otherwise.

    Inside some containers npu-smi and the plan use different numbers.
    """
    planned = [npu for npu in node.facts.npus if npu.id in wanted]
    return planned or list(node.facts.npus)


def _unhealthy(node: Node, npus: list[Npu]) -> Iterator[Finding]:
    unhealthy = [f"NPU {npu.id} {npu.health}" for npu in npus if npu.health.upper() != "OK"]
    if unhealthy:
        names = ", ".join(unhealthy)
        yield Finding(
            id="npu-unhealthy",
            level="error",
            what=f"node {node.name} has NPUs that are not healthy: {names}",
            todo="npu-smi info -t health -i ID; exclude the node, or use others of its NPUs",
            where=node.facts.ip,
            seen=names,
        )


def _in_use(context: CheckContext, node: Node, npus: list[Npu]) -> Iterator[Finding]:
    """Find foreign processes on the NPUs, or less free memory than the servers ask for."""
    ids = {npu.id for npu in npus}
    holders = [process for process in node.facts.npu_processes if process.npu in ids]
    # The largest first: contexts of some 114 MB belong to processes that use other NPUs.
    holders.sort(key=lambda row: -row.memory_mb)
    if holders:
        owners = {process.pid: f" of {process.owner}" for process in node.facts.marked}
        rows = [
            f"NPU {row.npu}: pid {row.pid} {row.name} {row.memory_mb} MB{owners.get(row.pid, '')}"
            for row in holders[:_SHOWN_PROCESSES]
        ]
        yield Finding(
            id="npu-busy",
            level="error",
            what=f"NPUs of node {node.name} are in use by pid {shorten(_processes(holders))}",
            todo=f"stop them: `ps -fp {holders[0].pid}` on the host shows their owner",
            where=node.facts.ip,
            seen="; ".join(rows),
        )
        return
    share = memory_share(context)
    full = [npu for npu in npus if not _is_idle(npu) and _free_mb(npu) < share * npu.hbm_total_mb]
    if full:
        rows = [f"NPU {npu.id}: {npu.hbm_used_mb}/{npu.hbm_total_mb} MB" for npu in full]
        yield Finding(
            id="npu-busy",
            level="error",
            what=(
                f"NPUs of node {node.name} have less than {share:.0%} of their memory free; "
                f"npu-smi names no process"
            ),
            todo="look for processes in other containers, or lower args.gpu-memory-utilization",
            where=node.facts.ip,
            seen=", ".join(rows),
        )


def _free_mb(npu: Npu) -> int:
    return npu.hbm_total_mb - npu.hbm_used_mb


def _is_idle(npu: Npu) -> bool:
    by_share = IDLE_SHARE * npu.hbm_total_mb + IDLE_MB
    return npu.hbm_used_mb < max(by_share, IDLE_LEAST_MB)


def _processes(rows: list[NpuProcess]) -> list[str]:
    """Return each process once, with its memory on all the NPUs.

    npu-smi leaves out the names of processes in other containers.
    """
    held: dict[tuple[int, str], int] = {}
    for row in rows:
        # Inside a container `ps` shows the container's own process ids.
        pid = row.container_pid or row.pid
        name = row.name or "in another container"
        held.setdefault((pid, name), 0)
        held[pid, name] += row.memory_mb
    return [f"{pid} ({name}, {memory_mb} MB)" for (pid, name), memory_mb in held.items()]


def memory_share(context: CheckContext) -> float:
    """Return the share of each NPU's memory that a server asks for at start."""
    try:
        return float(context.plan.primary.flag("--gpu-memory-utilization") or VLLM_MEMORY_SHARE)
    except ValueError:
        return VLLM_MEMORY_SHARE


def _disagreement(name: str, level: Level, found: list[tuple[str, Node]]) -> Iterator[Finding]:
    groups: dict[str, list[Node]] = {}
    for version, node in found:
        groups.setdefault(version, []).append(node)
    if len(groups) > 1:
        rows = [
            f"{version}: {shorten_node_names(nodes)}" for version, nodes in sorted(groups.items())
        ]
        yield Finding(
            id="version-mismatch",
            level=level,
            what=f"the nodes do not have the same {name}: {', '.join(sorted(groups))}",
            todo=f"install one version of {name} everywhere, best by one image",
            seen="; ".join(rows),
        )
