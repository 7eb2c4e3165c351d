"""What a controller does when nobody speaks to it: without Ray, for nothing of it is asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from raylaunch.recipe.catalog import read
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller import controller
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise.state import Phase

ray = pytest.importorskip("ray")


def test_one_that_is_never_told_to_begin_says_so_and_lets_go(monkeypatch):
    asked = []
    me = SimpleNamespace(expect_begin=SimpleNamespace(remote=lambda: asked.append("expect_begin")))
    context = SimpleNamespace(current_actor=me, was_current_actor_reconstructed=False)

    def no_actor(*_):
        raise ValueError("no such actor")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "get_actor", no_actor)
    monkeypatch.setattr(placement, "find_group", lambda _: "a reservation")
    released = []
    monkeypatch.setattr(placement, "release", released.append)
    monkeypatch.setattr(controller, "ORPHAN_S", 0.01)

    async def live():
        alone = controller.Controller(Request("test", read("local-dual")))
        await alone.expect_begin()
        status = await alone.status()
        return status, await alone.stop()

    status, report = asyncio.run(live())
    assert asked == ["expect_begin"]
    assert status.phase is Phase.FAILED
    assert "before it had handed it over" in status.error["what"]
    assert "raylaunch stop test" in status.error["todo"]
    assert released[0] == "a reservation"
    assert report.left == ()
