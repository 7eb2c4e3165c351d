"""A deployment that failed once and recovered, made of values; and a handle to it."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

from raylaunch.checks.findings import Finding
from raylaunch.errors import RaylaunchError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan, Value
from raylaunch.plan.planner import plan_group
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.supervise.deployment_status import Event, GroupStatus, ServerStatus, Status
from raylaunch.supervise.deployment_summary import narrow, summarise
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import HttpSeen, Phase, RankSeen, ServerSeen

BEGAN = 1_700_000_000.0
GROUP = "serve-0"
SECRET = "correct-horse-battery"
KEY = "PAGE_TEST_SECRET"
HOSTILE = "\x1b[31mERROR\x1b[0m </script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
DIAGNOSED = "RuntimeError: NPU out of memory"


def story(group: str = GROUP, first: int = 1) -> list[Event]:
    """A start, a kill of server 1 that is noticed, diagnosed and recovered from."""
    rows = [
        (1, 0, "phase", "checking", None),
        (3, 0, "stage", "probed", 0),
        (4, 0, "phase", "starting", None),
        (4.5, 1, "command", "launched attempt 1", None),
        (4.6, 1, "stage", "launching", 0),
        (4.6, 1, "stage", "launching", 1),
        (5, 1, "stage", "spawned", 0),
        (5, 1, "stage", "spawned", 1),
        (10, 1, "stage", "weights", 0),
        (11, 1, "stage", "weights 1/3 shards", 1),
        (20, 1, "stage", "warm-up profiled", 0),
        (40, 1, "stage", "weights 3/3 shards", 1),
        (45, 1, "stage", "engine up engine ready in 4.0 s", 1),
        (30, 1, "stage", "API up", 0),
        (46, 1, "phase", "ready", None),
        (100, 1, "drill", "SIGKILL to pid 7", 1),
        (100.05, 1, "exit", "exited: signal 9", 1),
        (100.08, 1, "failure", "server 1 exited: signal 9", 1),
        (101, 1, "diagnosis", "killed: SIGKILL from outside", 1),
        (101.5, 1, "restart", "killed: attempt 2 in 1.0 s", 1),
        (101.5, 1, "phase", "restarting", None),
        (104, 1, "phase", "checking", None),
        (105, 1, "phase", "starting", None),
        (105.5, 2, "command", "launched attempt 2", None),
        (106, 2, "stage", "spawned", 0),
        (106, 2, "stage", "spawned", 1),
        (130, 2, "stage", "engine up", 1),
        (131, 2, "stage", "API up", 0),
        (132, 2, "phase", "ready", None),
    ]
    return [
        Event(first + number, BEGAN + at, attempt, kind, text, server, group)
        for number, (at, attempt, kind, text, server) in enumerate(rows)
    ]


def make_status(servers: int = 2, phase: Phase = Phase.READY, at: float = 200.0) -> Status:
    now = BEGAN + at
    seen = []
    for index in range(servers):
        ranks = ()
        if index == 0:
            ranks = tuple(
                RankSeen(number, running=3, tokens=1000.0, finished=7, kv_usage=0.25, at=now - 1)
                for number in range(servers)
            )
        http = HttpSeen(200, 0.004, now - 1) if index == 0 else HttpSeen()
        seen.append(
            ServerSeen(index, 2, 100 + index, "API up", agent_at=now, http=http, ranks=ranks)
        )
    group = GroupStatus(
        GROUP,
        "serve",
        phase,
        attempt=2,
        endpoint="http://192.0.2.10:8000/v1",
        created_at=BEGAN,
        phase_since=BEGAN + 132,
        ready_at=BEGAN + 132,
        restarts=1,
        servers=tuple(_place(one) for one in seen),
        findings=(Finding("open-api", "info", "the API has no key", "nothing", "network.host"),),
    )
    return summarise(
        [group],
        [],
        deployment="a2-dual",
        recipe="a2-dual",
        served_name="minimax25",
        now=now,
        stopping=False,
    )


def _place(seen: ServerSeen) -> ServerStatus:
    role = "headless" if seen.index else "primary"
    ip = f"192.0.2.{10 + seen.index}"
    return ServerStatus(
        seen.index, role, (seen.index,), ip, "eth0", tuple(range(8)), "/log/server.log", seen, GROUP
    )


def with_server(status: Status, index: int, **changes: object) -> Status:
    """The status with another observation of one server."""
    group = status.groups[0]
    servers = list(group.servers)
    servers[index] = replace(servers[index], seen=replace(servers[index].seen, **changes))
    changed = replace(group, servers=tuple(servers))
    return replace(status, groups=(changed,), servers=tuple(servers))


def make_plan() -> LaunchPlan:
    loaded = read("a2-dual", [])
    nodes = [Facts(f"192.0.2.{10 + number}", interface="eth0") for number in range(2)]
    plan = plan_group(expand_groups(loaded)[0], nodes)
    first = replace(
        plan.servers[0], env={**plan.servers[0].env, "HF_TOKEN": Value("hf-abcdefgh", "recipe")}
    )
    return replace(plan, servers=(first, *plan.servers[1:]))


class FakeDeployment:
    """In place of `Deployment`, with the same questions."""

    def __init__(self, status: Status, events: list[Event]) -> None:
        self.now = status
        self.kept = events
        self.version = 0
        self.error: RaylaunchError | None = None
        self.name = status.deployment
        self.title = status.deployment
        self.asked: list[str] = []
        self.log = [HOSTILE, f"the key is {SECRET}", DIAGNOSED]
        self._changed = threading.Condition()

    def change(self, status: Status | None = None, error: RaylaunchError | None = None) -> None:
        """Answer with another status from now on, or with an error."""
        with self._changed:
            self.now = status or self.now
            self.error = error
            self.version += 1
            self._changed.notify_all()

    def wait_change(self, version: int, timeout: float = 2.0) -> tuple[int, Status]:
        with self._changed:
            self._changed.wait_for(
                lambda: self.version > version or self.error is not None, timeout
            )
            return self.version, self.status()

    def status(self) -> Status:
        self._raise_error()
        return self.now

    def events(self, after: int = 0) -> list[Event]:
        self._raise_error()
        return [event for event in self.kept if event.number > after]

    def recipe(self):
        recipe = SimpleNamespace(secrets=(KEY,), gateway=SimpleNamespace(api_keys=("OTHER_KEY",)))
        return SimpleNamespace(recipe=recipe)

    def of_group(self, name: str) -> FakeDeployment:
        narrow(self.now, name)  # refuses an unknown group
        return self

    def describe(self):
        return self.recipe(), make_plan(), {0: {"vllm": "0.23.0"}}

    def diagnosis(self) -> Diagnosis | None:
        self.asked.append("diagnosis")
        return Diagnosis(
            "hbm-oom", "deterministic", 1, DIAGNOSED, 3, "too little HBM", "lower it", "vLLM"
        )

    def logs(self, server: int = 0, lines: int = 100) -> str:
        return "\n".join(self.log[-lines:])

    def poll_logs(self, server: int = 0, lines: int = 0):
        self._raise_error()
        yield self.log[-lines:]
        while True:
            with self._changed:
                self._changed.wait(0.05)
            yield []

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
