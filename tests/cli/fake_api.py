"""Stands in for raylaunch.api: plans for real, plays a scripted start, and remembers what it was asked."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import raylaunch
from raylaunch.checks.findings import Finding, waive
from raylaunch.deployment import Overview, Silent
from raylaunch.errors import UnknownDeploymentError
from raylaunch.plan.facts import Facts, TuningStep
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.plan.wanted_weights import DownloadProgress, Stock, WeightsReport
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.supervise.deployment_status import CleanReport, Event, ServerStatus, Status
from raylaunch.supervise.state import CanarySeen, HttpSeen, Phase, RankSeen, ServerSeen


def _real_api():
    """The module that this one stands in for; importing it must not put it in place again."""
    shown = vars(raylaunch).get("api")
    module = importlib.import_module("raylaunch.api")
    if shown is not None:
        raylaunch.api = shown
    return module


real = _real_api()
cluster_file = real.cluster_file
diagnose_log = real.diagnose_log
check_signatures = real.check_signatures
import_scripts = real.import_scripts
render_files = real.render_files

CREATED = 1_700_000_000.0

asked: list[tuple[str, dict[str, Any]]] = []
findings: list[Finding] = []
adopted = False
"""Whether a start finds the deployment running."""
script: list[Status] = []
"""The looks a start gives, in order; the last one stays."""
error: BaseException | None = None
hang = False
"""Wait for ever after the script, as a deployment that takes hours."""
left: tuple[str, ...] = ()
clean_report = CleanReport(ended=False)
tuning_steps: list[TuningStep] = []
silent: tuple[Silent, ...] = ()
weights_report = WeightsReport("a2-dual", (), ())
weights_progress: list[list[tuple[Stock, DownloadProgress]]] = []
"""What a download tells, in order."""


@dataclass(frozen=True)
class StopReport:
    deployment: str
    processes_ended: int
    left: tuple[str, ...]
    seconds: float
    local_cluster_stopped: bool
    killed_because: str = ""


def make_plan(name, *, hosts=(), primary=None, set=(), deployment=None, group=None):  # noqa: A002
    given = {"hosts": hosts, "primary": primary, "set": set, "deployment": deployment}
    asked.append(("make_plan", {**given, "group": group}))
    loaded = read(name, list(set))
    needed = nodes_needed(expand_groups(loaded))
    example = [f"192.0.2.{10 + n}%enp67s0f0np0" for n in range(needed)]
    nodes = [
        Facts(ip, interface=nic)
        for ip, _, nic in (host.partition("%") for host in hosts or example)
    ]
    plan = build_deployment_plan(loaded, nodes, deployment=deployment or "", primary=primary)
    return loaded, plan if group is None else plan.only(group), list(findings)


def preflight(name, **given):
    asked.append(("preflight", {"name": name, **given}))
    _, plan, found = make_plan(name, set=given["set"], deployment=given["deployment"])
    return plan, waive(found, given["skip_checks"])


def clean(deployment, **given):
    asked.append(("clean", {"deployment": deployment, **given}))
    return clean_report


def tune(name, **given):
    asked.append(("tune", {"name": name, **given}))
    return tuning_steps


def weights(name, **given):
    asked.append(("weights", {"name": name, **given}))
    for seen in weights_progress:
        given["on_progress"](seen)
    if error:
        raise error
    return weights_report


def deploy(name, **given):
    asked.append(("deploy", {"name": name, **given}))
    for status in script:
        if given["on_update"]:
            given["on_update"](status)
    if hang:
        threading.Event().wait(60)
    if error:
        raise error
    return Deployment(given["deployment"] or name)


def follow(name, **given):
    asked.append(("follow", {"name": name, **given}))
    given["on_wait"]("waiting for 192.0.2.11 to join the Ray cluster")
    for status in script:
        given["on_update"](status)
    raise error or UnknownDeploymentError(f"{name} was stopped by another command")


def attach(deployment, address=None):
    asked.append(("attach", {"deployment": deployment, "address": address}))
    if deployment != "a2-dual":
        raise UnknownDeploymentError(
            f"there is no deployment named {deployment!r}", todo="`raylaunch status` lists them"
        )
    return Deployment(deployment)


def stop(deployment, address=None, on_update=None):
    return attach(deployment, address).stop(on_update)


def overview(address=None):
    return Overview(tuple(script[-1:]), silent)


def diagnose(target, address=None):
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis

    if "/" in target:
        return real.diagnose(target, address=address)
    if target == "nobody":
        raise UnknownDeploymentError("there is no deployment named 'nobody'")
    return Diagnosis(
        "oom",
        "deterministic",
        1,
        "RuntimeError: NPU out of memory",
        812,
        "too little HBM",
        "lower it",
        "vLLM",
        (0,),
    )


class Deployment:
    def __init__(self, name: str) -> None:
        self.name = name
        self.adopted = adopted
        self.endpoint = script[-1].endpoint if script else ""

    def status(self) -> Status:
        return script[-1]

    def logs(self, server: int = 0, lines: int = 100) -> str:
        return "".join(f"server {server} line {n}\n" for n in range(lines))

    def follow_logs(self, server: int = 0) -> Iterator[str]:
        yield from (f"server {server} more\n", "and more\n")

    def events(self, after: int = 0) -> list[Event]:
        return [EVENTS[0], EVENTS[1]]

    def follow_events(self) -> Iterator[Event]:
        yield from EVENTS

    def controller_log(self, lines: int = 100) -> str:
        return "".join(f"controller line {n}\n" for n in range(lines))

    def stop(self, on_update=None) -> StopReport:
        if on_update:
            on_update(replace(script[-1], phase=Phase.STOPPING))
        return StopReport(self.name, 7, left, 3.21, local_cluster_stopped=self.name == "a2-dual")


EVENTS = [
    Event(1, CREATED, 1, "phase", "checking"),
    Event(2, CREATED + 1.5, 1, "exit", "signal 9", server=1),
    Event(3, CREATED + 2, 2, "restart", "attempt 2 in 1.0 s"),
]


def look(at: float, phase: Phase, *servers: ServerSeen, **more: Any) -> Status:
    """A look at the deployment, `at` seconds after it was made."""
    given = {"ready_at": CREATED + at if phase is Phase.READY else None, **more}
    return Status(
        deployment="a2-dual",
        recipe="a2-dual",
        phase=phase,
        attempt=given.pop("attempt", 1),
        endpoint="http://192.0.2.10:20004/v1",
        served_name="minimax25",
        now=CREATED + at,
        created_at=CREATED,
        phase_since=CREATED,
        servers=tuple(_server(seen) for seen in servers),
        **given,
    )


def _server(seen: ServerSeen) -> ServerStatus:
    role = "headless" if seen.index else "primary"
    ip = f"192.0.2.{10 + seen.index}"
    log = f"/var/log/raylaunch/a2-dual/attempt-1/server-{seen.index}.log"
    return ServerStatus(
        seen.index, role, (seen.index,), ip, "enp67s0f0np0", tuple(range(8)), log, seen
    )


def start_story() -> list[Status]:
    """A start as it goes well."""
    return [
        look(0.3, Phase.CHECKING),
        look(
            2.0,
            Phase.STARTING,
            ServerSeen(0, pid=11, stage="spawned"),
            ServerSeen(1, pid=12, stage="spawned"),
        ),
        look(
            12.3,
            Phase.STARTING,
            ServerSeen(0, pid=11, stage="spawned"),
            ServerSeen(1, pid=12, stage="weights", stage_detail="3/47 shards"),
        ),
        ready(),
    ]


def ready() -> Status:
    """A deployment that serves, with an observation of each kind."""
    now = CREATED + 41.2
    http = HttpSeen(status=200, latency_s=0.004, at=now - 1.2)
    ranks = (
        RankSeen(0, running=3, tokens=12345678, finished=9),
        RankSeen(1, waiting=2, still_since=now - 7),
    )
    primary = ServerSeen(
        0,
        1,
        11,
        "first token",
        agent_at=now - 0.4,
        http=http,
        ranks=ranks,
        canary=CanarySeen(True, now - 3, 0.05),
    )
    return look(
        41.2,
        Phase.READY,
        primary,
        ServerSeen(1, 1, 12, "engine up", agent_at=now - 0.5, hang_lines=2),
    )
