"""What a controller does before `raylaunch start` has called `begin`: without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from raylaunch.errors import BusyError, RaylaunchError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller import controller, takeover
from raylaunch.runtime.controller.controller_state import ControllerState, StateMachine
from raylaunch.runtime.controller.group import group_supervisor
from raylaunch.runtime.controller.group.ray_group import RayGroup
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise.state import Phase

ray = pytest.importorskip("ray")


class World:
    """A Ray that has one reservation and no actor; `reserve` waits for ever."""

    def __init__(self, monkeypatch, tmp_path, *, reconstructed: bool = False) -> None:
        self.called: list[str] = []
        self.released: list[str] = []
        self.found = "a reservation"
        me = SimpleNamespace(
            expect_begin=SimpleNamespace(remote=lambda: self.called.append("expect_begin")),
            take_over=SimpleNamespace(remote=lambda: self.called.append("take_over")),
        )
        context = SimpleNamespace(current_actor=me, was_current_actor_reconstructed=reconstructed)

        def no_actor(*_):
            raise ValueError("no such actor")

        async def wait_for_ever(*_):
            await asyncio.Event().wait()

        async def no_guards(*_):
            return [], frozenset()

        monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
        monkeypatch.setattr(controller, "open_actor_log", lambda _: None)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray, "get_actor", no_actor)
        monkeypatch.setattr(takeover, "find_agents", dict)
        monkeypatch.setattr(takeover, "_ask_guards", no_guards)
        monkeypatch.setattr(takeover, "NODES_BACK_S", 0.0)
        monkeypatch.setattr(placement, "find_reservation", lambda _: self.found)
        monkeypatch.setattr(placement, "release", self.released.append)
        monkeypatch.setattr(RayGroup, "reserve", wait_for_ever)

    @staticmethod
    def create() -> controller.Controller:
        # There is no Ray whose nodes could be read.
        settings = ("gateway.enabled=false", "metrics.enabled=false")
        return controller.Controller(Request("test", read("local-dual", settings)))


def test_one_that_is_never_told_to_begin_says_so_and_releases_the_npus(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    monkeypatch.setattr(controller, "ORPHAN_S", 0.01)

    async def live():
        alone = world.create()
        await alone.expect_begin()
        version, status = await alone.wait_change(-1, 0.1)
        while status.phase is not Phase.FAILED:
            version, status = await alone.wait_change(version, 0.1)
        return status, await alone.stop()

    status, report = asyncio.run(asyncio.wait_for(live(), 60))
    assert world.called == ["expect_begin"]
    assert "exited before the controller took over" in status.error["what"]
    assert "raylaunch stop test" in status.error["todo"]
    assert world.released[0] == "a reservation"
    assert report.left == ()


def test_a_stop_before_begin_releases_the_npus(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)

    async def live():
        alone = world.create()
        waiting = asyncio.ensure_future(alone.expect_begin())
        await asyncio.sleep(0.01)
        report = await alone.stop()
        await waiting
        return report, (await alone.status()).phase

    report, phase = asyncio.run(asyncio.wait_for(live(), 60))
    assert (report.left, phase) == ((), Phase.STOPPED)
    assert world.released == ["a reservation"]


def test_a_restarted_controller_without_a_journal_waits_for_begin_and_then_fails(
    monkeypatch, tmp_path
):
    world = World(monkeypatch, tmp_path, reconstructed=True)
    monkeypatch.setattr(controller, "BEGIN_PATIENCE_S", 0.01)

    async def live():
        alone = world.create()
        await alone.take_over()
        await alone.take_over()  # a repeated call changes nothing
        version, status = await alone.wait_change(-1, 0.1)
        while status.phase is not Phase.FAILED:
            version, status = await alone.wait_change(version, 0.1)
        return status

    status = asyncio.run(asyncio.wait_for(live(), 60))
    assert "no server of the deployment was found" in status.error["what"]


def test_a_reservation_of_another_owner_is_not_released(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    monkeypatch.undo()

    def refuse(*_):
        raise placement.already_reserved("test")

    monkeypatch.setattr(placement, "request", refuse)
    monkeypatch.setattr(placement, "find_reservation", lambda _: "of another owner")
    monkeypatch.setattr(placement, "release", world.released.append)

    async def live():
        from raylaunch.runtime.controller.port_turns import Turns
        from raylaunch.supervise.health_config import HealthConfig

        loaded = read("local-dual")
        request = Request("test", loaded).of_group(expand_groups(loaded)[0])
        group = RayGroup(request, HealthConfig(), Turns("test"), print)
        with pytest.raises(BusyError):
            await group.reserve((), None)
        group.release()

    asyncio.run(asyncio.wait_for(live(), 60))
    assert world.released == []


def test_illegal_transitions_of_a_controller_are_bugs():
    machine = StateMachine(ControllerState.TAKING_OVER)
    machine.enter(ControllerState.RUNNING)
    with pytest.raises(AssertionError, match="running -> taking over"):
        machine.enter(ControllerState.TAKING_OVER)


def test_a_state_can_be_waited_for_with_a_deadline():
    async def wait():
        machine = StateMachine(ControllerState.WAITING_FOR_BEGIN)
        assert not await machine.leave(ControllerState.WAITING_FOR_BEGIN, timeout_s=0.01)
        waiting = asyncio.ensure_future(machine.know())
        await asyncio.sleep(0)
        machine.enter(ControllerState.RUNNING)
        await waiting

    asyncio.run(asyncio.wait_for(wait(), 10))


def test_a_stop_that_keeps_failing_is_reported_and_not_waited_for(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)

    async def fail(self, grace_s):
        raise RuntimeError("GCS is gone")

    monkeypatch.setattr(RayGroup, "stop_servers", fail)

    async def live():
        alone = world.create()
        waiting = asyncio.ensure_future(alone.expect_begin())
        await asyncio.sleep(0.01)
        with pytest.raises(RaylaunchError, match="could not be stopped") as stopping:
            await alone.stop()
        await waiting
        return stopping.value, await alone.events(0)

    error, events = asyncio.run(asyncio.wait_for(live(), 60))
    assert "GCS is gone" in error.why
    assert [event for event in events if event.kind == "internal"], "each failure is an event"


def test_a_loop_that_no_longer_steps_is_replaced(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)
    monkeypatch.setattr(group_supervisor, "WATCHDOG_PERIOD_S", 0.01)
    monkeypatch.setattr(group_supervisor, "STUCK_S", 0.05)

    async def live():
        alone = world.create()
        runs: list[int] = []
        replaced = asyncio.Event()

        async def run() -> None:
            runs.append(len(runs))
            if len(runs) == 2:
                replaced.set()
            await asyncio.Event().wait()

        (group,) = alone._groups
        group.loop.run = run
        group.journal.phase = Phase.READY
        waiting = asyncio.ensure_future(alone.expect_begin())
        await replaced.wait()
        waiting.cancel()
        return group.journal.events

    events = asyncio.run(asyncio.wait_for(live(), 60))
    assert "made no step" in next(one.text for one in events if one.kind == "internal")


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_takeover_key_is_kept_from_begin_to_stop_and_its_loss_stops_nothing(
    monkeypatch, tmp_path, is_writable
):
    world = World(monkeypatch, tmp_path)
    folder = tmp_path / "takeover"
    if not is_writable:
        folder.touch()

    async def live():
        alone = world.create()
        waiting = asyncio.ensure_future(alone.expect_begin())
        await alone.begin({"VLLM_API_KEY": "k"})
        assert (await alone.status()).phase is Phase.PENDING
        kept = [path.read_text() for path in folder.iterdir()] if is_writable else []
        assert kept == ([alone._groups.find(None).backend.takeover_key] if is_writable else [])
        events = [event.text for event in await alone.events(0) if event.kind == "internal"]
        await alone.stop()
        await waiting
        return events

    events = asyncio.run(asyncio.wait_for(live(), 60))
    assert len(events) == (0 if is_writable else 1)
    assert folder.is_file() or list(folder.iterdir()) == []


def test_a_deployment_without_secrets_needs_no_takeover_key(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path)

    async def live():
        alone = world.create()
        waiting = asyncio.ensure_future(alone.expect_begin())
        await alone.begin({})
        await alone.stop()
        await waiting

    asyncio.run(asyncio.wait_for(live(), 60))
    assert not (tmp_path / "takeover").exists()
