"""The watch over a server's lasting processes, on real processes and without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from raylaunch.errors import NodeError
from raylaunch.node.process.vllm_children import find_vllm_children
from raylaunch.runtime.agent.child_watch import ChildWatch
from raylaunch.runtime.cluster.task_owner import TaskOwner

PATIENCE_S = 60


@pytest.fixture
def children():
    """Start children of this process under the titles that vLLM gives its own."""
    started = []

    def start(title: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([title, "600"], executable="/bin/sleep")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def forking():
    """A worker with a helper that it has forked: a subshell of bash keeps the title."""
    worker = subprocess.Popen(
        ["VLLM::Worker_TP0", "-c", "(echo forked; read -r _); exit 1"],
        executable="/bin/bash",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout.readline() == b"forked\n"
    yield worker
    worker.communicate(b"\n")


@contextlib.asynccontextmanager
async def watching(expected: int, **options):
    """A watch that knows `expected` children; yields it, its exits as a queue, and the failures."""
    exits: asyncio.Queue = asyncio.Queue()
    failures = []
    watch = ChildWatch(os.getpid(), exits.put_nowait, **options)
    owner = TaskOwner(failures.append)
    owner.keep_running("child watch", watch.run)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(watch._children) < expected:
                watch.scan_soon()
                await asyncio.sleep(0.01)
        yield watch, exits, failures
    finally:
        watch.close()
        await owner.cancel_and_wait()


async def take(exits: asyncio.Queue):
    async with asyncio.timeout(PATIENCE_S):
        return await exits.get()


def open_pidfds() -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    targets = []
    for link in links:
        with contextlib.suppress(OSError):
            targets.append(str(link.readlink()))
    return sum("pidfd" in target for target in targets)


async def test_the_exit_of_a_child_is_reported_with_its_name_and_signal(children):
    engine = children("VLLM::EngineCore_DP0")
    async with watching(1, clock=lambda: 100.0) as (_, exits, _failures):
        engine.send_signal(signal.SIGKILL)
        found = await take(exits)
    assert (found.at, found.code, found.signal) == (100.0, None, signal.SIGKILL)
    assert found.process == f"VLLM::EngineCore_DP0 (pid {engine.pid})"


async def test_of_children_that_exit_together_the_engine_core_is_the_root(children):
    worker, engine = children("VLLM::Worker_TP0"), children("VLLM::EngineCore_DP0")
    async with watching(2) as (_, exits, _failures):
        worker.send_signal(signal.SIGKILL)
        engine.send_signal(signal.SIGKILL)
        found = await take(exits)
        assert exits.empty(), "the group is broken once"
    assert "EngineCore" in found.process


async def test_a_fork_that_still_has_the_title_of_its_parent_is_not_watched(forking):
    async with watching(1) as (watch, _exits, _failures):
        assert set(watch._children) == {forking.pid}


async def test_a_closed_watch_reports_nothing_and_holds_nothing(children):
    before = open_pidfds()
    engine = children("VLLM::EngineCore_DP0")
    async with watching(1) as (watch, exits, _failures):
        assert open_pidfds() == before + 1
        assert watch.find_engine().pid == engine.pid
        watch.close()
        engine.kill()
        engine.wait()
        assert exits.empty()
        assert open_pidfds() == before
        with pytest.raises(NodeError, match="no engine core"):
            watch.find_engine()


async def test_a_scan_that_fails_is_reported_and_the_next_one_finds_the_child(children):
    engine = children("VLLM::EngineCore_DP0")
    scans = []

    def find(pid, known):
        scans.append(pid)
        if len(scans) == 1:
            raise PermissionError("/proc is mounted with hidepid=1")
        return find_vllm_children(pid, known)

    async with watching(1, find=find) as (watch, _, failures):
        assert watch.find_engine().pid == engine.pid
    assert [type(failure.error) for failure in failures] == [PermissionError]
