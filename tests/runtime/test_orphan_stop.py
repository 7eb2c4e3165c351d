"""Servers without an agent are stopped where Ray reaches them, and named where it does not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from types import SimpleNamespace

import pytest
from fake_group import Stage, make_plan

from raylaunch.node.process.process_markers import DEPLOYMENT, GROUP, INSTANCE
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group import orphan_stop

DEADLINE_S = 60
GANG = SimpleNamespace(key=GroupKey("d", "serve-0"), instance="a1")


@pytest.fixture
def marked():
    """Start processes with the marker of a deployment of this test, and of an instance."""
    started = []
    own = uuid.uuid4().hex

    def name(deployment: str) -> str:
        return f"test-{deployment}-{own}"

    def start(deployment: str, instance: str):
        marker = {DEPLOYMENT: name(deployment), INSTANCE: instance}
        env = {**os.environ, **marker, GROUP: instance.partition(".")[2]}
        started.append(subprocess.Popen(["sleep", "3600"], env=env))
        return started[-1]

    start.name = name
    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize(
    ("alive", "raylet", "asked"),
    [
        (("node-0", "node-1"), "alive", ["node-0", "node-1"]),
        (("node-0",), "alive", ["node-0"]),
        (("node-0", "node-1"), "silent", []),
        (("node-0", "node-1"), "refused", []),
    ],
)
def test_only_nodes_that_answer_are_asked_to_stop_orphans(monkeypatch, alive, raylet, asked):
    """A task on a host whose network is cut would be waited for before each restart."""
    found = []

    def call_on_nodes(_work, arguments, _timeout_s):
        found.extend(sorted(arguments))
        return {node: [] for node in arguments}, ()

    monkeypatch.setattr(orphan_stop, "alive_nodes", lambda: nodes_of(*alive))
    monkeypatch.setattr(orphan_stop, "probe_raylet", lambda _: raylet)
    monkeypatch.setattr(orphan_stop, "call_on_nodes", call_on_nodes)
    left = asyncio.run(asyncio.wait_for(orphan_stop.stop_orphans(make_plan().servers, GANG, 1), 60))
    assert found == asked
    named = [line.partition(":")[0] for line in left]
    assert named == [f"server {index}" for index in (0, 1) if f"node-{index}" not in asked]


def nodes_of(*ids: str) -> list[dict[str, str]]:
    return [
        {"NodeID": one, "NodeManagerAddress": f"10.0.0.{number}"}
        for number, one in enumerate(ids, start=1)
    ]


def stop(*instances: str, deployment="d"):
    return asyncio.run(
        asyncio.wait_for(orphan_stop.stop_instances(deployment, instances, 20), DEADLINE_S)
    )


def test_what_survived_of_removed_groups_is_stopped_on_every_node_that_answers(monkeypatch):
    asked = []

    def call_on_nodes(_work, arguments, _timeout_s):
        asked.append(arguments)
        process = SimpleNamespace(pid=7, command="vllm serve")
        return {"b": (["serve-0"], [process]), "a": ([], [])}, ("c",)

    monkeypatch.setattr(orphan_stop, "alive_nodes", lambda: nodes_of("a", "b", "c", "d"))
    monkeypatch.setattr(
        orphan_stop, "probe_raylet", lambda one: "silent" if one["NodeID"] == "d" else "alive"
    )
    monkeypatch.setattr(orphan_stop, "call_on_nodes", call_on_nodes)
    assert stop() == orphan_stop.StoppedInstances({})
    stopped = stop("i.serve-0")
    assert asked == [dict.fromkeys("abc", ("d", ("i.serve-0",), 20))]
    assert stopped.found == {"10.0.0.2": "serve-0"}
    assert stopped.left == ("10.0.0.3 did not answer", "10.0.0.2: pid 7 vllm serve")


def test_only_the_processes_of_the_named_instances_are_stopped(marked):
    gone, removed = marked("d1", "i.serve-0"), marked("d1", "i.serve-0.g3")
    live, other = marked("d1", "i.serve-0.g2"), marked("d2", "i.serve-0")
    named = ("i.serve-0", "i.serve-0.g3")
    assert orphan_stop._stop_instances(marked.name("d1"), named, 20) == (
        ["serve-0", "serve-0.g3"],
        [],
    )
    assert [process.wait(DEADLINE_S) for process in (gone, removed)] == [-15, -15]
    assert (live.poll(), other.poll()) == (None, None)
    assert orphan_stop._stop_instances(marked.name("d1"), named, 20) == ([], [])


def test_a_server_that_cannot_be_reached_is_named_once():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.gang.kill_agent(1, "node unreachable")
        stage.gang.left = ["server 1: its guard stops it after its grace period"]
        stage.loop.request_stop()
        await stage.loop.step()
        return await stage.loop.stopped()

    stopped = asyncio.run(asyncio.wait_for(play(), 60))
    assert stopped.left == ("server 1: its guard stops it after its grace period",)
