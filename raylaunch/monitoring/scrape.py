"""What one scrape knows, and the samples that are made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raylaunch.monitoring.metric_names import BY_NAME
from raylaunch.plan.facts import Npu
from raylaunch.plan.node_usage import DiskUsage, NodeUsage
from raylaunch.supervise.deployment_status import (
    GatewayCounters,
    GatewayReport,
    GroupStatus,
    ServerStatus,
    Status,
)
from raylaunch.supervise.state import Phase, RankSeen
from raylaunch.supervise.tally import Histogram, Tally

MB = 1 << 20
"""npu-smi prints memory in MB of this size."""


@dataclass(frozen=True)
class Scrape:
    """A deployment at one moment."""

    status: Status
    tallies: Mapping[str, Tally]
    """By group."""
    usage: Mapping[tuple[str, int], NodeUsage]
    """By group and server; those whose agent did not answer in time are not in it."""
    started_at: float
    """When the controller process started (epoch)."""
    took_over: bool = False
    gateway_up: bool | None = None
    """Whether the gateway answers; None without one."""


@dataclass
class Samples:
    """Samples by the name of their metric: each has the values of its labels in order."""

    deployment: str
    values: dict[str, list[tuple[tuple[str, ...], float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    histograms: dict[str, list[tuple[tuple[str, ...], Histogram]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, name: str, value: float | None, *labels: object) -> None:
        """Add a sample; None adds nothing."""
        if value is not None:
            self.values[name].append((self._labels(name, labels), float(value)))

    def add_histogram(self, name: str, histogram: Histogram, *labels: object) -> None:
        """Add a histogram."""
        self.histograms[name].append((self._labels(name, labels), histogram))

    def _labels(self, name: str, labels: tuple[object, ...]) -> tuple[str, ...]:
        assert len(labels) == len(BY_NAME[name].labels), name
        return (self.deployment, *map(str, labels))


def collect(scrape: Scrape) -> Samples:
    """Return the samples of a scrape."""
    status = scrape.status
    samples = Samples(status.deployment)
    samples.add("raylaunch_deployment_info", 1, status.recipe, status.served_name)
    for phase in Phase:
        samples.add("raylaunch_deployment_phase", phase is status.phase, phase)
    samples.add("raylaunch_controller_start_timestamp_seconds", scrape.started_at)
    samples.add("raylaunch_controller_took_over", scrape.took_over)
    for group in status.groups:
        _add_group(samples, group, scrape.tallies.get(group.name, Tally()))
        for server in group.servers:
            _add_server(samples, server, status.now)
            _add_ranks(samples, server, status.now)
            usage = scrape.usage.get((group.name, server.index))
            if usage is not None and usage.server is not None:
                _add_processes(samples, server, usage)
    for node, usage in _by_node(scrape).items():
        _add_node(samples, node, usage)
    samples.add("raylaunch_gateway_up", scrape.gateway_up)
    if status.gateway is not None:
        _add_gateway(samples, status.gateway)
    return samples


def _add_gateway(samples: Samples, gateway: GatewayReport) -> None:
    for name, read in _OF_GATEWAY.items():
        counted = sum(read(node.counters) for node in gateway.nodes)
        samples.add(f"raylaunch_gateway_{name}", counted)


_OF_GATEWAY: dict[str, Callable[[GatewayCounters], float]] = {
    "requests_held": lambda counted: counted.queue,
    "requests_total": lambda counted: counted.requests,
    "retries_total": lambda counted: counted.repeated,
    "held_requests_total": lambda counted: counted.held,
    "held_seconds_total": lambda counted: counted.held_s,
    "rejected_requests_total": lambda counted: counted.rejected,
    "failed_requests_total": lambda counted: counted.failed,
    "continued_streams_total": lambda counted: counted.continued,
    "broken_streams_total": lambda counted: counted.broken,
    "cancelled_requests_total": lambda counted: counted.cancelled,
}


def _add_group(samples: Samples, group: GroupStatus, tally: Tally) -> None:
    name = group.name
    for phase in Phase:
        if phase is not Phase.DEGRADED:  # only a deployment can be
            samples.add("raylaunch_group_phase", phase is group.phase, name, phase)
    samples.add("raylaunch_group_phase_start_timestamp_seconds", group.phase_since, name)
    samples.add("raylaunch_group_attempt", group.attempt, name)
    samples.add("raylaunch_group_failures_total", tally.failures, name)
    for (cause, kind), count in sorted(tally.restarts.items()):
        samples.add("raylaunch_group_restarts_total", count, name, cause, kind)
    last = tally.last_failure
    if last is not None:
        at = "raylaunch_group_last_failure_timestamp_seconds"
        samples.add(at, last.at, name, last.cause, last.kind)
    samples.add_histogram("raylaunch_group_detection_seconds", tally.detection, name)
    samples.add_histogram("raylaunch_group_recovery_seconds", tally.recovery, name)
    for (server, stage), seconds in sorted(tally.stages.items()):
        samples.add("raylaunch_server_start_stage_seconds", seconds, name, server, stage)


def _add_server(samples: Samples, server: ServerStatus, now: float) -> None:
    seen = server.seen
    place = (server.group, server.index)
    is_up = seen.pid is not None and seen.exit is None and not seen.agent_lost
    samples.add("raylaunch_server_up", is_up, *place, server.ip, server.role)
    samples.add("raylaunch_server_log_failing", bool(seen.log_error), *place)
    age = "raylaunch_server_agent_answer_age_seconds"
    samples.add(age, _age(now, seen.agent_at), *place)
    if seen.http.at is not None:
        failing_s = _age(now, seen.http.failing_since) or 0.0
        samples.add("raylaunch_server_health_seconds", seen.http.latency_s, *place)
        samples.add("raylaunch_server_health_failing_seconds", failing_s, *place)
    if seen.canary is not None:
        samples.add("raylaunch_server_canary_seconds", seen.canary.latency_s, *place)


def _add_ranks(samples: Samples, server: ServerStatus, now: float) -> None:
    for rank in server.seen.ranks:
        place = (server.group, rank.rank)
        for name, read in _OF_RANK.items():
            samples.add(f"raylaunch_rank_{name}", read(rank), *place)
        samples.add("raylaunch_rank_progress_age_seconds", _age(now, rank.moved_at), *place)
        # A stall counts only up to the last reading, as in the detection.
        stalled_s = _age(rank.at or now, rank.still_since) or 0.0
        samples.add("raylaunch_rank_stalled_seconds", stalled_s, *place)
        failing_s = _age(now, rank.canary_failing_since) or 0.0
        samples.add("raylaunch_rank_canary_failing_seconds", failing_s, *place)


_OF_RANK: dict[str, Callable[[RankSeen], float]] = {
    "requests_running": lambda rank: rank.running,
    "requests_waiting": lambda rank: rank.waiting,
    "tokens_total": lambda rank: rank.tokens,
    "requests_finished_total": lambda rank: rank.finished,
    "kv_cache_usage_ratio": lambda rank: rank.kv_usage,
    "prefix_cache_queries_total": lambda rank: rank.prefix_queries,
    "prefix_cache_hits_total": lambda rank: rank.prefix_hits,
}


def _add_processes(samples: Samples, server: ServerStatus, usage: NodeUsage) -> None:
    assert usage.server is not None
    place = (server.group, server.index)
    samples.add("raylaunch_server_processes", usage.server.processes, *place)
    samples.add("raylaunch_server_resident_memory_bytes", usage.server.resident_bytes, *place)
    samples.add("raylaunch_server_open_fds", usage.server.open_files, *place)


def _by_node(scrape: Scrape) -> dict[str, NodeUsage]:
    """Return one usage for each node: several servers of a node report the same host."""
    found = {}
    for server in scrape.status.servers:
        usage = scrape.usage.get((server.group, server.index))
        if usage is not None:
            found[server.ip] = usage
    return found


def _add_node(samples: Samples, node: str, usage: NodeUsage) -> None:
    samples.add("raylaunch_node_memory_total_bytes", usage.memory_total_bytes, node)
    samples.add("raylaunch_node_memory_available_bytes", usage.memory_available_bytes, node)
    _add_disk(samples, node, "logs", usage.log_disk)
    _add_disk(samples, node, "weights", usage.weights_disk)
    samples.add("raylaunch_npu_state_age_seconds", usage.npu_age_s, node)
    for npu in usage.npus:
        _add_npu(samples, node, npu)
    errors = "raylaunch_npu_hbm_ecc_errors_total"
    for ecc in usage.ecc:
        samples.add(errors, ecc.corrected, node, ecc.npu, "corrected")
        samples.add(errors, ecc.uncorrected, node, ecc.npu, "uncorrected")
        samples.add("raylaunch_npu_hbm_isolated_pages", ecc.isolated_pages, node, ecc.npu)


def _add_disk(samples: Samples, node: str, holds: str, disk: DiskUsage | None) -> None:
    if disk is not None:
        samples.add("raylaunch_node_disk_total_bytes", disk.total_bytes, node, holds)
        samples.add("raylaunch_node_disk_free_bytes", disk.free_bytes, node, holds)


def _add_npu(samples: Samples, node: str, npu: Npu) -> None:
    place = (node, npu.id)
    samples.add("raylaunch_npu_healthy", npu.health == "OK", *place, npu.name)
    # 0: the memory cell of the table could not be read.
    if npu.hbm_total_mb:
        samples.add("raylaunch_npu_hbm_used_bytes", npu.hbm_used_mb * MB, *place)
        samples.add("raylaunch_npu_hbm_total_bytes", npu.hbm_total_mb * MB, *place)
    percent = npu.aicore_percent
    ratio = None if percent is None else percent / 100
    samples.add("raylaunch_npu_utilization_ratio", ratio, *place)
    samples.add("raylaunch_npu_temperature_celsius", npu.temperature_c, *place)
    samples.add("raylaunch_npu_power_watts", npu.power_w, *place)


def _age(now: float, at: float | None) -> float | None:
    return None if at is None else max(0.0, now - at)
