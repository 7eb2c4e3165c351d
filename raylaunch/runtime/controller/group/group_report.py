"""What is reported of a group: its status, and the error when it failed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import LaunchError, RaylaunchError
from raylaunch.node.process.log_files import planned_log
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.group.bundle_writer import tail_of
from raylaunch.runtime.controller.group.evidence import Case, on_wall_clock
from raylaunch.runtime.controller.group.journal import GroupRecord, Journal
from raylaunch.runtime.controller.launch_request import GroupRequest
from raylaunch.supervise import policy
from raylaunch.supervise.deployment_status import GroupStatus, ServerStatus
from raylaunch.supervise.state import Phase, ServerSeen


def build_group_status(
    request: GroupRequest,
    record: GroupRecord,
    log_roots: Mapping[int, str],
    clock: Clock,
    back_off_until: float | None = None,
) -> GroupStatus:
    """Return the group as it is now, with all times on the wall clock.

    Args:
        request: The group, and what was asked of it.
        record: Its journal and last observations.
        log_roots: The folder of each server's logs on its node.
        clock: Of this process.
        back_off_until: When the back-off of a restart is over, by the monotonic clock.
    """
    journal = record.journal
    waiting_for: tuple[str, ...] = ()
    if journal.phase is Phase.STARTING:
        servers = list(record.seen.values())
        waiting_for = policy.find_unready(servers, journal.history, gang=record.shape)
    ready_at = journal.history.ready_at
    if ready_at is not None:
        ready_at += clock.wall() - clock.monotonic()
    relaunch_at = None
    if back_off_until is not None and back_off_until > clock.monotonic():
        relaunch_at = clock.wall() + back_off_until - clock.monotonic()
    return GroupStatus(
        name=request.spec.name,
        role=request.spec.role,
        phase=journal.phase,
        attempt=journal.attempt,
        endpoint=journal.plan.endpoint if journal.plan else "",
        created_at=journal.created_at,
        phase_since=journal.phase_since,
        ready_at=ready_at,
        restarts=journal.restarts,
        waiting_for=waiting_for,
        servers=_servers(journal, on_wall_clock(record.seen, clock), log_roots),
        findings=journal.findings,
        relaunch_at=relaunch_at,
        error=journal.error,
    )


def _servers(
    journal: Journal, seen: Mapping[int, ServerSeen], log_roots: Mapping[int, str]
) -> tuple[ServerStatus, ...]:
    # On CPU the devices number Ray's stand-in resource; there is no NPU behind it.
    on_cpu = journal.plan is not None and journal.plan.platform == "cpu"
    servers = []
    for server in journal.plan.servers if journal.plan else ():
        log_root = Path(log_roots.get(server.index, ""))
        servers.append(
            ServerStatus(
                index=server.index,
                role=server.role,
                ranks=server.ranks,
                ip=server.node.ip,
                interface=server.node.interface,
                devices=() if on_cpu else server.devices,
                log=str(planned_log(log_root, server.log, journal.attempt)),
                seen=seen.get(server.index, ServerSeen(server.index)),
                group=journal.group,
            )
        )
    return tuple(servers)


def explain_failure(decision: policy.GiveUp, case: Case, nodes: tuple[str, ...]) -> LaunchError:
    """Return the error of a group that is given up: root, cause, log tail, remedy."""
    root = decision.root
    found = case.diagnosis
    where = "the group" if root is None else f"server {root} on {nodes[root]}"
    tails = sorted(case.snapshots) if root is None else [root]
    evidence = [tail_of(case.snapshots, tails)]
    if found is not None and found.line:
        evidence.insert(0, f"  {found.line}")
    if decision.collateral:
        others = ", ".join(map(str, decision.collateral))
        evidence.append(f"  collateral: server {others} failed because of it")
    if case.bundle is not None:
        evidence.append(f"  evidence of the attempt: {case.bundle}")
    else:
        evidence.append(f"  no evidence was kept: {case.problem}")
    return LaunchError(
        f"{where} failed: {found.cause if found else decision.reason}",
        why=decision.reason,
        evidence="\n".join(evidence),
        todo=found.remedy if found else "read the log above",
    )


def as_raylaunch_error(error: Exception) -> RaylaunchError:
    """Return an error to show: an unexpected one is a bug, with its traceback as evidence."""
    if isinstance(error, RaylaunchError):
        return error
    trace = "".join(traceback.format_exception(error))
    return RaylaunchError(
        f"a bug in the controller: {error!r}",
        todo="report it with the evidence below; `raylaunch logs NAME --controller` has more",
        evidence=trace,
    )
