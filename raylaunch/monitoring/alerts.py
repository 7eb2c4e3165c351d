"""The alerts as values: one for each cause that a failure can have, and those on symptoms.

The texts of the causes are those of the diagnosis, so an alert and `raylaunch diagnose` agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raylaunch.supervise.diagnosis.exit_reasons import exit_reasons
from raylaunch.supervise.diagnosis.rules.error_codes import load_codes
from raylaunch.supervise.diagnosis.signatures import load_signatures

Severity = Literal["critical", "warning", "info"]

ACTIVE = "raylaunch:failure_active"
"""Recording rule: the last failure of a group while it is fresh, or not recovered from."""
FRESH_S = 120
"""A failure that was recovered from within a scrape interval is still seen, and clears after it."""
_DIAGNOSE = "raylaunch diagnose {{ $labels.deployment }}"
_STATUS = "raylaunch status {{ $labels.deployment }}"
_EVENTS = "raylaunch events {{ $labels.deployment }}"
_CHECK = "raylaunch check {{ $labels.deployment }}"


@dataclass(frozen=True)
class Alert:
    """One alerting rule. `wait_s`: how long the expression must hold before it fires."""

    name: str
    expr: str
    summary: str
    cause: str
    remedy: str
    command: str
    severity: Severity = "warning"
    wait_s: int = 0
    failure: str = ""
    """The id of the failure that it is about; "" for an alert on a symptom."""


@dataclass(frozen=True)
class _Cause:
    id: str
    kind: str
    cause: str
    remedy: str


_DETECTORS = (
    _Cause("ended", "transient", "A server exited, and its log gives no reason.", _DIAGNOSE),
    _Cause(
        "http-dead",
        "transient",
        "The API of a server stopped answering /health, and no rank made tokens.",
        "Read the log of the primary; if it was only overloaded, raise `health.http_fail_s`.",
    ),
    _Cause(
        "stalled",
        "transient",
        "A rank had requests and made no progress for `health.stall_s`: it hangs.",
        "Read the log of its server; if prefills take this long, raise `health.stall_s`.",
    ),
    _Cause(
        "canary-failed",
        "transient",
        "An idle rank failed its health-check completion: it hangs.",
        "Read the log of its server; if it was only slow, raise `health.canary_timeout_s`.",
    ),
    _Cause(
        "start-deadline",
        "transient",
        "The group was not ready within `timeouts.start`.",
        "See which stage took the time; raise `timeouts.start` if it needs longer.",
    ),
    _Cause(
        "step-failed",
        "transient",
        "A step of raylaunch failed: an agent did not answer, or NPUs could not be reserved.",
        "Read the events, and the log of the controller.",
    ),
    _Cause(
        "internal",
        "internal",
        "An error in the controller itself.",
        "Report it with `raylaunch logs NAME --controller`.",
    ),
)
"""Failures that a detector found and no diagnosis explains."""
_NO_FAILURE = ("no-evidence",)


def all_alerts() -> tuple[Alert, ...]:
    """Return every alert."""
    named = tuple(_by_cause())
    known = "|".join(re.escape(alert.failure) for alert in named)
    other = Alert(
        name="RaylaunchFailureOther",
        expr=f'{ACTIVE}{{cause!~"{_quoted(known)}"}} > 0',
        summary=_failed("{{ $labels.cause }}"),
        cause="The diagnosis is {{ $labels.cause }} ({{ $labels.class }}); its text names what "
        "the log shows.",
        remedy="Read the diagnosis.",
        command=_DIAGNOSE,
    )
    return (*named, other, *_SYMPTOMS)


def _by_cause() -> Iterator[Alert]:
    seen: set[str] = set()
    for cause in _causes():
        if cause.id in seen or cause.id in _NO_FAILURE:
            continue
        seen.add(cause.id)
        yield Alert(
            name=alert_name(cause.id),
            expr=f'{ACTIVE}{{cause="{cause.id}"}} > 0',
            summary=_failed(cause.id),
            cause=_as_template(cause.cause),
            remedy=_as_template(cause.remedy),
            command=_DIAGNOSE,
            severity="warning" if cause.kind == "transient" else "critical",
            failure=cause.id,
        )


def _causes() -> Iterator[_Cause]:
    yield from _DETECTORS
    for reason in exit_reasons():
        yield _Cause(reason.id, reason.kind, reason.cause, reason.remedy)
    for one in load_signatures():
        if one.level in ("fatal", "hang") and one.kind != "harmless":
            yield _Cause(one.id, one.kind, one.cause, one.remedy)
    for code in load_codes().values():
        cause = code.cause or "CANN reported an inner error."
        yield _Cause(f"cann-{code.code}", code.kind, cause, code.remedy)


def alert_name(cause: str) -> str:
    """Return the name of the alert for a cause: "hbm-oom" -> "RaylaunchHbmOom"."""
    words = re.split(r"[^A-Za-z0-9]+", cause)
    return "Raylaunch" + "".join(word[:1].upper() + word[1:] for word in words)


def _failed(cause: str) -> str:
    return f"{{{{ $labels.deployment }}}}/{{{{ $labels.group }}}} failed: {cause}"


def _as_template(text: str) -> str:
    """Return a text of the diagnosis for Prometheus, whose templates begin with two braces."""
    flat = " ".join(text.split())
    if "$labels." in flat:
        return flat
    return re.sub(r"\{\d\}", "...", flat).replace("{{", '{{ "{{" }}')


def _quoted(pattern: str) -> str:
    """Return a pattern for a string of PromQL."""
    return pattern.replace("\\", "\\\\").replace('"', '\\"')


_DOWN_PHASES = "pending|checking|starting|restarting"

_SYMPTOMS = (
    Alert(
        name="RaylaunchDeploymentFailed",
        expr='raylaunch_deployment_phase{phase="failed"} == 1',
        summary="{{ $labels.deployment }} has failed and is not restarted",
        cause="A failure that comes again at each start, or too many restarts within the window.",
        remedy="Follow the diagnosis, then `raylaunch restart NAME`.",
        command=_DIAGNOSE,
        severity="critical",
    ),
    Alert(
        name="RaylaunchNotReady",
        expr=f'raylaunch_deployment_phase{{phase=~"{_DOWN_PHASES}"}} == 1',
        summary="{{ $labels.deployment }} has been {{ $labels.phase }} for 30 minutes",
        cause="No group serves. Weights that are read from a slow disk, nodes that are missing, "
        "or restarts one after the other.",
        remedy="See what it waits for, and in which stage the servers are.",
        command=_STATUS,
        severity="critical",
        wait_s=1800,
    ),
    Alert(
        name="RaylaunchDegraded",
        expr='raylaunch_deployment_phase{phase="degraded"} == 1',
        summary="{{ $labels.deployment }} has served with fewer groups for 15 minutes",
        cause="A group is not ready while others are, or a fallback serves while a node is lost.",
        remedy="See which group it is, and its diagnosis; bring a lost node back.",
        command=_STATUS,
        wait_s=900,
    ),
    Alert(
        name="RaylaunchRestartsOften",
        # Not the restarts: a cause that is new has a new series, whose first count is no increase.
        expr="increase(raylaunch_group_failures_total[1h]) >= 3",
        summary="{{ $labels.deployment }}/{{ $labels.group }} restarts again and again",
        cause="The same fault comes back. At `health.max_restarts` within the window the group "
        "is given up.",
        remedy="Compare the diagnoses of the last failures.",
        command=_EVENTS,
    ),
    Alert(
        name="RaylaunchControllerRestarted",
        expr="(raylaunch_controller_took_over == 1) and "
        f"(time() - raylaunch_controller_start_timestamp_seconds < {FRESH_S})",
        summary="the controller of {{ $labels.deployment }} died; another one took over",
        cause="The controller process was killed, or its node ran out of memory. "
        "No server was touched.",
        remedy="On the head node run `dmesg -T | grep -iE 'oom|killed process'`.",
        command="raylaunch logs {{ $labels.deployment }} --controller",
    ),
    Alert(
        name="RaylaunchMetricsDown",
        expr='up{job="raylaunch"} == 0',
        summary="the metrics of {{ $labels.deployment }} cannot be read",
        cause="The controller does not answer, or its node is unreachable.",
        remedy="See whether Ray runs on the head node.",
        command=_STATUS,
        severity="critical",
        wait_s=60,
    ),
    Alert(
        name="RaylaunchLogFailing",
        expr="raylaunch_server_log_failing == 1",
        summary="the log of server {{ $labels.server }} of {{ $labels.deployment }} is not written",
        cause="The disk of the logs is full or read-only. The server runs on.",
        remedy="Free space on that node; the log continues by itself.",
        command=_EVENTS,
        wait_s=10,
    ),
    Alert(
        name="RaylaunchLogDiskLow",
        expr='raylaunch_node_disk_free_bytes{holds="logs"} / '
        'raylaunch_node_disk_total_bytes{holds="logs"} < 0.05',
        summary="the disk of the logs on {{ $labels.node }} is nearly full",
        cause="Less than 5 % is free.",
        remedy="Remove old logs and bundles, or move them with RAYLAUNCH_LOG_DIR.",
        command=_CHECK,
        wait_s=120,
    ),
    Alert(
        name="RaylaunchMemoryLow",
        expr="raylaunch_node_memory_available_bytes / raylaunch_node_memory_total_bytes < 0.05",
        summary="{{ $labels.node }} is nearly out of memory",
        cause="Less than 5 % is available: the kernel's OOM killer may kill a server.",
        remedy="Find what uses it; raise the container's limit.",
        command=_STATUS,
        wait_s=60,
    ),
    Alert(
        name="RaylaunchNpuUnhealthy",
        expr="raylaunch_npu_healthy == 0",
        summary="NPU {{ $labels.npu }} on {{ $labels.node }} is not healthy",
        cause="npu-smi reports another health than OK.",
        remedy="Run `npu-smi info -t health -i N` on that node; a restart excludes a node with a "
        "device fault.",
        command=_CHECK,
        severity="critical",
    ),
    Alert(
        name="RaylaunchNpuEccErrors",
        expr='increase(raylaunch_npu_hbm_ecc_errors_total{kind="uncorrected"}[1h]) > 0',
        summary="NPU {{ $labels.npu }} on {{ $labels.node }} had uncorrected memory errors",
        cause="The HBM of the NPU lost data within the last hour. A request may fail, or the "
        "server with it.",
        remedy="Run `npu-smi info -t ecc -i N` on that node; if the count grows, take the NPU out "
        "of use and have the card checked.",
        command=_CHECK,
    ),
    Alert(
        name="RaylaunchNpuStateOld",
        expr="raylaunch_npu_state_age_seconds > 120",
        summary="npu-smi on {{ $labels.node }} does not answer",
        cause="npu-smi hangs or fails: often the driver, or an NPU that is lost.",
        remedy="Run `npu-smi info` on that node.",
        command=_CHECK,
    ),
    Alert(
        name="RaylaunchGatewayDown",
        # Not while the deployment has never had one.
        expr="(raylaunch_gateway_up == 0) and (max_over_time(raylaunch_gateway_up[10m]) == 1)",
        summary="the gateway of {{ $labels.deployment }} does not answer",
        cause="Its keeper died. The controller starts another one on the same port.",
        remedy="If it does not come back, read gateway.log in the gateway's folder.",
        command=_STATUS,
        severity="critical",
        wait_s=15,
    ),
    Alert(
        name="RaylaunchGatewayRejects",
        expr="increase(raylaunch_gateway_rejected_requests_total[2m]) > 0",
        summary="the gateway of {{ $labels.deployment }} refuses requests",
        cause="More requests wait for a server than `gateway.hold_requests` allows.",
        remedy="See why no group answers; raise `gateway.hold_requests` if it is load.",
        command=_STATUS,
        severity="critical",
    ),
)
