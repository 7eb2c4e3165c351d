"""Controllers of several groups in memory: `GroupLoop`s on the groups of `fake_group`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_group import FakeEvidence, FakeGang

from raylaunch.recipe.catalog import read
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.controller import controller, takeover
from raylaunch.runtime.controller.changes import operations
from raylaunch.runtime.controller.controller import Controller
from raylaunch.runtime.controller.deployment_record import OWNER, DeploymentJournal
from raylaunch.runtime.controller.group import group_supervisor
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise.state import Phase

ray = pytest.importorskip("ray")

TWO = (
    "parallel.replicas=2",
    "parallel.data=1",
    "health.agent_silent_s=86400",
    "health.backoff_first_s=0",
    "health.device_pause_s=0",
    # The loss of an agent is the loss of its server: no guard is asked.
    "health.orphan_grace_s=0",
    "health.canary_idle_s=86400",
    "metrics.enabled=false",  # there is no Ray whose nodes could be read
    "gateway.enabled=false",  # a real one would be started for servers that do not exist
)
DEADLINE_S = 60


class RealClock:
    @property
    def now(self) -> float:
        return time.monotonic()


class FakeBackend(FakeGang):
    """The group of `fake_group` in the place of `RayGroup`, on the clock of the process."""

    def __init__(self, request, health, turns, on_failure) -> None:
        super().__init__(RealClock())
        self.name = request.spec.name
        self.plan_made = replace(self.plan_made, group=self.name)
        self.chosen = None
        self.takeover_key = ""
        self.log_roots: dict[int, str] = {}
        self.kept: dict[str, tuple[int, bytes]] = {}
        """What its agents keep, by owner."""

    def keep_journal(self, number, journal) -> None:
        self.keep_copy(self.name, number, journal)

    def keep_copy(self, owner, number, journal) -> None:
        if self.agents and number > self.kept.get(owner, (-1, b""))[0]:
            self.kept[owner] = (number, journal)

    def release(self) -> None:
        super().release()
        self.kept = {}

    def apply(self, request, health) -> None:
        self.calls.append("apply")

    def lacks_any(self, secrets) -> bool:
        return False

    async def find(self):
        self.agents = {0, 1}

    async def read_secrets(self):
        return {"VLLM_API_KEY": "k"}


def creator(monkeypatch, tmp_path):
    """Return what makes controllers of two groups; `reconstructed` ones take over."""
    context = SimpleNamespace(
        current_actor=SimpleNamespace(
            expect_begin=SimpleNamespace(remote=lambda: None),
            take_over=SimpleNamespace(remote=lambda: None),
        )
    )
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.setattr(controller, "open_actor_log", lambda _: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(group_supervisor, "RayGroup", FakeBackend)
    monkeypatch.setattr(group_supervisor, "EvidenceCollector", lambda *_: FakeEvidence())
    monkeypatch.setattr(group_supervisor, "alive_nodes", list)
    monkeypatch.setattr(operations, "find_problem", no_problem)

    def create(*settings, reconstructed=False) -> Controller:
        context.was_current_actor_reconstructed = reconstructed
        return Controller(Request("test", read("local-dual", (*TWO, *settings))))

    return create


async def no_problem(*_) -> str:
    return ""


def run(live) -> None:
    asyncio.run(asyncio.wait_for(live(), DEADLINE_S))


async def await_status(one: Controller, condition):
    version, status = await one.wait_change(-1, 0.1)
    while not condition(status):
        version, status = await one.wait_change(version, 1.0)
    return status


async def begin(create, *settings) -> Controller:
    one = create(*settings)
    await one.begin({})
    await await_status(one, lambda status: status.phase is Phase.READY)
    return one


async def finish(one: Controller):
    """Wait for the operation under way and return the status."""
    return await await_status(one, lambda status: not status.operation)


def attempts(status) -> dict[str, int]:
    return {group.name: group.attempt for group in status.groups}


def search_in(old):
    """Return a `takeover.search` that finds what the agents of a controller keep."""
    clock = SystemClock()
    groups: dict[str, Journal] = {}
    deployment = None
    for group in old._groups:
        for owner, (_, data) in group.backend.kept.items():
            if owner == OWNER:
                deployment = takeover._newer(deployment, DeploymentJournal.load(data))
            else:
                groups[owner] = takeover._newer(groups.get(owner), Journal.load(data, clock))

    async def search(*_, **__):
        return takeover.Found(deployment, groups)

    return search
