"""A group of servers in memory, and a clock that a test moves: what `GroupLoop` is driven with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan, Place, Ports, ServerPlan
from raylaunch.runtime.cluster.remote_call import ActorLostError
from raylaunch.runtime.controller.group.evidence import Case
from raylaunch.runtime.controller.group.group_backend import Adopted, GroupSettings
from raylaunch.runtime.controller.group.group_loop import GroupLoop
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.policy import HealthConfig
from raylaunch.supervise.state import CanarySeen, Exit, HttpSeen, Phase, RankSeen, ServerSeen

HEALTH = HealthConfig(max_restarts=5, backoff_first_s=1.0, device_pause_s=0.0, orphan_grace_s=0.0)
"""Without a grace for orphans: the loss of an agent is the loss of its server."""


def make_plan() -> LaunchPlan:
    def server(index: int, role: str) -> ServerPlan:
        place = Place(f"10.0.0.{index + 1}", "eth0", node_id=f"node-{index}")
        return ServerPlan(index, (index,), role, place, (0,), {}, (), Ports(1, 2), "log")

    servers = (server(0, "primary"), server(1, "headless"))
    return LaunchPlan("d", "r", "cpu", "m", "/m", "http://x", servers)


class FakeClock:
    """Time passes only where the loop waits; `stepped` is a step of the wall clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stepped = 0.0
        self.pause_s = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now + self.stepped

    async def sleep(self, seconds: float) -> None:
        self.on_sleep()
        self.now += max(0.0, seconds)
        await asyncio.sleep(0)

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        if not event.is_set():
            self.now += max(0.0, timeout_s) + self.pause_s
            self.pause_s = 0.0
        return event.is_set()


class FakeGang:
    """Two servers. Errors in `faults` are raised by the next call of that name."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.plan_made = make_plan()
        self.agents: set[int] = set()
        self.dead: set[int] = set()
        self.faults: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.journals: list[bytes] = []
        self.reserved = False
        self.spare = True
        self.left: list[str] = []
        self.becomes_ready = True
        self.update: Callable[[ServerSeen], None] | None = None
        self.seen: dict[int, ServerSeen] = {}
        self.secrets: list[dict[str, str]] = []
        self.adoptable: set[int] = set()
        self.refusal = ""

    @property
    def servers(self) -> tuple[int, ...]:
        return tuple(sorted(self.agents))

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(0)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def _need_agents(self, method: str) -> None:
        if self.dead:
            raise ActorLostError(f"the agent of server {min(self.dead)} is dead ({method})")

    async def reserve(self, excluded, timeout_s) -> None:
        await self._call("reserve")
        self._need_agents("hello")
        self.reserved = True
        self.agents = {0, 1}

    async def probe(self):
        await self._call("probe")
        self._need_agents("probe")
        return {index: Facts(f"10.0.0.{index + 1}") for index in self.agents}

    async def plan(self, facts):
        await self._call("plan")
        return self.plan_made, []

    async def launch(self, plan, attempt, facts, secrets) -> None:
        self.seen = {index: ServerSeen(index, attempt=attempt) for index in self.agents}
        await self._call("launch")
        self.secrets.append(secrets)
        for index in self.dead:
            self.show(index, agent_lost="agent died")
        for index in self.agents - self.dead:
            self.show(index, pid=100 * attempt + index, stage="spawned")
        if self.becomes_ready:
            self.show_ready()

    def watch(self, plan, update, *, servers=None) -> None:
        self.calls.append("watch")
        self.update = update

    async def adopt(self, plan, attempt, servers, addresses) -> Adopted:
        await self._call("adopt")
        adopted = tuple(index for index in servers if index in self.adoptable)
        refused = {index: self.refusal for index in servers if self.refusal}
        for index in adopted:
            self.dead.discard(index)
            self.seen[index] = replace(self.seen[index], agent_lost=None)
        return Adopted(plan, adopted, refused)

    def show(self, index: int, **changes) -> None:
        """Send an observation, as the watch of an agent does."""
        if self.update is None:
            return
        now = self.clock.now
        self.seen[index] = replace(self.seen[index], **{"agent_at": now, **changes})
        self.update(self.seen[index])

    def show_ready(self) -> None:
        now = self.clock.now
        self.show(
            0,
            http=HttpSeen(200, 0.01, now),
            serves_model=True,
            ranks=(RankSeen(0, at=now), RankSeen(1, at=now)),
            canary=CanarySeen(ok=True, at=now),
        )

    def kill_server(self, index: int) -> None:
        self.show(index, exit=Exit(self.clock.now, signal=9))

    def kill_agent(self, index: int, why: str = "agent died") -> None:
        self.dead.add(index)
        self.show(index, agent_lost=why)

    def heartbeat(self) -> None:
        for index in self.agents - self.dead:
            if index in self.seen:
                self.show(index)

    async def stop_servers(self, grace_s: float) -> list[str]:
        self.update = None
        await self._call("stop_servers")
        return list(self.left)

    async def clean_up(self) -> None:
        await self._call("clean_up")
        self._need_agents("kill_orphans")

    async def has_spare(self, plan, excluded, servers) -> bool:
        return self.spare

    async def read_secrets(self):
        self.calls.append("read_secrets")
        return {"VLLM_API_KEY": "of the agents"}

    def give_up(self, server: int) -> None:
        self.agents.discard(server)
        self.dead.discard(server)

    def release(self) -> None:
        self.calls.append("release")
        if self.faults.get("release"):
            raise self.faults["release"].pop(0)
        self.agents, self.dead, self.reserved = set(), set(), False

    def keep_journal(self, number: int, journal: bytes) -> None:
        self.journals.append(journal)

    def dry_run(self, plan, facts, report) -> None:
        self.calls.append("dry_run")
        self.report = report

    def remember_flags(self) -> None:
        self.calls.append("remember_flags")


class FakeEvidence:
    """Diagnoses every failure as a killed process; `on_examine` is the moment of evidence."""

    def __init__(self) -> None:
        self.on_examine: Callable[[], None] = lambda: None
        self.problem = ""
        self.kept = 0

    async def examine(self, journal, seen) -> Case:
        self.on_examine()
        await asyncio.sleep(0)
        verdict = Diagnosis("killed", "transient", None, "", None, "killed", "look", "raylaunch")
        return Case({}, verdict)

    async def keep(self, case, journal, seen) -> None:
        self.kept += 1
        case.problem = self.problem
        case.bundle = None if self.problem else Path("bundle")


class Stage:
    """A loop with its fakes."""

    def __init__(self, health: HealthConfig = HEALTH) -> None:
        self.clock = FakeClock()
        self.gang = FakeGang(self.clock)
        self.evidence = FakeEvidence()
        self.changes = 0
        settings = GroupSettings("d", health, stop_grace_s=5.0, waived={})
        self.loop = GroupLoop(
            settings, self.gang, self.evidence, self.clock, lambda: 0.5, self._changed
        )

    def _changed(self) -> None:
        self.changes += 1

    @property
    def phase(self) -> Phase:
        return self.loop.record.journal.phase

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.loop.record.journal.events]

    async def step_to(self, *phases: Phase, steps: int = 200) -> Phase:
        """Step until one of the phases is reached; agents answer all the while."""
        for _ in range(steps):
            if self.phase in phases:
                return self.phase
            await self.loop.step()
            self.gang.heartbeat()
        raise AssertionError(f"still {self.phase} after {steps} steps: {self.kinds}")

    async def make_ready(self) -> None:
        self.loop.begin({"VLLM_API_KEY": "k"})
        await self.step_to(Phase.READY)
