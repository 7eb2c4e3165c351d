"""One status of a deployment from those of its groups, and back to the status of one group."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from raylaunch.checks.findings import Finding
from raylaunch.errors import UnknownDeploymentError
from raylaunch.supervise.deployment_status import Event, GatewayReport, GroupStatus, Status
from raylaunch.supervise.state import Phase

ON_THE_WAY = (Phase.PENDING, Phase.CHECKING, Phase.STARTING, Phase.RESTARTING)
"""Phases that lead to ready, the least advanced first."""
SHOWN_EVENTS = 20
GATEWAY_ANSWER = "an answer of the gateway's keeper"


def derive_phase(phases: Collection[Phase], *, stopping: bool = False) -> Phase:
    """Return the phase of a deployment from those of its groups.

    Args:
        phases: One for each group.
        stopping: The deployment was ordered to stop.
    """
    if stopping or not phases:
        return Phase.STOPPED if set(phases) <= {Phase.STOPPED} else Phase.STOPPING
    if set(phases) == {Phase.READY}:
        return Phase.READY
    if Phase.READY in phases:
        return Phase.DEGRADED
    for phase in ON_THE_WAY:
        if phase in phases:
            return phase
    if Phase.FAILED in phases:
        return Phase.FAILED
    # Every group is stopped, or about to be.
    return Phase.STOPPED if set(phases) == {Phase.STOPPED} else Phase.STOPPING


def is_settled(status: Status) -> bool:
    """Return whether no group is on its way to ready: waiting longer changes nothing."""
    return not any(group.phase in ON_THE_WAY for group in status.groups)


def summarise(
    groups: Sequence[GroupStatus],
    events: Sequence[Event],
    *,
    deployment: str,
    recipe: str,
    served_name: str,
    now: float,
    stopping: bool,
) -> Status:
    """Return the status of a deployment.

    Args:
        groups: Its groups; at least one.
        events: Those of all groups and of the deployment, in any order.
        deployment: Its name.
        recipe: The name of its recipe.
        served_name: The name of its model for clients.
        now: Seconds since the epoch.
        stopping: It was ordered to stop.
    """
    phase = derive_phase([group.phase for group in groups], stopping=stopping)
    errors = [group.error for group in groups if group.error]
    ready = [group.ready_at for group in groups if group.ready_at is not None]
    # What equal groups have in common is shown once.
    findings = dict.fromkeys(finding for group in groups for finding in group.findings)
    waiting: list[str] = []
    for group in groups:
        prefix = f"{group.name}: " if len(groups) > 1 else ""
        waiting += [f"{prefix}{condition}" for condition in group.waiting_for]
    return Status(
        deployment=deployment,
        recipe=recipe,
        phase=phase,
        attempt=max(group.attempt for group in groups),
        endpoint=next((group.endpoint for group in groups if group.endpoint), ""),
        served_name=served_name,
        now=now,
        created_at=min(group.created_at for group in groups),
        phase_since=max(group.phase_since for group in groups),
        ready_at=max(ready, default=None),
        restarts=sum(group.restarts for group in groups),
        waiting_for=tuple(waiting),
        servers=tuple(server for group in groups for server in group.servers),
        findings=tuple(findings),
        events=tuple(sorted(events, key=lambda event: event.number)[-SHOWN_EVENTS:]),
        error=errors[0] if errors and (phase is Phase.FAILED or len(groups) == 1) else None,
        groups=tuple(groups),
    )


def behind_gateway(
    status: Status, gateway: GatewayReport, findings: Sequence[Finding] = ()
) -> Status:
    """Return the status with the gateway, whose address is the deployment's.

    Args:
        status: Made of the groups alone.
        gateway: The gateway.
        findings: Those about it.
    """
    shown = replace(
        status,
        endpoint=gateway.endpoint,
        gateway=gateway,
        findings=tuple(dict.fromkeys((*status.findings, *findings))),
    )
    answers = gateway.endpoint and not gateway.is_silent
    if answers or status.phase not in (Phase.READY, Phase.DEGRADED):
        return shown
    if gateway.endpoint:
        # It was up, and serves on without its keeper: the phase is what the groups make it.
        return replace(shown, waiting_for=(*status.waiting_for, GATEWAY_ANSWER))
    phase = Phase.STARTING if status.phase is Phase.READY else status.phase
    return replace(shown, phase=phase, waiting_for=(*status.waiting_for, "the gateway"))


def on_fallback(status: Status, fallback: str) -> Status:
    """Return the status of a deployment whose fallback has the recipe's place; "" for none."""
    phase = Phase.DEGRADED if fallback and status.phase is Phase.READY else status.phase
    return replace(status, phase=phase, fallback=fallback)


def narrow(status: Status, name: str | None) -> Status:
    """Return the status of one group in the form of a deployment's; all of it without a name.

    Raises:
        UnknownDeploymentError: the deployment has no such group.
    """
    if name is None:
        return status
    group = find_group(status, name)
    return replace(
        status,
        phase=group.phase,
        attempt=group.attempt,
        endpoint=group.endpoint,
        created_at=group.created_at,
        phase_since=group.phase_since,
        ready_at=group.ready_at,
        restarts=group.restarts,
        waiting_for=group.waiting_for,
        servers=group.servers,
        findings=group.findings,
        events=tuple(event for event in status.events if event.group in ("", name)),
        error=group.error,
        groups=(group,),
        gateway=None,
    )


def find_group(status: Status, name: str) -> GroupStatus:
    """Return the status of one group.

    Raises:
        UnknownDeploymentError: the deployment has no such group.
    """
    for group in status.groups:
        if group.name == name:
            return group
    names = [group.name for group in status.groups]
    raise unknown_group(status.deployment, name, names)


def unknown_group(deployment: str, name: str, known: Sequence[str]) -> UnknownDeploymentError:
    """Return the error for a group that a deployment does not have."""
    return UnknownDeploymentError(
        f"{deployment} has no group named {name!r}",
        why=f"its groups are {', '.join(known)}",
        todo=f"`raylaunch status {deployment}` shows them",
    )
