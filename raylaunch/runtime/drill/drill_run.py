"""The drill: one fault at a time into a running deployment, its recovery awaited and measured.

Every time is on the controller's clock: the agent's moment of harm is moved to it, and the rest are the controller's
own events. The controller itself is killed through Ray, which starts it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from raylaunch.errors import (
    BusyError,
    ClusterError,
    LaunchError,
    RaylaunchError,
    UnknownDeploymentError,
    from_dict,
)
from raylaunch.runtime.controller.controller_client import (
    ControllerClient,
    find_controller,
    require_controller,
)
from raylaunch.runtime.drill.traffic import Load
from raylaunch.supervise.deployment_status import Event, ServerStatus, Status
from raylaunch.supervise.drills import FAULTS, ON_REQUEST, Fault, Outcome
from raylaunch.supervise.state import Phase

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 1.0
UNNOTICED_S = 180.0
"""A fault that nobody has noticed by then is not going to be."""


def choose(names: Sequence[str]) -> list[Fault]:
    """The faults by these names; without names all that hit nothing but the deployment.

    Raises:
        RaylaunchError: no such fault.
    """
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in names if name not in known]:
        raise RaylaunchError(
            f"there is no fault named {unknown[0]!r}", todo=f"choose from {', '.join(known)}"
        )
    return [known[name] for name in names or known if names or name not in ON_REQUEST]


def run_drill(
    deployment: str, faults: Sequence[Fault], on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Inject the faults one after the other. Stops at the first from which the deployment does not recover.

    Raises:
        BusyError: the deployment is not ready, or somebody else's command is under way.
        RaylaunchError: it failed or was stopped meanwhile.
    """
    outcomes = []
    for fault in faults:
        outcome = _drill_one(deployment, fault)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
        if outcome.recovery_s is None and not outcome.skipped:
            break
    return outcomes


def _drill_one(deployment: str, fault: Fault) -> Outcome:
    status = _ask(deployment, ControllerClient.status)
    _require_ready(status)
    server, refusal = _aim(deployment, fault, status)
    if refusal:
        return Outcome(fault.name, skipped=refusal)
    with Load(status.endpoint, status.served_name, os.environ.get("VLLM_API_KEY")) as load:
        load.await_flow()
        last = max((event.number for event in _events(deployment)), default=0)
        if fault.name == "kill-controller":
            outcome = _kill_controller(deployment, status, last)
        else:
            outcome = _harm(deployment, fault, server, last)
    left = tuple(_ask(deployment, ControllerClient.leftovers))
    return _judge(fault, outcome, load, left)


def _require_ready(status: Status) -> None:
    if status.phase is not Phase.READY:
        raise BusyError(
            f"{status.deployment} is {status.phase}, and a drill needs it ready",
            todo=f"`raylaunch status {status.deployment}` shows why; try again when it is ready",
        )


def _aim(deployment: str, fault: Fault, status: Status) -> tuple[int, str]:
    """The server to hit, and why it cannot be done here ("" when it can)."""
    headless = [server for server in status.servers if server.role == "headless"]
    match fault.target:
        case "headless":
            return (
                (headless[0].index, "")
                if headless
                else (0, "the deployment has no headless server")
            )
        case "last":
            return status.servers[-1].index, ""
        case "far":
            return _aim_far(deployment, fault, status.servers)
    return 0, ""


def _aim_far(deployment: str, fault: Fault, servers: Sequence[ServerStatus]) -> tuple[int, str]:
    """A server whose node can be lost: Ray's head and this process must live on, and another node take its place."""
    nodes = _ask(deployment, ControllerClient.node_ids)
    mine = _unlosable_nodes()
    far = [server.index for server in servers if nodes.get(server.index) not in mine]
    if not far:
        return (
            0,
            "every server is on the node of Ray's head or of this command: losing it would end the cluster",
        )
    if fault.name == "kill-raylet":
        spare = _ask(deployment, ControllerClient.has_spare)
        return (
            far[0],
            ""
            if spare
            else "no other node has the NPUs: a lost raylet comes back only by `ray start`",
        )
    allowed = [index for index in far if _ask(deployment, ControllerClient.may_cut, index)]
    if not allowed:
        return (
            0,
            "no node allows it: RAYLAUNCH_DRILL_CUT=INTERFACE in the environment of its `ray start` does",
        )
    return allowed[0], ""


def _unlosable_nodes() -> set[str]:
    import ray

    from raylaunch.runtime.cluster.connection import alive_nodes

    heads = {
        node["NodeID"] for node in alive_nodes() if "node:__internal_head__" in node["Resources"]
    }
    return heads | {ray.get_runtime_context().get_node_id()}


def _harm(deployment: str, fault: Fault, server: int, last: int) -> Outcome:
    done = _ask(deployment, ControllerClient.inject, fault.action, server)
    noticed = _await_event(deployment, last, lambda event: event.kind == "failure", UNNOTICED_S)
    if noticed is None:
        return Outcome(fault.name, done.text, problem=f"not noticed within {UNNOTICED_S:g} s")
    ready = _await_event(
        deployment, noticed.number, lambda event: (event.kind, event.text) == ("phase", "ready")
    )
    assert ready is not None
    launched = [
        event.at
        for event in _events(deployment, last)
        if event.text == f"launched attempt {ready.attempt}"
    ]
    return Outcome(
        fault.name,
        done.text,
        detected_by=noticed.text,
        detection_s=max(0.0, noticed.at - done.at),
        recovery_s=ready.at - done.at,
        start_s=ready.at - launched[-1] if launched else None,
    )


def _kill_controller(deployment: str, status: Status, last: int) -> Outcome:
    asked = time.time()
    now = _ask(deployment, ControllerClient.status).now
    offset = now - (asked + time.time()) / 2
    at = time.time() + offset
    require_controller(deployment).crash()
    adopted = _await_event(deployment, last, lambda event: event.kind == "adopted", UNNOTICED_S)
    if adopted is None:
        return Outcome("kill-controller", problem=f"not started again within {UNNOTICED_S:g} s")
    after = _ask(deployment, ControllerClient.status)
    kept = (after.phase, after.attempt) == (Phase.READY, status.attempt)
    return Outcome(
        "kill-controller",
        "the controller was killed",
        detected_by=f"Ray started it again; {adopted.text}",
        recovery_s=adopted.at - at,
        problem=""
        if kept
        else f"the servers were not left alone: {after.phase}, attempt {after.attempt}",
    )


def _judge(fault: Fault, outcome: Outcome, load: Load, left: tuple[str, ...]) -> Outcome:
    from dataclasses import replace

    problem = outcome.problem
    if left:
        problem = problem or f"{len(left)} processes of an earlier attempt are left"
    if fault.name == "kill-controller" and load.failed:
        problem = problem or f"{load.failed} requests failed, and none should"
    return replace(outcome, requests=load.sent, failed=load.failed, left=left, problem=problem)


def _await_event(
    deployment: str, after: int, wanted: Callable[[Event], bool], patience_s: float | None = None
) -> Event | None:
    """The first event of that kind after number `after`; None when it does not come within `patience_s`.

    Raises:
        RaylaunchError: the deployment failed or was stopped.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    version = -1
    while deadline is None or time.monotonic() < deadline:
        found = next((event for event in _events(deployment, after) if wanted(event)), None)
        if found is not None:
            return found
        version, status = _ask(deployment, ControllerClient.wait_change, version, POLL_S)
        _require_alive(status)
    return None


def _require_alive(status: Status) -> None:
    if status.phase is Phase.FAILED:
        raise (
            from_dict(status.error) if status.error else LaunchError(f"{status.deployment} failed")
        )
    if status.phase in (Phase.STOPPING, Phase.STOPPED):
        raise BusyError(f"{status.deployment} was stopped during the drill")


def _events(deployment: str, after: int = 0) -> Iterator[Event]:
    return iter(_ask(deployment, ControllerClient.events, after))


def _ask(
    deployment: str,
    method: Callable[Concatenate[ControllerClient, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call a method of the deployment's controller.

    Raises:
        UnknownDeploymentError: the deployment was stopped meanwhile.
    """
    try:
        return method(require_controller(deployment), *args, **kwargs)
    except ClusterError:
        if find_controller(deployment) is None:
            raise UnknownDeploymentError(f"{deployment} was stopped") from None
        raise
