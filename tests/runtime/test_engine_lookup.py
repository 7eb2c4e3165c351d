"""The dry run of a group: who is asked for what, and what becomes of the answers. Without Ray."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from raylaunch.errors import ClusterError, RaylaunchError
from raylaunch.plan.engine_answer import EngineAnswer, EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags, Option
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.agent.engine_lookup import dry_run_engines
from raylaunch.runtime.agent.probe_actor import RecalledFlags
from raylaunch.runtime.controller.group import planning
from raylaunch.runtime.controller.port_turns import Neighbours

KNOWN = KnownFlags({"headless": Option("none")}, variables=("VLLM_HOST_IP",))
NODES = [Facts(f"192.0.2.{10 + number}", interface="eth0") for number in range(2)]
LOADED = read("a2-dual")
PLAN = build_plan(LOADED, NODES)
ACCEPTED = EngineAnswer({"max_model_len": "4096"})


@dataclass
class FakeAgent:
    index: int
    host: str
    key: str = "vllm-1"
    broken: bool = False
    asked: list[tuple[int, ...]] = field(default_factory=list)

    async def recall_flags(self, *, timeout_s):
        return RecalledFlags(self.host, self.key, None)

    async def dry_run_engine(self, *, plan, servers, timeout_s, niceness):
        self.asked.append(servers)
        if self.broken:
            raise ClusterError("the agent of server 0 did not answer")
        return EngineReport(dict.fromkeys(servers, ACCEPTED), KNOWN)


class FakeGang:
    def __init__(self, *agents):
        self.agents = agents

    async def ask_all(self, call, *, servers=None):
        answers = {}
        for agent in self.agents:
            if servers is None or agent.index in servers:
                try:
                    answers[agent.index] = await call(agent)
                except RaylaunchError as error:
                    answers[agent.index] = error
        return answers


def test_each_node_is_asked_for_its_own_server():
    one, two = FakeAgent(0, "a"), FakeAgent(1, "b")
    report = asyncio.run(dry_run_engines(FakeGang(one, two), PLAN))
    assert (one.asked, two.asked) == ([(0,)], [(1,)])
    assert report.answers == {0: ACCEPTED, 1: ACCEPTED}
    assert report.known_flags == {0: KNOWN, 1: KNOWN}


def test_one_machine_with_one_vllm_is_asked_once_for_both():
    one, two = FakeAgent(0, "a"), FakeAgent(1, "a")
    report = asyncio.run(dry_run_engines(FakeGang(one, two), PLAN))
    assert (one.asked, two.asked) == ([(0, 1)], [])
    assert report.answers.keys() == {0, 1}


def test_two_images_on_one_machine_are_asked_each():
    one, two = FakeAgent(0, "a"), FakeAgent(1, "a", key="vllm-2")
    asyncio.run(dry_run_engines(FakeGang(one, two), PLAN))
    assert (one.asked, two.asked) == ([(0,)], [(1,)])


def test_a_node_without_a_vllm_is_not_asked():
    one, two = FakeAgent(0, "a"), FakeAgent(1, "b", key="")
    report = asyncio.run(dry_run_engines(FakeGang(one, two), PLAN))
    assert two.asked == []
    assert report.answers.keys() == {0}


def test_an_agent_that_fails_is_a_failed_probe_in_the_facts_of_its_node():
    one, two = FakeAgent(0, "a", broken=True), FakeAgent(1, "b")
    report = asyncio.run(dry_run_engines(FakeGang(one, two), PLAN))
    assert isinstance(report.answers[0], ProbeFailure)
    facts = report.add_to(dict(enumerate(NODES)))
    assert [failure.reason for failure in facts[0].failures] == [
        "the agent of server 0 did not answer"
    ]
    assert facts[1].failures == ()
    assert facts[1].known_flags == KNOWN


def test_a_check_has_the_findings_of_the_dry_run_and_a_start_does_not_ask(monkeypatch):
    async def no_links(gang, plan):
        return []

    monkeypatch.setattr(planning, "_try_links", no_links)
    monkeypatch.setattr(planning, "missing_workers", lambda: None)
    one, two = FakeAgent(0, "a"), FakeAgent(1, "b")

    def check(dry_run):
        work = planning.check_plan(
            FakeGang(one, two), LOADED, NODES, PLAN, Neighbours((), ()), dry_run=dry_run
        )
        return asyncio.run(work)

    check(dry_run=False)
    assert one.asked == []
    findings = check(dry_run=True)
    assert one.asked == [(0,)]
    # The vLLM of the nodes has one flag only.
    assert "unknown-flag" in {finding.id for finding in findings}
