"""Each fault of the drill, as its agents report it: which server and which cause are named.

Without Ray and processes. That the agents report these faults so is tested with the stand-in
(test_recovery_from_faults.py) and with real vLLM (test_drill_vllm.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from fake_group import FakeGang, Stage

from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group.evidence import EvidenceCollector
from raylaunch.supervise.drills import FAULTS
from raylaunch.supervise.state import Exit, RankSeen

ADOPTED = {"kill-controller", "kill-gcs", "kill-ray", "restart-ray"}
"""Nothing fails: the servers run on, and get another controller or other agents."""
STEPS = 5


class Named(NamedTuple):
    """What happens to the group of two servers, and what must be named."""

    happens: Callable[[FakeGang], None]
    root: int
    id: str
    cause: str


def exits(server: int, **how: object) -> Callable[[FakeGang], None]:
    return lambda gang: gang.show(server, exit=Exit(gang.clock.now, **how))


def agent_is_lost(server: int, why: str) -> Callable[[FakeGang], None]:
    return lambda gang: gang.kill_agent(server, why)


def rank_1_is_silent(gang: FakeGang) -> None:
    now = gang.clock.now
    silent = RankSeen(1, at=now, canary_failing_since=now - 60)
    gang.show(0, ranks=(RankSeen(0, at=now), silent))


ENGINE_0 = exits(0, process="VLLM::EngineCore_DP0 (pid 7)")
ENGINE_1 = exits(1, process="VLLM::EngineCore_DP1 (pid 7)")
NAMED = {
    "kill-engine": Named(ENGINE_1, 1, "member-ended", "VLLM::EngineCore_DP1"),
    "kill-headless": Named(exits(1, signal=9), 1, "killed", "SIGKILL"),
    "kill-primary": Named(exits(0, signal=9), 0, "killed", "SIGKILL"),
    "stop-headless": Named(rank_1_is_silent, 1, "no-evidence", "rank 1 is idle but has failed"),
    "kill-agent": Named(agent_is_lost(1, "agent died"), 1, "agent-lost", "agent"),
    "kill-guard": Named(exits(1, process="the guard"), 1, "member-ended", "the guard"),
    "steal-port": Named(ENGINE_0, 0, "member-ended", "VLLM::EngineCore_DP0"),
    "kill-raylet": Named(agent_is_lost(1, "node died"), 1, "node-lost", "node died"),
    "cut-node": Named(agent_is_lost(1, "node unreachable"), 1, "node-lost", "node unreachable"),
}


def test_each_fault_of_the_drill_is_one_or_the_other():
    assert NAMED.keys() | ADOPTED == {fault.name for fault in FAULTS}
    assert not NAMED.keys() & ADOPTED


class Logs:
    """The logs of a group whose other server has begun to complain of the lost one."""

    def __init__(self, gang: FakeGang, root: int) -> None:
        self._gang = gang
        self._root = root

    async def read_snapshots(self, lines, without):
        return {server: self._snapshot(server) for server in (0, 1) if server not in without}

    def _snapshot(self, server: int) -> Snapshot:
        written = [self._line(-30, "INFO", "Avg generation throughput: 3.0 tokens/s")]
        if server != self._root:
            text = "RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer"
            written.append(self._line(1, "ERROR", f"{text} [10.0.0.1]:38112"))
        return Snapshot(tuple(written), 1, 0.0, "", f"server-{server}.log")

    def _line(self, after_s: float, level: str, text: str) -> str:
        at = datetime.fromtimestamp(self._gang.clock.wall() + after_s, UTC)
        return f"(EngineCore pid=7) {level} {at:%m-%d %H:%M:%S} [core.py:1] {text}"

    def wall_offsets(self):
        return {}


# A server that hangs closes no connection: nothing complains of it.
COMPLAINED_OF = [fault for fault in NAMED if fault != "stop-headless"]


@pytest.mark.parametrize(
    ("fault", "complains"),
    [*((fault, False) for fault in NAMED), *((fault, True) for fault in COMPLAINED_OF)],
)
def test_the_server_that_a_fault_hit_is_named_with_the_cause(fault, complains, tmp_path):
    named = NAMED[fault]

    async def play():
        stage = Stage()
        logs = Logs(stage.gang, root=named.root)
        if not complains:
            logs._snapshot = lambda server: Snapshot((), 1, 0.0, "", "")
        key = GroupKey("test", "serve-0")
        stage.loop._evidence = EvidenceCollector(logs, stage.clock, tmp_path, key)
        await stage.make_ready()
        named.happens(stage.gang)
        for _ in range(STEPS):
            await stage.loop.step()
            if "diagnosis" in stage.kinds:
                break
        journal = stage.loop.record.journal
        by_kind = {event.kind: event for event in journal.events}
        assert by_kind["failure"].server == named.root
        assert by_kind["diagnosis"].server == named.root
        assert journal.diagnosis.id == named.id
        assert named.cause in journal.diagnosis.cause

    async def limited():
        async with asyncio.timeout(60):
            await play()

    asyncio.run(limited())
