"""Injects one fault at a time into a running deployment and measures its recovery.

All times are on the controller's clock: the agent's time of the injection is converted to it, the
others are times of the controller's events. The controller itself is killed through Ray, which
restarts it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from raylaunch.checks.secret_checks import API_KEY
from raylaunch.errors import BusyError, LaunchError, RaylaunchError, from_dict
from raylaunch.node.process.ray_daemons import LOOP
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.controller_client import ControllerClient, require_controller
from raylaunch.runtime.drill.questions import ask, events_of, status_of
from raylaunch.runtime.drill.ray_faults import break_ray
from raylaunch.runtime.drill.traffic import REQUEST_S, Traffic
from raylaunch.supervise.deployment_status import Event, ServerStatus, Status
from raylaunch.supervise.deployment_summary import narrow
from raylaunch.supervise.drills import FAULTS, OF_RAY, ON_REQUEST, Fault, Outcome
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

POLL_S = 1.0
DETECTION_S = 180.0
"""A fault that has not been detected by then counts as undetected."""


def choose(names: Sequence[str]) -> list[Fault]:
    """Return the faults of these names; without names all that affect only the deployment.

    Raises:
        RaylaunchError: there is no such fault.
    """
    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise RaylaunchError(
                f"there is no fault named {name!r}", todo=f"choose from {', '.join(known)}"
            )
    if names:
        return [known[name] for name in names]
    return [fault for fault in FAULTS if fault.name not in ON_REQUEST]


def run_drill(
    deployment: str,
    faults: Sequence[Fault],
    on_outcome: Callable[[Outcome], None] | None = None,
    group: str | None = None,
    *,
    reconnect: Callable[[], None],
) -> list[Outcome]:
    """Inject the faults one after the other, until one from which the group does not recover.

    Without a group it is the first one. `reconnect` connects to the cluster again, which some
    faults break.

    Raises:
        BusyError: the group is not ready, or another operator's command is under way.
        RaylaunchError: the deployment failed or was stopped meanwhile.
    """
    status = ask(deployment, ControllerClient.status)
    key = GroupKey(deployment, group or status.groups[0].name)
    outcomes = []
    for fault in faults:
        outcome = _drill_one(key, fault, reconnect)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
        if outcome.recovery_s is None and not outcome.skipped:
            break
    return outcomes


def _drill_one(key: GroupKey, fault: Fault, reconnect: Callable[[], None]) -> Outcome:
    status = status_of(key)
    _require_ready(status)
    restarts_ray = _what_restarts_ray(key) if fault.name in OF_RAY else ""
    server, refusal = _choose_target(key, fault, status, restarts_ray)
    if refusal:
        log.info("fault %s skipped: %s", fault.name, refusal)
        return Outcome(fault.name, skipped=refusal)
    log.info("injecting fault %s into server %d of %s", fault.name, server, key)
    with _traffic(key.deployment) as traffic:
        # Only now: requests that fail before the fault would be counted as its effect.
        traffic.await_first_answer()
        last_event = max((event.number for event in events_of(key)), default=0)
        if fault.name == "kill-controller":
            outcome = _kill_controller(key, status, last_event)
        elif restarts_ray:
            outcome = break_ray(key, fault, server, last_event, reconnect)
        else:
            outcome = _inject(key, fault, server, last_event)
    orphans = tuple(ask(key.deployment, ControllerClient.leftovers, key.group))
    return _judge(fault, outcome, traffic, orphans)


def _traffic(deployment: str) -> Traffic:
    """Return clients of the deployment's address: the gateway's, where there is one."""
    whole = ask(deployment, ControllerClient.status)
    gateway = ask(deployment, ControllerClient.recipe).recipe.gateway
    variable = API_KEY
    patience_s = REQUEST_S
    if whole.gateway is not None:
        variable = next(iter(gateway.api_keys), API_KEY)
        # The gateway holds a request while no server can answer.
        patience_s += gateway.hold_s
    key = os.environ.get(variable)
    return Traffic(whole.endpoint, whole.served_name, key, patience_s)


def _require_ready(status: Status) -> None:
    if status.phase is not Phase.READY:
        raise BusyError(
            f"{status.deployment} is {status.phase}, and a drill needs it ready",
            todo=f"`raylaunch status {status.deployment}` shows why; try again when it is ready",
        )


def _choose_target(
    key: GroupKey, fault: Fault, status: Status, restarts_ray: str
) -> tuple[int, str]:
    """Return the server to injure, and why that is impossible here ("" when it is possible)."""
    match fault.target:
        case "headless":
            for server in status.servers:
                if server.role == "headless":
                    return server.index, ""
            return 0, "the deployment has no headless server"
        case "last":
            return status.servers[-1].index, ""
        case "far" if not restarts_ray:
            return _choose_far(key, fault, status.servers)
        case "far":
            return status.servers[-1].index, ""
        case "ray":
            return _choose_on_head(key, status.servers), _why_not_break(fault, restarts_ray)
    return 0, ""


def _what_restarts_ray(key: GroupKey) -> str:
    return ask(key.deployment, ControllerClient.drill_limits, 0, key.group).restarts_ray


def _why_not_break(fault: Fault, restarts_ray: str) -> str:
    """Return why a fault would leave Ray dead; "" if something starts it again."""
    if not restarts_ray:
        return (
            "nothing starts Ray again here: no RAYLAUNCH_RAY_RESTARTS in the environment of its "
            "`ray start`"
        )
    if fault.name == "restart-ray" and restarts_ray == LOOP:
        return "what starts Ray again here takes SIGTERM for `ray stop`, and leaves it stopped"
    return ""


def _choose_on_head(key: GroupKey, servers: Sequence[ServerStatus]) -> int:
    """Return a server on the node of Ray's head, whose agent can reach the GCS; else the first."""
    from raylaunch.runtime.cluster.node_tasks import head_node

    nodes = ask(key.deployment, ControllerClient.node_ids, key.group)
    head = head_node()
    on_head = (one.index for one in servers if head and nodes.get(one.index) == head["NodeID"])
    return next(on_head, servers[0].index)


def _choose_far(key: GroupKey, fault: Fault, servers: Sequence[ServerStatus]) -> tuple[int, str]:
    """Choose a server whose node can be lost.

    Ray's head and this process must survive, and another node must be able to replace it.
    """
    nodes = ask(key.deployment, ControllerClient.node_ids, key.group)
    needed = _needed_nodes()
    far = [server.index for server in servers if nodes.get(server.index) not in needed]
    if not far:
        return 0, (
            "every server is on the node of Ray's head or of this command: "
            "losing it would end the cluster"
        )
    if fault.name == "kill-raylet":
        if ask(key.deployment, ControllerClient.has_spare, key.group):
            return far[0], ""
        return far[0], ("no other node has the NPUs: a lost raylet comes back only by `ray start`")
    for index in far:
        if ask(key.deployment, ControllerClient.drill_limits, index, key.group).interface:
            return index, ""
    return 0, (
        "no node allows it: RAYLAUNCH_DRILL_CUT=INTERFACE in the environment "
        "of its `ray start` does"
    )


def _needed_nodes() -> set[str]:
    """Return the ids of the nodes without which the cluster or this command dies."""
    import ray

    from raylaunch.runtime.cluster.connection import alive_nodes

    needed = {ray.get_runtime_context().get_node_id()}
    for node in alive_nodes():
        if "node:__internal_head__" in node["Resources"]:
            needed.add(node["NodeID"])
    return needed


def _inject(key: GroupKey, fault: Fault, server: int, last_event: int) -> Outcome:
    injected = ask(key.deployment, ControllerClient.inject, fault.action, server, key.group)
    detected = _await_event(
        key,
        last_event,
        lambda event: event.kind in ("failure", "orphaned"),
        DETECTION_S,
    )
    if detected is None:
        problem = f"not detected within {DETECTION_S:g} s"
        return Outcome(fault.name, injected.text, problem=problem)
    if detected.kind == "orphaned":
        adopted = _await_event(
            key, detected.number, lambda event: event.kind in ("adopted", "failure")
        )
        if adopted is not None and adopted.kind == "adopted":
            return Outcome(
                fault.name,
                injected.text,
                detected_by=detected.text,
                detection_s=max(0.0, detected.at - injected.at),
                recovery_s=adopted.at - injected.at,
                adopted=True,
            )
    ready = _await_event(
        key,
        detected.number,
        lambda event: (event.kind, event.text) == ("phase", "ready"),
    )
    assert ready is not None  # awaited without a deadline: the recipe's time-outs end it
    start_s = None
    for event in events_of(key, last_event):
        if event.text == f"launched attempt {ready.attempt}":
            start_s = ready.at - event.at
    return Outcome(
        fault.name,
        injected.text,
        detected_by=detected.text,
        # A conversion between clocks is exact to some milliseconds, so it may come out negative.
        detection_s=max(0.0, detected.at - injected.at),
        recovery_s=ready.at - injected.at,
        start_s=start_s,
    )


def _kill_controller(key: GroupKey, status: Status, last_event: int) -> Outcome:
    offset_s = _clock_offset(key)
    at = time.time() + offset_s
    # Not by pid: the controller may be on another node.
    require_controller(key.deployment).crash()
    adopted = _await_event(
        key,
        last_event,
        lambda event: event.kind == "adopted",
        DETECTION_S,
    )
    if adopted is None:
        return Outcome("kill-controller", problem=f"not restarted within {DETECTION_S:g} s")
    after = status_of(key)
    problem = ""
    if (after.phase, after.attempt) != (Phase.READY, status.attempt):
        problem = f"the servers were not left alone: {after.phase}, attempt {after.attempt}"
    return Outcome(
        "kill-controller",
        "the controller was killed",
        detected_by=f"Ray restarted it; {adopted.text}",
        recovery_s=adopted.at - at,
        adopted=not problem,
        problem=problem,
    )


def _clock_offset(key: GroupKey) -> float:
    """Return the controller's clock minus this machine's, in seconds.

    The controller is assumed to have read its clock half-way between request and answer.
    """
    asked_at = time.time()
    controller_now = status_of(key).now
    answered_at = time.time()
    return controller_now - (asked_at + answered_at) / 2


def _judge(fault: Fault, outcome: Outcome, traffic: Traffic, orphans: tuple[str, ...]) -> Outcome:
    problem = outcome.problem
    if not problem and orphans:
        problem = f"{len(orphans)} processes of an earlier attempt are left"
    if not problem and outcome.adopted and traffic.failed:
        problem = f"{traffic.failed} requests failed, and none should"
    if problem:
        log.warning("fault %s: %s", fault.name, problem)
    return replace(
        outcome,
        requests=traffic.sent,
        failed=traffic.failed,
        left=orphans,
        problem=problem,
    )


def _await_event(
    key: GroupKey, after: int, wanted: Callable[[Event], bool], patience_s: float | None = None
) -> Event | None:
    """Return the first wanted event after number `after`; None if `patience_s` passes without it.

    Raises:
        RaylaunchError: the deployment failed or was stopped.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    version = -1
    while deadline is None or time.monotonic() < deadline:
        for event in events_of(key, after):
            if wanted(event):
                return event
        version, status = ask(key.deployment, ControllerClient.wait_change, version, POLL_S)
        _require_alive(narrow(status, key.group))
    return None


def _require_alive(status: Status) -> None:
    if status.phase is Phase.FAILED:
        if status.error:
            raise from_dict(status.error)
        raise LaunchError(f"{status.deployment} failed")
    if status.phase in (Phase.STOPPING, Phase.STOPPED):
        raise BusyError(f"{status.deployment} was stopped during the drill")
