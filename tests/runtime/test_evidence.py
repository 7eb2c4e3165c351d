"""Evidence is best effort: it never keeps a controller from answering, or a group from its restart."""

from __future__ import annotations

import asyncio
import stat
import threading
from dataclasses import replace
from pathlib import Path

from fake_group import FakeClock, make_plan

from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group.bundle_writer import write_bundle
from raylaunch.runtime.controller.group.evidence import EvidenceCollector, unknown
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry
from raylaunch.supervise.state import Exit, ServerSeen


class FakeNodes:
    async def read_snapshots(self, lines, without):
        self.without = list(without)
        return {0: Snapshot(("ERROR 06-01 [x.py:1] boom",), 1, 0.0, "pid 1", "server-0.log")}

    def wall_offsets(self):
        return {0: 2.0}


def collect(folder: Path, **changes) -> EvidenceCollector:
    return EvidenceCollector(
        FakeNodes(), FakeClock(), folder, GroupKey("test", "serve-0"), **changes
    )


def journal() -> Journal:
    return Journal(created_at=1.7e9, attempt=1, plan=make_plan())


def test_a_lost_node_is_not_asked_for_evidence(tmp_path):
    """The next start would wait for an answer that does not come."""
    nodes = FakeNodes()
    collector = EvidenceCollector(nodes, FakeClock(), tmp_path, GroupKey("test", "serve-0"))
    reasons = (None, "agent died", "node died", "node unreachable")
    seen = {index: ServerSeen(index, agent_lost=why) for index, why in enumerate(reasons)}
    asyncio.run(collector.examine(journal(), seen))
    assert nodes.without == [2, 3]


def test_a_diagnosis_that_does_not_end_blocks_nothing(tmp_path):
    release = threading.Event()

    def hang(evidence, *, at, site):
        release.wait()
        return unknown("late")

    async def play():
        collector = collect(tmp_path, diagnose=hang, diagnosis_timeout_s=0.2)
        examining = asyncio.ensure_future(collector.examine(journal(), {}))
        answered = 0
        while not examining.done():
            await asyncio.sleep(0.01)
            answered += 1
        assert answered > 3, "other calls are answered meanwhile"
        return await examining

    try:
        case = asyncio.run(asyncio.wait_for(play(), 30))
    finally:
        release.set()
    assert case.diagnosis.id == "unknown"
    assert not case.diagnosis.certain
    assert "within 0.2 s" in case.diagnosis.cause
    assert 0 in case.snapshots, "the bundle gets the logs all the same"


def test_an_exception_in_the_diagnosis_is_an_unknown_cause(tmp_path):
    def fail(evidence, *, at, site):
        raise IndexError("no such group")

    case = asyncio.run(collect(tmp_path, diagnose=fail).examine(journal(), {}))
    assert case.diagnosis.id == "unknown"
    assert "no such group" in case.diagnosis.cause


def test_a_full_disk_is_named_and_raises_nothing(tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    async def play():
        collector = collect(tmp_path, write_bundle=full)
        case = await collector.examine(journal(), {})
        await collector.keep(case, journal(), {})
        return case

    case = asyncio.run(play())
    assert case.bundle is None
    assert "No space left on device" in case.problem


def test_the_diagnosis_gets_times_that_compare_with_log_lines(tmp_path):
    asked = []

    def note(evidence, *, at, site):
        asked.append((evidence, at))
        return unknown("noted")

    clock = FakeClock()
    seen = {1: ServerSeen(1, exit=Exit(clock.now - 5, signal=9))}
    asyncio.run(collect(tmp_path, diagnose=note).examine(journal(), seen))
    evidence, at = asked[0]
    assert at == clock.wall()
    assert evidence[1].exit.at == clock.wall() - 5
    assert evidence[0].clock_offset_s == 2.0


def test_a_bundle_is_for_its_owner_alone(tmp_path):
    snapshot = Snapshot(("line",), 1, 0.0, "pid 1", "log", npu="ok", plog=("p",), plog_path="/p")
    (tmp_path / "bundles" / "test").mkdir(parents=True, mode=0o755)
    memory = replace(journal(), events=[])
    folder = write_bundle(
        tmp_path, GroupKey("test", "serve-0"), memory, {}, {0: snapshot}, unknown("x")
    )
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    for private in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} >= {
        "server-0.log", "server-0.npu.txt", "server-0.plog.txt", "diagnosis.json",
    }  # fmt: skip


def test_the_signatures_of_the_site_and_the_cann_of_the_node_reach_the_diagnosis(tmp_path):
    class Nodes(FakeNodes):
        async def read_snapshots(self, lines, without):
            line = "EJ0042: [PID: 7] the frobnicator failed"
            codes = {"EJ0042": CannEntry("", "Reset it")}
            return {0: Snapshot((line,), 1, 0.0, "pid 1", "server-0.log", cann_codes=codes)}

    def examine():
        collector = EvidenceCollector(Nodes(), FakeClock(), tmp_path, "test")
        return asyncio.run(collector.examine(journal(), {})).diagnosis

    assert "Reset it" in examine().remedy
    (tmp_path / "signatures.d").mkdir()
    (tmp_path / "signatures.d" / "a.yaml").write_text(
        "signatures: [{id: site-frob, pattern: the frobnicator failed, level: fatal, class: device, "
        "cause: It broke., remedy: Replace it., sample: 'Error: the frobnicator failed'}]"
    )
    assert examine().id == "site-frob"
