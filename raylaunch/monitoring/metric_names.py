"""Every metric of the endpoint: name, type, labels and meaning, after Prometheus' conventions.

Base units (seconds, bytes, ratios from 0 to 1), `_total` for counters, no label whose values are
not bounded: groups, servers, ranks, nodes and NPUs of a plan, ids of diagnoses, names of stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One metric family. `labels` come after `deployment`, which every metric has."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_GROUP = ("group",)
_SERVER = ("group", "server")
_RANK = ("group", "rank")
_NPU = ("node", "npu")


def _gateway(name: str, text: str) -> Metric:
    return Metric(f"raylaunch_gateway_{name}", "counter", (), text)


METRICS: tuple[Metric, ...] = (
    Metric(
        "raylaunch_deployment_info",
        "gauge",
        ("recipe", "model"),
        "Recipe and served name of the deployment; always 1.",
    ),
    Metric(
        "raylaunch_deployment_phase",
        "gauge",
        ("phase",),
        "1 for the phase of the deployment, 0 for the others.",
    ),
    Metric(
        "raylaunch_controller_start_timestamp_seconds",
        "gauge",
        (),
        "When this controller process started.",
    ),
    Metric(
        "raylaunch_controller_took_over",
        "gauge",
        (),
        "1 if this controller took over from one that died.",
    ),
    Metric(
        "raylaunch_group_phase",
        "gauge",
        ("group", "phase"),
        "1 for the phase of the group, 0 for the others.",
    ),
    Metric(
        "raylaunch_group_phase_start_timestamp_seconds",
        "gauge",
        _GROUP,
        "When the group entered its phase.",
    ),
    Metric("raylaunch_group_attempt", "gauge", _GROUP, "Number of the current launch."),
    Metric(
        "raylaunch_group_restarts_total",
        "counter",
        ("group", "cause", "class"),
        "Restarts after failures, by diagnosis and failure class.",
    ),
    Metric("raylaunch_group_failures_total", "counter", _GROUP, "Detected failures."),
    Metric(
        "raylaunch_group_last_failure_timestamp_seconds",
        "gauge",
        ("group", "cause", "class"),
        "When the last failure was detected; its labels are those of the last failure.",
    ),
    Metric(
        "raylaunch_group_detection_seconds",
        "histogram",
        _GROUP,
        "From the first trace of a fault to its detection.",
    ),
    Metric(
        "raylaunch_group_recovery_seconds",
        "histogram",
        _GROUP,
        "From the detection of a failure until the group was ready again.",
    ),
    Metric(
        "raylaunch_server_start_stage_seconds",
        "gauge",
        ("group", "server", "stage"),
        "Time in each stage of the last start that became ready.",
    ),
    Metric(
        "raylaunch_server_up",
        "gauge",
        ("group", "server", "node", "role"),
        "1 while the server has a process that has not exited and an agent that answers.",
    ),
    Metric(
        "raylaunch_server_log_failing",
        "gauge",
        _SERVER,
        "1 while the log of the server cannot be written.",
    ),
    Metric(
        "raylaunch_server_agent_answer_age_seconds",
        "gauge",
        _SERVER,
        "Time since the agent of the server last answered.",
    ),
    Metric(
        "raylaunch_server_health_seconds",
        "gauge",
        _SERVER,
        "Duration of the last request of /health.",
    ),
    Metric(
        "raylaunch_server_health_failing_seconds",
        "gauge",
        _SERVER,
        "How long /health has been failing; 0 while it succeeds.",
    ),
    Metric(
        "raylaunch_server_canary_seconds",
        "gauge",
        _SERVER,
        "Duration of the last health-check completion.",
    ),
    Metric(
        "raylaunch_server_processes",
        "gauge",
        _SERVER,
        "Processes of the server.",
    ),
    Metric(
        "raylaunch_server_resident_memory_bytes",
        "gauge",
        _SERVER,
        "Resident memory of the processes of the server; shared memory counts for each.",
    ),
    Metric("raylaunch_server_open_fds", "gauge", _SERVER, "Open files of its processes."),
    Metric("raylaunch_rank_requests_running", "gauge", _RANK, "Requests that run on the rank."),
    Metric("raylaunch_rank_requests_waiting", "gauge", _RANK, "Requests that wait on the rank."),
    Metric(
        "raylaunch_rank_tokens_total",
        "counter",
        _RANK,
        "Prompt and generated tokens since the server started.",
    ),
    Metric(
        "raylaunch_rank_requests_finished_total",
        "counter",
        _RANK,
        "Finished requests since the server started.",
    ),
    Metric("raylaunch_rank_kv_cache_usage_ratio", "gauge", _RANK, "KV cache in use, 0 to 1."),
    Metric(
        "raylaunch_rank_prefix_cache_queries_total",
        "counter",
        _RANK,
        "Tokens looked up in the prefix cache.",
    ),
    Metric(
        "raylaunch_rank_prefix_cache_hits_total",
        "counter",
        _RANK,
        "Tokens found in the prefix cache.",
    ),
    Metric(
        "raylaunch_rank_progress_age_seconds",
        "gauge",
        _RANK,
        "Time since a counter of the rank last moved.",
    ),
    Metric(
        "raylaunch_rank_stalled_seconds",
        "gauge",
        _RANK,
        "How long the rank has had requests without progress; 0 while idle or moving.",
    ),
    Metric(
        "raylaunch_rank_canary_failing_seconds",
        "gauge",
        _RANK,
        "How long health-check completions of the rank have been failing; 0 while they succeed.",
    ),
    Metric(
        "raylaunch_npu_healthy", "gauge", (*_NPU, "name"), "1 if npu-smi reports the health OK."
    ),
    Metric("raylaunch_npu_hbm_used_bytes", "gauge", _NPU, "Used device memory."),
    Metric("raylaunch_npu_hbm_total_bytes", "gauge", _NPU, "Size of the device memory."),
    Metric("raylaunch_npu_utilization_ratio", "gauge", _NPU, "AI Core utilisation, 0 to 1."),
    Metric("raylaunch_npu_temperature_celsius", "gauge", _NPU, "Temperature."),
    Metric("raylaunch_npu_power_watts", "gauge", _NPU, "Power."),
    Metric(
        "raylaunch_npu_hbm_ecc_errors_total",
        "counter",
        (*_NPU, "kind"),
        "ECC errors of the device memory since it was made: corrected or uncorrected.",
    ),
    Metric(
        "raylaunch_npu_hbm_isolated_pages",
        "gauge",
        _NPU,
        "Pages of the device memory that are not used any more because of uncorrected errors.",
    ),
    Metric("raylaunch_npu_state_age_seconds", "gauge", ("node",), "Age of npu-smi's answer."),
    Metric("raylaunch_node_memory_total_bytes", "gauge", ("node",), "Memory of the host."),
    Metric(
        "raylaunch_node_memory_available_bytes",
        "gauge",
        ("node",),
        "Memory of the host that programs can still have.",
    ),
    Metric(
        "raylaunch_node_disk_total_bytes",
        "gauge",
        ("node", "holds"),
        "Size of the file system that holds the logs or the weights.",
    ),
    Metric(
        "raylaunch_node_disk_free_bytes",
        "gauge",
        ("node", "holds"),
        "Free space of the file system that holds the logs or the weights.",
    ),
    Metric("raylaunch_gateway_up", "gauge", (), "1 while the gateway answers the controller."),
    Metric("raylaunch_gateway_requests_held", "gauge", (), "Requests that wait for a server."),
    _gateway("requests_total", "Requests that the gateway has accepted."),
    _gateway("retries_total", "Attempts beyond the first of a request."),
    _gateway("held_requests_total", "Requests that had to wait for a server."),
    _gateway("held_seconds_total", "Time that requests have waited."),
    _gateway("rejected_requests_total", "Requests refused because too many were waiting."),
    _gateway("failed_requests_total", "Requests answered with an error of the gateway's own."),
    _gateway("continued_streams_total", "Streams that were continued on another server."),
    _gateway("broken_streams_total", "Streams that were closed with an error."),
    _gateway("cancelled_requests_total", "Requests whose client went away."),
)

BY_NAME = {metric.name: metric for metric in METRICS}
