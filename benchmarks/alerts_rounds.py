"""Rounds of the alerts benchmark: one fault each, and what fires in Prometheus because of it.

An alert stays for two minutes, so rounds run beside each other, each in a group of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from alerts_prometheus import AlertLog, Fired
from availability_service import (
    NODES,
    SERVER_NPUS,
    AwaitedError,
    Service,
    Shape,
    settings_from,
    words_of,
)

from raylaunch.errors import RaylaunchError
from raylaunch.monitoring.alerts import FRESH_S, alert_name
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.deployment_status import Event

FIRES_S = 30.0
CLEARS_S = FRESH_S + 30.0
"""Goals: after the failure was detected, and after the group was ready again."""
QUIET_S = 10.0
EVENT_S = 400.0
"""A limit, for a machine that is busy with other things."""
INJECTED: Mapping[str, str] = {
    "kill-engine": "kill-engine",
    "kill-guard": "kill-guard",
    "stop-primary": "stop-server",
    "kill-primary": "kill-server",
    "kill-agent": "kill-agent",
}
"""Faults of a group that serves, and what its agent executes. The groups take turns: three failures
of one group within an hour are an alert of their own. Another agent adopts the server of a killed
one: nothing fails, so nothing may fire."""
AT_START = (
    *("hccl-socket-EI0006", "hccl-bind-EI0019", "hccl-topo-EI0015", "dp-handshake-5min"),
    *("hbm-not-free", "hccl-notify-EI0002", "acl-stream-sync"),
)
"""Faults that the stand-in plays in its first attempt. Each is named after its diagnosis."""
CONTROLLER = "kill-controller"
FAULTS = (*INJECTED, CONTROLLER, *AT_START)
BESIDE = 4
"""Deployments beside the first one at a time."""
BESIDE_NPUS = SERVER_NPUS * NODES // BESIDE
"""Of the server of each: the spare NPUs of the nodes."""
FIRST_PORT = 28500
SHAPE = Shape(groups=2, spare=True, is_standin=True, name="alerts", first_port=FIRST_PORT)


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
    """A failure as the deployment reports it: where, when it was detected, and its own alert.

    `alert` is "" where nothing failed.
    """

    deployment: str
    group: str
    at: float
    alert: str

    def concerns(self, alert: Fired) -> bool:
        """Return whether an alert is about this place; one without a group may be."""
        return alert.deployment == self.deployment and alert.group in ("", self.group)


def judge(one: Round, failed: Failed, ready_at: float, fired: Sequence[Fired]) -> None:
    """Fill a round from what fired since its fault, when nothing fires there any more."""
    one.expected = failed.alert
    for alert in filter(failed.concerns, fired):
        if alert.alert != failed.alert:
            one.others.append(f"{alert.deployment}: {alert.alert}")
        elif one.fired_s is None:
            one.fired_s = alert.first - failed.at
            one.cleared_s = alert.last - ready_at


def strays(rounds: Iterable[Round], fired: Iterable[Fired]) -> list[str]:
    """Return the alerts that no round expected or has in its list, each by its name once."""
    known = {one.expected for one in rounds} | {name for one in rounds for name in one.others}
    named = {(one.alert, f"{one.deployment}: {one.alert}") for one in fired}
    return sorted(text for alert, text in named if not {alert, text} & known)


def run_faults(service: Service, log: AlertLog, faults: Collection[str]) -> list[Round]:
    """Let each fault happen; what befalls the controller comes last, for it is that of all."""
    lanes: list[list[Callable[[], Round]]] = [[] for _ in range(SHAPE.groups + BESIDE)]
    groups = [group.name for group in service.status().groups]
    for number, fault in enumerate(one for one in INJECTED if one in faults):
        group = number % SHAPE.groups
        lanes[group].append(_round(_strike, service, log, fault, groups[group]))
    for number, fault in enumerate(one for one in AT_START if one in faults):
        place = number % BESIDE
        port = str(FIRST_PORT + 100 * (1 + place))
        lanes[SHAPE.groups + place].append(_round(_start_with, service, log, fault, port))
    with ThreadPoolExecutor(len(lanes)) as threads:
        found = list(threads.map(lambda lane: [run() for run in lane], lanes))
    rounds = [one for lane in found for one in lane]
    if CONTROLLER in faults:
        rounds.append(_round(_kill_controller, service, log, CONTROLLER, "")())
    return sorted(rounds, key=lambda one: FAULTS.index(one.fault))


Play = Callable[[Service, AlertLog, Round, str], None]


def _round(
    play: Play, service: Service, log: AlertLog, fault: str, place: str
) -> Callable[[], Round]:
    """Return a call that runs one round and reports it, also when it failed."""

    def run() -> Round:
        one = Round(fault)
        try:
            play(service, log, one, place)
        except (AwaitedError, RaylaunchError) as error:
            one.problem = " ".join(str(error).split())[:300]
        print(json.dumps(asdict(one)), flush=True)
        return one

    return run


def _strike(service: Service, log: AlertLog, one: Round, group: str) -> None:
    """Let the agent of a group break its server, or itself."""
    last = service.last_event()
    began = time.time()
    service.controller.inject(INJECTED[one.fault], 0, group)
    over = service.await_event(last, lambda event: _is_over(event, group), EVENT_S, "ready")
    if over.kind == "adopted":
        failed, ready_at = Failed(service.name, group, over.at, alert=""), over.at
    else:
        failed, ready_at = read_failure(service.name, group, service.controller.events(last))
    _await_quiet(log, failed)
    judge(one, failed, ready_at, log.since(began))


def _is_over(event: Event, group: str) -> bool:
    is_ready = (event.kind, event.text) == ("phase", "ready")
    return event.group == group and (is_ready or event.kind == "adopted")


def _kill_controller(service: Service, log: AlertLog, one: Round, _: str) -> None:
    last = service.last_event()
    began = time.time()
    service.controller.crash()
    event = service.await_event(last, lambda event: event.kind == "adopted", EVENT_S, "adopted")
    failed = Failed(service.name, "", event.at, "RaylaunchControllerRestarted")
    _await_quiet(log, failed)
    judge(one, failed, event.at, log.since(began))


def _start_with(service: Service, log: AlertLog, one: Round, first_port: str) -> None:
    """Start a deployment whose server fails once."""
    name = f"{service.name}-{one.fault.lower()}"
    settings = (
        *settings_from(int(first_port)),
        *("parallel.replicas=1", f"hardware.npus_per_server={BESIDE_NPUS}"),
        f"hardware.npus_per_node={SHAPE.npus_per_node}",
        *(f"env.STANDIN_FAIL={one.fault}", "env.STANDIN_FAIL_ATTEMPTS=1"),
    )
    began = time.time()
    # A fault of a server that is up may be after the start, so its exit status proves nothing.
    started = service.run("start", "local-replicas", "--name", name, *words_of(settings))
    try:
        failed, ready_at = _await_recovery(name, started.stderr)
        if failed.alert != alert_name(one.fault):
            one.problem = f"it was diagnosed as {failed.alert}"
        _await_quiet(log, failed)
        judge(one, failed, ready_at, log.since(began))
    finally:
        service.run("stop", name)


def _await_recovery(name: str, printed: str) -> tuple[Failed, float]:
    """Return the failure of a deployment of one group, and when it was ready after it.

    Args:
        name: Of the deployment.
        printed: By its start, for the message.
    """
    try:
        controller = require_controller(name)
    except RaylaunchError as error:
        raise AwaitedError(f"{name} did not start: {printed[-200:]}") from error
    deadline = time.monotonic() + EVENT_S
    version = -1
    while time.monotonic() < deadline:
        events = controller.events()
        texts = [event.text for event in events if event.kind == "phase"]
        if any(event.kind == "restart" for event in events) and texts[-1:] == ["ready"]:
            [group] = controller.status().groups
            return read_failure(name, group.name, events)
        version, _ = controller.wait_change(version, 1.0)
    raise AwaitedError(f"{name} did not recover within {EVENT_S:g} s")


def read_failure(deployment: str, group: str, events: Sequence[Event]) -> tuple[Failed, float]:
    """Return the last failure of a group among events, and when it was ready again.

    Raises:
        AwaitedError: there was none.
    """
    at = {}
    cause = ""
    for event in events:
        if event.group != group:
            continue
        at["ready" if (event.kind, event.text) == ("phase", "ready") else event.kind] = event.at
        if event.kind == "restart":
            # The text of the event is "CAUSE: reason".
            cause = event.text.partition(":")[0]
    if "failure" not in at or not cause:
        raise AwaitedError("the deployment reported no failure")
    return Failed(deployment, group, at["failure"], alert_name(cause)), at["ready"]


def _await_quiet(log: AlertLog, failed: Failed) -> None:
    """Wait until an alert has had the time to fire, and nothing fires there any more."""
    deadline = time.time() + FIRES_S + CLEARS_S + QUIET_S
    while time.time() < deadline:
        is_firing = any(map(failed.concerns, log.firing))
        if time.time() > failed.at + FIRES_S + QUIET_S and not is_firing:
            return
        time.sleep(1.0)  # Prometheus is polled, too
    raise AwaitedError("still firing: " + ", ".join(one.alert for one in log.firing))
