"""What a controller tells: its status, and the error of a deployment that failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import LaunchError
from raylaunch.node.process.log_files import planned_log
from raylaunch.runtime.agent.snapshot import Remains
from raylaunch.runtime.controller import bundle_writer
from raylaunch.runtime.controller.journal import Journal
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise import policy
from raylaunch.supervise.deployment_status import ServerStatus, Status
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import Phase, ServerSeen

SHOWN_EVENTS = 20


def build_status(
    request: Request,
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    log_roots: Mapping[int, str],
    shape: policy.GroupShape,
) -> Status:
    """The deployment as it is now."""
    plan = journal.plan
    starting = journal.phase is Phase.STARTING
    return Status(
        deployment=request.deployment,
        recipe=request.loaded.name,
        phase=journal.phase,
        attempt=journal.attempt,
        endpoint=plan.endpoint if plan else "",
        served_name=request.loaded.recipe.model.served_name,
        now=time.time(),
        created_at=journal.created_at,
        phase_since=journal.phase_since,
        ready_at=journal.history.ready_at,
        restarts=journal.restarts,
        waiting_for=policy.find_unready(list(seen.values()), journal.history, gang=shape)
        if starting
        else (),
        servers=_servers(journal, seen, log_roots),
        findings=journal.findings,
        events=tuple(journal.events[-SHOWN_EVENTS:]),
        error=journal.error,
    )


def _servers(
    journal: Journal, seen: Mapping[int, ServerSeen], log_roots: Mapping[int, str]
) -> tuple[ServerStatus, ...]:
    on_cpu = journal.plan is not None and journal.plan.platform == "cpu"
    return tuple(
        ServerStatus(
            index=server.index,
            role=server.role,
            ranks=server.ranks,
            ip=server.node.ip,
            interface=server.node.interface,
            # On CPU they number Ray's stand-in resource; there is no NPU behind it.
            devices=() if on_cpu else server.devices,
            log=str(
                planned_log(Path(log_roots.get(server.index, "")), server.log, journal.attempt)
            ),
            seen=seen.get(server.index, ServerSeen(server.index)),
        )
        for server in (journal.plan.servers if journal.plan else ())
    )


def explain_failure(
    decision: policy.GiveUp,
    found: Diagnosis | None,
    nodes: tuple[str, ...],
    remains: Mapping[int, Remains],
    bundle: Path | None,
) -> LaunchError:
    """The error of a deployment that is given up: root, cause, log tail, remedy."""
    root = decision.root
    where = "the gang" if root is None else f"server {root} on {nodes[root]}"
    shown = bundle_writer.tail_of(remains, sorted(remains) if root is None else [root])
    if found is not None and found.line:
        shown = f"  {found.line}\n{shown}"
    if decision.collateral:
        shown += f"\n  collateral: server {', '.join(map(str, decision.collateral))} failed because of it"
    return LaunchError(
        f"{where} failed: {found.cause if found else decision.reason}",
        why=decision.reason,
        evidence=f"{shown}\n  evidence of the attempt: {bundle}",
        todo=found.remedy if found else "read the log above",
    )
