"""The loop of a group, one step at a time, without Ray."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fake_group import HEALTH, Stage

from raylaunch.checks.findings import Finding
from raylaunch.errors import ChecksFailedError, LaunchError, PlacementError, from_dict
from raylaunch.runtime.cluster.remote_call import ActorLostError, ActorTimeoutError
from raylaunch.runtime.controller.group import group_loop
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.supervise.state import Phase, ServerSeen


def run(work) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


def test_a_dry_run_beside_the_start_is_noted_and_changes_no_decision():
    async def play():
        stage = Stage()
        await stage.make_ready()
        assert stage.gang.calls.count("dry_run") == 1
        stage.gang.report([Finding("engine-refuses", "error", "vLLM refuses --dtype", where="x")])
        [finding] = stage.loop.record.journal.findings
        assert finding.id == "engine-refuses"
        assert stage.kinds[-1] == "engine-refuses"
        assert stage.phase is Phase.READY

    run(play())


def test_a_group_starts_and_stops_step_by_step():
    async def play():
        stage = Stage()
        loop = stage.loop
        stepping = asyncio.ensure_future(loop.step())
        await asyncio.sleep(0.01)
        assert stage.gang.calls == ["reserve"], "the reservation does not wait for `begin`"
        loop.begin({"VLLM_API_KEY": "k"})
        await stepping
        assert stage.phase is Phase.CHECKING
        await loop.step()
        assert stage.phase is Phase.STARTING
        await loop.step()
        assert stage.phase is Phase.READY
        assert stage.gang.secrets == [{"VLLM_API_KEY": "k"}]
        assert stage.gang.calls == [
            "reserve", "probe", "plan", "watch", "launch", "dry_run", "remember_flags",
        ]  # fmt: skip
        loop.request_stop()
        stage.gang.left = ["server 1: pid 7"]
        await loop.step()
        stopped = await loop.stopped()
        assert (stopped.processes, stopped.left) == (2, ("server 1: pid 7",))
        assert loop.is_stopped
        assert not stage.gang.reserved

    run(play())


def test_a_lost_node_is_awaited_from_when_it_was_last_heard_of():
    """Detection and evidence take seconds in which a fallback could serve already."""

    async def play():
        stage = Stage()
        await stage.make_ready()
        heard_at = stage.clock.now - 7.0
        since: list[float | None] = []
        reserve = stage.gang.reserve

        async def note_and_reserve(*args):
            since.append(stage.loop.record.journal.waiting_since)
            await reserve(*args)

        stage.gang.reserve = note_and_reserve
        stage.gang.spare = False
        stage.gang.dead.add(1)
        stage.gang.show(1, agent_lost="node unreachable", agent_at=heard_at)
        await stage.step_to(Phase.CHECKING)
        assert since == [heard_at]
        assert stage.loop.record.journal.waiting_since is None, "it is back"

    run(play())


def test_a_stop_interrupts_a_reservation_that_waits():
    async def play():
        stage = Stage()
        stepping = asyncio.ensure_future(stage.loop.run())
        await asyncio.sleep(0.01)
        stage.loop.request_stop()
        await stepping
        assert (await stage.loop.stopped()).left == ()
        assert stage.phase is Phase.STOPPED

    run(play())


def test_a_group_that_is_abandoned_fails_and_releases_its_npus():
    async def play():
        stage = Stage()
        stepping = asyncio.ensure_future(stage.loop.step())
        await asyncio.sleep(0.01)
        stage.loop.abandon(LaunchError("nobody began"))
        await stepping
        await stage.loop.step()
        assert stage.phase is Phase.FAILED
        assert not stage.gang.reserved
        assert stage.loop.record.journal.error["what"] == "nobody began"
        stage.loop.request_stop()
        await stage.loop.step()
        assert stage.phase is Phase.STOPPED

    run(play())


def test_an_exit_restarts_the_group_and_asks_once_for_evidence():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.gang.kill_server(1)
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING
        assert (stage.evidence.kept, stage.kinds.count("diagnosis")) == (1, 1)
        await stage.step_to(Phase.READY)
        assert stage.loop.record.journal.attempt == 2
        assert "release" not in stage.gang.calls, "agents and reservation stay"

    run(play())


def test_the_failure_is_looked_for_once(monkeypatch):
    """`find_failure` judges every observation: twice per failure is twice the work and the words."""
    asked = []
    find = group_loop.policy.find_failure

    def count(*args, **kwargs):
        found = find(*args, **kwargs)
        asked.append(found)
        return found

    async def play():
        stage = Stage()
        await stage.make_ready()
        monkeypatch.setattr(group_loop.policy, "find_failure", count)
        stage.gang.kill_server(1)
        await stage.loop.step()
        assert len([one for one in asked if one is not None]) == 1

    run(play())


# -- evidence is best effort -------------------------------------------------------------------


def test_a_bundle_that_cannot_be_written_is_an_event_and_the_restart_goes_on():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.evidence.problem = "cannot write the bundle of attempt 1: No space left on device"
        stage.gang.kill_server(1)
        await stage.loop.step()
        assert "bundle-failed" in stage.kinds
        await stage.step_to(Phase.READY)

    run(play())


# -- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [60.0, -60.0])
def test_a_step_of_the_wall_clock_restarts_nothing(seconds):
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.clock.stepped = seconds
        for _ in range(30):
            await stage.loop.step()
            stage.gang.heartbeat()
        assert stage.phase is Phase.READY
        assert stage.loop.record.journal.restarts == 0

    run(play())


def test_a_pause_of_the_controller_itself_restarts_nothing():
    """After SIGSTOP and SIGCONT all that was heard is old, although the agents never fell silent."""

    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.clock.pause_s = 120.0
        for _ in range(5):
            await stage.loop.step()
        assert stage.loop.record.journal.restarts == 0
        stage.gang.heartbeat()
        await stage.loop.step()
        assert stage.phase is Phase.READY

    run(play())


def test_agents_that_stay_silent_after_a_pause_are_noticed():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.clock.pause_s = 120.0
        for _ in range(40):
            if stage.phase is not Phase.READY:
                break
            await stage.loop.step()
        assert stage.phase is Phase.RESTARTING

    run(play())


def test_a_journal_of_an_earlier_boot_keeps_its_ages(monkeypatch):
    from raylaunch.runtime.cluster import clock as clocks

    async def play():
        stage = Stage()
        await stage.make_ready()
        age = stage.clock.now - stage.loop.record.journal.history.started_at
        data = stage.loop.record.journal.dump(stage.clock)
        monkeypatch.setattr(clocks, "_boot_id", lambda: "another boot")
        wall = stage.clock.wall()
        stage.clock.now = 5.0
        stage.clock.stepped = wall - 1.7e9 - 5.0  # the same moment after a reboot
        history = Journal.load(data, stage.clock).history
        assert stage.clock.now - history.started_at == pytest.approx(age)

    run(play())


# -- a second fault in every moment ------------------------------------------------------------

CALLS = {
    "reserve": "reserve",
    "probe": "probe",
    "plan": "plan",
    "launch": "launch",
    "teardown": "stop_servers",
    "clean-up": "clean_up",
    "release": "release",
}
ERRORS = {
    "agent lost": ActorLostError("the agent of server 1 is dead (hello)"),
    "agent silent": ActorTimeoutError("the agent of server 1 did not answer within 60 s"),
    "server refused": LaunchError("server 1 could not be launched"),
    "checks failed": ChecksFailedError("1 check(s) failed"),
    "disk full": OSError(28, "No space left on device"),
    "bug": ValueError("could not convert string to float: '1.2.3'"),
}


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("moment", CALLS)
def test_a_second_fault_in_a_call_of_the_restart_is_not_final(moment, fault):
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.gang.faults[CALLS[moment]] = [ERRORS[fault]]
        if moment == "release":
            stage.gang.kill_agent(1, "node died")  # a restart that releases
        else:
            stage.gang.kill_server(1)
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING
        await stage.step_to(Phase.READY)
        assert not any(stage.gang.faults.values()), "the fault was met"
        assert stage.loop.record.journal.restarts == 2
        assert [event for event in stage.loop.record.journal.events if event.kind == "failure"]

    run(play())


FAULTS = {
    "server killed": lambda gang: gang.kill_server(0),
    "agent died": lambda gang: gang.kill_agent(0),
    "node died": lambda gang: gang.kill_agent(0, "node died"),
    "node unreachable": lambda gang: gang.kill_agent(0, "node unreachable"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "moment", ["evidence", "back-off", "teardown", "checking", "warm-up", "ready"]
)
def test_a_second_fault_of_a_server_is_not_final(moment, fault):
    async def play():
        stage = Stage()
        await stage.make_ready()
        strike = FAULTS[fault]
        once = [strike]

        def fire() -> None:
            if once:
                once.pop()(stage.gang)

        if moment == "evidence":
            stage.evidence.on_examine = fire
        elif moment == "back-off":
            stage.clock.on_sleep = fire
        elif moment == "warm-up":
            stage.gang.becomes_ready = False
        stage.gang.kill_server(1)
        await stage.loop.step()
        if moment == "teardown":
            fire()
        await stage.step_to(
            {"checking": Phase.CHECKING, "warm-up": Phase.STARTING}.get(moment, Phase.READY)
        )
        stage.gang.becomes_ready = True
        fire()
        await stage.loop.step()
        await stage.step_to(Phase.READY)
        assert stage.loop.record.journal.attempt >= 2
        assert not stage.gang.dead

    run(play())


def test_an_agent_that_died_before_it_reported_the_new_attempt_is_lost_in_that_attempt():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.gang.becomes_ready = False
        stage.gang.kill_server(1)
        await stage.loop.step()
        await stage.step_to(Phase.STARTING)
        stage.gang.becomes_ready = True
        stage.gang.update(ServerSeen(0, attempt=1, agent_lost="agent died"))
        await stage.loop.step()
        assert stage.phase is Phase.RESTARTING
        await stage.step_to(Phase.READY)
        assert stage.loop.record.journal.attempt == 3

    run(play())


@pytest.mark.parametrize("fault", ["agent lost", "agent silent", "disk full", "bug"])
@pytest.mark.parametrize("moment", ["reserve", "probe", "plan", "launch"])
def test_a_fault_in_the_first_start_is_tried_again(moment, fault):
    async def play():
        stage = Stage()
        stage.gang.faults[CALLS[moment]] = [ERRORS[fault]]
        await stage.make_ready()
        assert stage.loop.record.journal.restarts == 1

    run(play())


def test_the_budget_ends_a_fault_that_stays_and_its_error_is_shown():
    async def play():
        stage = Stage(replace(HEALTH, max_restarts=2))
        await stage.make_ready()
        stage.gang.faults["clean_up"] = [
            LaunchError("a port was taken", why="port 1 is held", todo="stop it") for _ in range(9)
        ]
        stage.gang.kill_server(1)
        await stage.step_to(Phase.FAILED)
        error = from_dict(stage.loop.record.journal.error)
        assert isinstance(error, LaunchError)
        assert error.what == "a port was taken"
        assert "port 1 is held" in error.why
        assert "2 restarts within" in error.why
        assert error.todo == "stop it"
        assert not stage.gang.reserved

    run(play())


@pytest.mark.parametrize("moment", ["reserve", "probe", "launch"])
def test_the_budget_also_ends_a_first_start_that_keeps_failing(moment):
    async def play():
        stage = Stage(replace(HEALTH, max_restarts=2))
        stage.loop.begin({})
        stage.gang.faults[moment] = [ActorTimeoutError("no answer") for _ in range(20)]
        await stage.step_to(Phase.FAILED)
        assert stage.loop.record.journal.restarts == 2

    run(play())


def test_a_refusal_at_the_first_start_is_final():
    async def play():
        for error in (ChecksFailedError("1 check(s) failed"), PlacementError("too few NPUs")):
            stage = Stage()
            stage.loop.begin({})
            stage.gang.faults["plan"] = [error]
            await stage.step_to(Phase.FAILED)
            assert stage.loop.record.journal.restarts == 0
            assert stage.loop.record.journal.error == error.as_dict()

    run(play())


def test_npus_that_cannot_be_released_keep_no_group_from_failing():
    async def play():
        stage = Stage(replace(HEALTH, max_restarts=0))
        await stage.make_ready()
        stage.gang.faults["release"] = [RuntimeError("GCS is gone")]
        stage.gang.kill_server(1)
        await stage.step_to(Phase.FAILED)
        stage.loop.request_stop()
        await stage.loop.step()
        assert not stage.gang.reserved, "stop releases once more"

    run(play())


def test_a_controller_that_takes_over_a_stop_finishes_it():
    async def play():
        first = Stage()
        await first.make_ready()
        first.gang.faults["stop_servers"] = [asyncio.CancelledError()]
        first.loop.request_stop()
        with pytest.raises(asyncio.CancelledError):
            await first.loop.step()
        second = Stage()
        second.gang.agents = {0, 1}
        second.loop.resume(Journal.load(first.gang.journals[-1], first.clock), {}, {})
        await second.loop.step()
        assert (await second.loop.stopped()).left == ()

    run(play())


def test_a_drill_does_not_count_and_the_fault_after_it_does():
    async def play():
        stage = Stage(replace(HEALTH, max_restarts=1, backoff_first_s=0.0))
        await stage.make_ready()
        for _ in range(3):
            stage.loop.record.expect_drill()
            stage.gang.kill_server(1)
            await stage.loop.step()
            await stage.step_to(Phase.READY)
        assert stage.loop.record.journal.history.failures == ()
        stage.gang.kill_server(1)
        await stage.loop.step()
        assert len(stage.loop.record.journal.history.failures) == 1

    run(play())


def test_a_log_that_cannot_be_written_is_an_event_and_no_failure():
    async def play():
        stage = Stage()
        await stage.make_ready()
        stage.gang.show(1, log_error="No space left on device")
        stage.gang.show(1)
        await stage.loop.step()
        assert stage.kinds.count("log-failed") == 1
        assert stage.phase is Phase.READY

    run(play())


def test_the_health_of_these_tests_has_a_budget():
    assert HEALTH.max_restarts > 2
