"""The status of a whole deployment: its groups, its events, what is under way, and its gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylaunch.checks.findings import Finding
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.changes.operations import Operations
from raylaunch.runtime.controller.deployment_record import DeploymentRecord
from raylaunch.runtime.controller.gateway.gateway_link import GatewayLink
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.deployment_summary import behind_gateway, on_fallback, summarise


def all_events(groups: GroupSet, record: DeploymentRecord) -> list[Event]:
    """Return the events of the deployment and of its groups, in the order they happened."""
    events = [*record.journal.events, *groups.events()]
    return sorted(events, key=lambda event: event.number)


def whole_status(
    deployment: str,
    groups: GroupSet,
    record: DeploymentRecord,
    operations: Operations,
    gateway: GatewayLink | None,
    clock: Clock,
    findings: Sequence[Finding] = (),
) -> Status:
    """Return where a deployment is now; `findings` are those beside its groups' and gateway's."""
    loaded = record.journal.loaded
    status = summarise(
        [group.status() for group in groups],
        all_events(groups, record),
        deployment=deployment,
        recipe=loaded.name,
        served_name=loaded.recipe.model.served_name,
        now=clock.wall(),
        stopping=record.journal.stopping,
    )
    status = operations.show_in(status)
    status = replace(status, findings=(*status.findings, *findings))
    if gateway is not None:
        status = behind_gateway(status, gateway.report(), gateway.findings)
    serving = record.journal.degradation.serving
    return on_fallback(status, "" if serving is None else loaded.recipe.fallback[serving].title)
