"""Cleans up embedded clusters: cancelled or interrupted starts, dead clusters, damaged records.

Everything here works without Ray's answer, by the marker that each process of a cluster carries.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raylaunch.errors import ClusterError
from raylaunch.node.process.cluster_records import (
    ClusterRecord,
    damaged,
    read_record,
    read_records,
    record_path,
)
from raylaunch.node.process.guard_socket import GuardReport, find_guards
from raylaunch.node.process.process_markers import (
    ANY_INSTANCE,
    EMBEDDED_IN,
    find_marked,
    terminate_marked,
)
from raylaunch.plan.facts import MarkedProcess
from raylaunch.recipe.group_names import GATEWAY_GROUP
from raylaunch.runtime.cluster.connection import why_unreachable
from raylaunch.runtime.cluster.daemon_supervisor import SUPERVISOR_GROUP, find_supervisors

log = logging.getLogger(__name__)

END_GRACE_S = 1.0
"""Ray's daemons have nothing to save: the servers were stopped before them."""
SERVER_GRACE_S = 5.0
"""For servers whose agents were killed with the cluster, from SIGTERM to SIGKILL."""
CANCEL_TIMEOUT_S = 15.0
"""In which a starting process notices that its start was cancelled; it checks between two steps."""
POLL_S = 0.1


@dataclass(frozen=True)
class KilledCluster:
    """What killing an embedded cluster by its marker came to."""

    processes: int
    """How many were found, servers included."""
    left: tuple[str, ...] = ()
    """What resisted: "pid 12 raylet"."""


@dataclass(frozen=True)
class JudgedRecords:
    """The records of embedded clusters that are not in order."""

    stale: tuple[str, ...]
    """Deployments of which only a record, or an interrupted start, is left."""
    undecided: tuple[str, ...]
    """What `clean` does not judge, each with what a person can do."""


def stop_local(home: Path, deployment: str) -> list[str]:
    """Kill the embedded cluster of `deployment`; returns what resisted ("pid 12 raylet").

    Raises:
        ClusterError: its record cannot be read.
    """
    return list(kill_local(home, deployment).left)


def kill_local(home: Path, deployment: str) -> KilledCluster:
    """Kill the embedded cluster of `deployment`, and its servers, by their markers.

    Needs no answer from Ray. Takes at most 2 x 10 s, for processes that resist SIGKILL.

    Raises:
        ClusterError: its record cannot be read.
    """
    record = read_record(home, deployment)
    return KilledCluster(0) if record is None else kill_cluster(home, record)


def cancel_start(home: Path, deployment: str) -> KilledCluster | None:
    """Cancel a start that is under way, or clean up an interrupted one; None when there is none.

    The starter is not signalled: it may be a user's Python program. It sees the cancellation, or
    that its `ray start` was killed, and removes the record.

    Raises:
        ClusterError: the record cannot be read.
    """
    record = read_record(home, deployment)
    if record is None or not (record.is_starting() or record.is_abandoned()):
        return None
    seen: set[int] = set()
    if record.is_starting():
        cancellation = cancellation_path(home, record)
        cancellation.touch(mode=0o600)
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while _is_under_way(home, record) and time.monotonic() < deadline:
            seen.update(process.pid for process in find_marked(record.marker))
            terminate_marked(record.marker, instance=ANY_INSTANCE, grace_s=0)
            time.sleep(POLL_S)
        latest = read_record(home, deployment)
        if latest is not None and latest.marker == record.marker and latest.address:
            # It was complete before the cancellation: a deployment like any other.
            cancellation.unlink(missing_ok=True)
            return None
    killed = kill_cluster(home, record)
    return replace(killed, processes=killed.processes + len(seen))


def judge_records(home: Path, deployment: str | None) -> JudgedRecords:
    """Judge the records of a home, all or that of one deployment.

    A damaged record is stale when no process can belong to it, or when `deployment` names it. So is
    one whose servers run on without Ray only if it is named: `start` takes them over.
    """
    records, problems = read_records(home)
    # After the records: each is written before the first process of its cluster exists.
    processes = find_marked() if records or problems else []
    stale = []
    undecided = []
    for record in records:
        if deployment not in (None, record.deployment):
            continue
        own = [process for process in processes if process.deployment == record.marker]
        if record.is_abandoned():
            stale.append(record.deployment)
        elif record.is_dead(own):
            if deployment is None and (guards := guards_without_ray(home, record)):
                undecided.append(_describe_survivors(record, guards))
            else:
                stale.append(record.deployment)
        elif record.address and (why := why_unreachable(record.address)):
            undecided.append(_describe_unreachable(record, why, own))
    for problem in problems:
        name = problem.deployment
        if deployment not in (None, name):
            continue
        if deployment is None and _has_processes(name, processes):
            error = damaged(problem)
            undecided.append(f"{error.what} ({error.why}), and its processes live: {error.todo}")
        else:
            stale.append(name)
    return JudgedRecords(tuple(sorted(stale)), tuple(undecided))


def remove_record(home: Path, deployment: str) -> bool:
    """Remove a stale record and all of its cluster; False: a process resisted."""
    try:
        return not kill_local(home, deployment).left
    except ClusterError:
        record_path(home, deployment).unlink(missing_ok=True)
        return True


def guards_without_ray(home: Path, record: ClusterRecord) -> list[GuardReport]:
    """Return the guards of a cluster's servers that wait for an agent to come back."""
    return [
        guard
        for guard in find_guards(home, record.deployment)
        if guard.owner is None and guard.marker.get(EMBEDDED_IN) == record.marker
    ]


def refuse_without_ray(home: Path, deployment: str) -> None:
    """Raise if no process of the deployment's cluster is left while its servers run on.

    Raises:
        ClusterError: so it is; it says who takes them over.
    """
    record = read_record(home, deployment)
    if record is None or not record.is_dead():
        return
    if guards := guards_without_ray(home, record):
        raise ClusterError(
            _describe_survivors(record, guards),
            todo=f"start it again as before: `raylaunch start ... --name {deployment}` takes the "
            f"servers over as they are; `raylaunch stop {deployment}` ends them",
        )


def _describe_survivors(record: ClusterRecord, guards: Collection[GuardReport]) -> str:
    pids = ", ".join(str(guard.server_pid) for guard in guards if guard.server_pid is not None)
    waits = [guard.owner_wait_s for guard in guards if guard.owner_wait_s is not None]
    until = f", for {min(waits):.0f} s more without it" if waits else ""
    return (
        f"no process of the Ray cluster of {record.deployment} is left, and its servers run on"
        f"{until} (pid {pids})"
    )


def _describe_unreachable(
    record: ClusterRecord, why: str, processes: Collection[MarkedProcess]
) -> str:
    supervisors = [process for process in processes if process.group == SUPERVISOR_GROUP]
    returning = "".join(
        f" (pid {one.pid}, its supervisor, starts Ray again)" for one in supervisors
    )
    return (
        f"the embedded cluster of {record.deployment} does not answer ({why}), and "
        f"{len(processes)} of its processes live{returning}: "
        f"`raylaunch stop {record.deployment}` kills them"
    )


def gcs_store_of(record: ClusterRecord) -> Path:
    """Return the folder in which the GCS of a cluster keeps its tables."""
    return Path(record.token_file).with_suffix(".gcs")


def cancellation_path(home: Path, record: ClusterRecord) -> Path:
    """Return the file whose existence says that this start is cancelled."""
    return record_path(home, record.deployment).with_name(f"{record.marker[1:]}.cancelled")


def _is_under_way(home: Path, record: ClusterRecord) -> bool:
    latest = read_record(home, record.deployment)
    return latest is not None and latest.marker == record.marker and latest.is_starting()


def _has_processes(deployment: str, processes: Collection[MarkedProcess]) -> bool:
    """Return whether a process carries the marker of a cluster of this deployment, of any home."""
    pattern = re.compile(rf"@{re.escape(deployment)}-[0-9a-f]{{8}}")
    return any(pattern.fullmatch(found.deployment) for found in processes)


def has_record(home: Path, deployment: str) -> bool:
    """Return whether this home has the record of an embedded cluster for the deployment.

    Raises:
        ClusterError: the record cannot be read.
    """
    return read_record(home, deployment) is not None


def kill_cluster(home: Path, record: ClusterRecord) -> KilledCluster:
    """Kill the processes of a cluster, and the servers below its agents; remove its files."""
    log.info("killing the embedded cluster of %s, marker %s", record.deployment, record.marker)
    instances = _instances_on(record)
    servers = _find_servers(record.deployment, instances)
    gateway = _gateway_of(record)
    found = {process.pid for process in [*find_marked(record.marker), *gateway]}
    left = kill_ray(record)
    for instance in {process.instance for process in gateway}:
        left += terminate_marked(record.deployment, instance=instance, grace_s=END_GRACE_S)
    if servers:
        left += _kill_servers(record.deployment, instances)
    if not left:
        _remove_files(home, record)
    return KilledCluster(
        processes=len(found) + len(servers),
        left=tuple(f"pid {process.pid} {process.command}" for process in left),
    )


def kill_ray(record: ClusterRecord) -> list[MarkedProcess]:
    """Kill the supervisor of a cluster, then its daemons, and no server; return what resisted."""
    supervisors = {process.pid for process in find_supervisors(record.marker)}
    if supervisors:
        # First, and until it is gone: it would start the daemons again.
        terminate_marked(record.marker, instance=ANY_INSTANCE, grace_s=0, pids=supervisors)
    return terminate_marked(record.marker, instance=ANY_INSTANCE, grace_s=END_GRACE_S)


def _instances_on(record: ClusterRecord) -> set[str]:
    """Return the instances of the deployment that were started from this cluster.

    Another cluster may run a deployment of the same name. A guard is below no process of Ray, so
    its marker names the cluster.
    """
    started = _started_from(record)
    return {process.instance for process in started if process.group != GATEWAY_GROUP}


def _gateway_of(record: ClusterRecord) -> list[MarkedProcess]:
    """Return the processes of the gateway: no process of the cluster is above them."""
    return [process for process in _started_from(record) if process.group == GATEWAY_GROUP]


def _started_from(record: ClusterRecord) -> list[MarkedProcess]:
    return [one for one in find_marked(record.deployment) if one.cluster == record.marker]


def _find_servers(deployment: str, instances: Iterable[str]) -> list[MarkedProcess]:
    found = [find_marked(deployment, instance=instance) for instance in instances]
    return [process for processes in found for process in processes]


def _kill_servers(deployment: str, instances: Collection[str]) -> list[MarkedProcess]:
    """Stop the servers and their guards, which may still wait for an agent to come back."""
    left = []
    for instance in instances:
        left += terminate_marked(deployment, instance=instance, grace_s=SERVER_GRACE_S)
    return left


def _remove_files(home: Path, record: ClusterRecord) -> None:
    shutil.rmtree(record.folder, ignore_errors=True)
    shutil.rmtree(gcs_store_of(record), ignore_errors=True)
    Path(record.token_file).unlink(missing_ok=True)
    cancellation_path(home, record).unlink(missing_ok=True)
    path = record_path(home, record.deployment)
    with suppress(ClusterError):
        latest = read_record(home, record.deployment)
        if latest is None or latest.marker != record.marker:
            return  # by now the name belongs to another start
    path.unlink(missing_ok=True)
