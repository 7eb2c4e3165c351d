"""Servers without an agent are stopped where Ray reaches them, and named where it does not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from fake_group import Stage, make_plan

from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group import orphan_stop

GANG = SimpleNamespace(key=GroupKey("d", "serve-0"), instance="a1")


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

    monkeypatch.setattr(orphan_stop, "alive_nodes", lambda: [{"NodeID": one} for one in alive])
    monkeypatch.setattr(orphan_stop, "probe_raylet", lambda _: raylet)
    monkeypatch.setattr(orphan_stop, "call_on_nodes", call_on_nodes)
    left = asyncio.run(asyncio.wait_for(orphan_stop.stop_orphans(make_plan().servers, GANG, 1), 60))
    assert found == asked
    named = [line.partition(":")[0] for line in left]
    assert named == [f"server {index}" for index in (0, 1) if f"node-{index}" not in asked]


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
