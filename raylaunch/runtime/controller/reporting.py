"""What a controller reports: its status, and the error of a deployment that failed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import LaunchError, RaylaunchError
from raylaunch.node.process.log_files import planned_log
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.bundle_writer import tail_of
from raylaunch.runtime.controller.evidence import Case, on_wall_clock
from raylaunch.runtime.controller.journal import Journal
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise import policy
from raylaunch.supervise.deployment_status import ServerStatus, Status
from raylaunch.supervise.state import Phase, ServerSeen

SHOWN_EVENTS = 20


def build_status(
    request: Request,
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    log_roots: Mapping[int, str],
    shape: policy.GroupShape,
    clock: Clock,
) -> Status:
    """Return the deployment as it is now, with all times on the wall clock."""
    waiting_for: tuple[str, ...] = ()
    if journal.phase is Phase.STARTING:
        waiting_for = policy.find_unready(list(seen.values()), journal.history, gang=shape)
    ready_at = journal.history.ready_at
    if ready_at is not None:
        ready_at += clock.wall() - clock.monotonic()
    return Status(
        deployment=request.deployment,
        recipe=request.loaded.name,
        phase=journal.phase,
        attempt=journal.attempt,
        endpoint=journal.plan.endpoint if journal.plan else "",
        served_name=request.loaded.recipe.model.served_name,
        now=clock.wall(),
        created_at=journal.created_at,
        phase_since=journal.phase_since,
        ready_at=ready_at,
        restarts=journal.restarts,
        waiting_for=waiting_for,
        servers=_servers(journal, on_wall_clock(seen, clock), log_roots),
        findings=journal.findings,
        events=tuple(journal.events[-SHOWN_EVENTS:]),
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
            )
        )
    return tuple(servers)


def explain_failure(decision: policy.GiveUp, case: Case, nodes: tuple[str, ...]) -> LaunchError:
    """Return the error of a deployment that is given up: root, cause, log tail, remedy."""
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
