"""Rounds of the alerts benchmark: one fault each, and what fires in Prometheus because of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from alerts_prometheus import AlertLog, Fired
from availability_service import NAME, AwaitedError, Service, Shape, words_of

from raylaunch.errors import RaylaunchError
from raylaunch.monitoring.alerts import FRESH_S, alert_name
from raylaunch.runtime.controller.controller_client import ControllerClient, require_controller
from raylaunch.supervise.deployment_status import Event

FIRES_S = 30.0
CLEARS_S = FRESH_S + 30.0
"""Goals: after the failure was detected, and after the group was ready again."""
QUIET_S = 10.0
EVENT_S = 180.0
INJECTED: Mapping[str, str] = {
    "kill-engine": "kill-engine",
    "kill-guard": "kill-guard",
    "stop-primary": "stop-server",
    "kill-agent": "kill-agent",
}
"""Faults of a group that serves, and what its agent executes. The groups take turns: three failures
of one group within an hour are an alert of their own."""
AT_START = (
    *("hccl-socket-EI0006", "hccl-bind-EI0019", "hccl-topo-EI0015", "dp-handshake-5min"),
    *("hbm-not-free", "hccl-notify-EI0002", "acl-stream-sync"),
)
"""Faults that the stand-in plays in its first attempt. Each is named after its diagnosis."""
CONTROLLER = "kill-controller"
FAULTS = (*INJECTED, CONTROLLER, *AT_START)
SHAPE = Shape(groups=2, spare=True, is_standin=True)
BESIDE = (
    *("network.http_port=28310", "network.rpc_port=28330", "gateway.port=28300"),
    *("parallel.replicas=1", f"hardware.npus_per_node={SHAPE.npus_per_node}"),
    "health.backoff_first_s=0",
)


@dataclass
class Round:
    """What one fault did. Seconds; None: it did not happen."""

    fault: str
    expected: str = ""
    fired_s: float | None = None
    cleared_s: float | None = None
    others: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Failed:
    """A failure as the deployment reports it: when it was detected, and which alert is its own."""

    deployment: str
    at: float
    alert: str


def judge(one: Round, failed: Failed, ready_at: float, fired: Sequence[Fired]) -> None:
    """Fill a round from what fired since its fault, when nothing fires any more."""
    one.expected = failed.alert
    for alert in fired:
        if (alert.deployment, alert.alert) != (failed.deployment, failed.alert):
            one.others.append(f"{alert.deployment}: {alert.alert}")
        elif one.fired_s is None:
            one.fired_s = alert.first - failed.at
            one.cleared_s = alert.last - ready_at


def run_fault(service: Service, log: AlertLog, fault: str) -> Round:
    """Let one fault happen, and wait until nothing fires any more."""
    one = Round(fault)
    began = time.time()
    try:
        if fault in AT_START:
            _start_with(service, log, one, began)
        else:
            _strike(service, log, one, began)
    except (AwaitedError, RaylaunchError) as error:
        one.problem = " ".join(str(error).split())[:300]
    print(json.dumps(asdict(one)), flush=True)
    return one


def _strike(service: Service, log: AlertLog, one: Round, began: float) -> None:
    last = service.last_event()
    if one.fault == CONTROLLER:
        service.controller.crash()
        event = service.await_event(last, lambda event: event.kind == "adopted", EVENT_S, "adopted")
        failed = Failed(NAME, event.at, "RaylaunchControllerRestarted")
        ready_at = event.at
    else:
        groups = service.status().groups
        group = groups[list(INJECTED).index(one.fault) % len(groups)].name
        service.controller.inject(INJECTED[one.fault], 0, group)
        service.await_event(
            last, lambda event: (event.kind, event.text) == ("phase", "ready"), EVENT_S, "ready"
        )
        failed, ready_at = read_failure(NAME, service.controller.events(last))
    _await_quiet(log, failed)
    judge(one, failed, ready_at, log.since(began))


def _start_with(service: Service, log: AlertLog, one: Round, began: float) -> None:
    name = f"alerts-{one.fault.lower()}"
    fails = (f"env.STANDIN_FAIL={one.fault}", "env.STANDIN_FAIL_ATTEMPTS=1")
    words = words_of((*BESIDE, *fails))
    # A fault of a server that is up may be after the start, so its exit status proves nothing.
    service.run("start", "local-replicas", "--name", name, *words)
    try:
        failed, ready_at = _await_recovery(require_controller(name), name)
        if failed.alert != alert_name(one.fault):
            one.problem = f"it was diagnosed as {failed.alert}"
        _await_quiet(log, failed)
        judge(one, failed, ready_at, log.since(began))
    finally:
        service.run("stop", name)


def _await_recovery(controller: ControllerClient, name: str) -> tuple[Failed, float]:
    deadline = time.monotonic() + EVENT_S
    version = -1
    while time.monotonic() < deadline:
        events = controller.events()
        texts = [event.text for event in events if event.kind == "phase"]
        if any(event.kind == "restart" for event in events) and texts[-1:] == ["ready"]:
            return read_failure(name, events)
        version, _ = controller.wait_change(version, 1.0)
    raise AwaitedError(f"{name} did not recover within {EVENT_S:g} s")


def read_failure(deployment: str, events: Sequence[Event]) -> tuple[Failed, float]:
    """Return the last failure among events, and when its group was ready again.

    Raises:
        AwaitedError: there was none.
    """
    at = {}
    cause = ""
    for event in events:
        at["ready" if (event.kind, event.text) == ("phase", "ready") else event.kind] = event.at
        if event.kind == "restart":
            # The text of the event is "CAUSE: reason".
            cause = event.text.partition(":")[0]
    if "failure" not in at or not cause:
        raise AwaitedError("the deployment reported no failure")
    return Failed(deployment, at["failure"], alert_name(cause)), at["ready"]


def _await_quiet(log: AlertLog, failed: Failed) -> None:
    """Wait until an alert has had the time to fire, and nothing fires any more."""
    deadline = time.time() + FIRES_S + CLEARS_S + QUIET_S
    while time.time() < deadline:
        if time.time() > failed.at + FIRES_S + QUIET_S and not log.firing:
            return
        time.sleep(1.0)  # Prometheus is polled, too
    raise AwaitedError("still firing: " + ", ".join(one.alert for one in log.firing))
