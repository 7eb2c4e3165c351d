"""A controller with several groups, in memory: each lives and fails on its own."""

from __future__ import annotations

import pytest
from fake_controllers import (
    FakeBackend,
    attempts,
    await_status,
    begin,
    creator,
    finish,
    run,
    search_in,
)

from raylaunch.errors import (
    BusyError,
    LaunchError,
    PlacementError,
    RecipeError,
    UnknownDeploymentError,
)
from raylaunch.recipe.load import change_recipe
from raylaunch.runtime.controller import takeover
from raylaunch.supervise.state import Phase


@pytest.fixture
def create(monkeypatch, tmp_path):
    return creator(monkeypatch, tmp_path)


def test_a_group_that_fails_restarts_alone(create):
    async def live():
        one = await begin(create)
        first, second = one._groups
        second.backend.kill_server(0)
        degraded = await one.status()
        assert second.journal.phase is Phase.READY, "the loop has not stepped yet"
        status = await await_status(one, lambda now: attempts(now)["serve-1"] == 2)
        status = await await_status(one, lambda now: now.phase is Phase.READY)
        assert attempts(status) == {"serve-0": 1, "serve-1": 2}
        assert "stop_servers" not in first.backend.calls
        assert degraded.restarts == 0
        assert status.restarts == 1
        assert {event.group for event in await one.events(0) if event.kind == "restart"} == {
            "serve-1"
        }
        numbers = [event.number for event in await one.events(0)]
        assert numbers == sorted(set(numbers))
        report = await one.stop()
        assert report.left == ()
        assert (await one.status()).phase is Phase.STOPPED

    run(live)


def test_a_stop_names_the_group_of_what_is_left(create):
    async def live():
        one = await begin(create)
        one._groups.find("serve-1").backend.left = ["server 0: pid 7 vllm"]
        assert (await one.stop()).left == ("serve-1 server 0: pid 7 vllm",)

    run(live)


def test_groups_are_restarted_one_after_the_other(create):
    async def live():
        one = await begin(create)
        await one.restart(None)
        with pytest.raises(BusyError, match="restart all groups is under way"):
            await one.scale(3)
        status = await finish(one)
        assert status.operation_error is None
        assert attempts(status) == {"serve-0": 2, "serve-1": 2}
        phases = [
            (event.group, event.text) for event in await one.events(0) if event.kind == "phase"
        ]
        ready_again = len(phases) - 1 - phases[::-1].index(("serve-0", "ready"))
        assert ready_again < phases.index(("serve-1", "restarting"))
        await one.restart("serve-1")
        assert attempts(await finish(one)) == {"serve-0": 2, "serve-1": 3}
        with pytest.raises(UnknownDeploymentError, match="serve-7"):
            await one.restart("serve-7")
        await one.stop()

    run(live)


def test_a_restart_stops_at_a_group_that_fails_and_a_failed_one_is_tried_again(create):
    async def live():
        one = await begin(create)
        first = one._groups.find("serve-0")
        first.backend.faults["plan"] = [LaunchError("no place")] * 9
        await one.restart(None)
        status = await finish(one)
        assert status.operation_error["what"] == "no place"
        assert status.phase is Phase.DEGRADED
        assert attempts(status)["serve-1"] == 1, "the next one was not touched"
        first.backend.faults.clear()
        await one.restart("serve-0")
        status = await finish(one)
        assert (status.operation_error, status.phase) == (None, Phase.READY)
        assert first.journal.error is None
        await one.stop()

    run(live)


def test_replicas_are_added_and_removed(create):
    async def live():
        one = await begin(create)
        await one.scale(3)
        status = await finish(one)
        assert attempts(status) == {"serve-0": 1, "serve-1": 1, "serve-2": 1}
        removed = one._groups.find("serve-2")
        await one.scale(1)
        status = await finish(one)
        assert list(attempts(status)) == ["serve-0"]
        assert status.phase is Phase.READY
        assert removed.backend.calls[-1] == "release"
        with pytest.raises(RecipeError, match="0 replicas"):
            await one.scale(0)
        await one.stop()

    run(live)


def test_a_new_replica_that_fails_is_removed_again(create, monkeypatch):
    async def live():
        one = await begin(create)

        async def refuse(self, excluded, timeout_s):
            raise PlacementError("no NPUs")

        monkeypatch.setattr(FakeBackend, "reserve", refuse)
        await one.scale(3)
        status = await finish(one)
        assert "no NPUs" in str(status.operation_error)
        assert list(attempts(status)) == ["serve-0", "serve-1"]
        assert len(one._record.journal.specs) == 2
        await one.stop()

    run(live)


def test_a_new_controller_adopts_scaled_and_failed_groups(create, monkeypatch):
    async def live():
        old = await begin(create)
        await old.scale(3)
        await finish(old)
        failed = old._groups.find("serve-1")
        failed.loop.abandon(LaunchError("broken"))
        await await_status(old, lambda status: status.groups[1].phase is Phase.FAILED)
        assert failed.backend.kept == {}, "its agents are gone"
        for group in old._groups:
            group._tasks.cancel()

        monkeypatch.setattr(takeover, "search", search_in(old))
        new = create(reconstructed=True)
        await new.take_over()
        status = await new.status()
        assert [(group.name, group.phase) for group in status.groups] == [
            ("serve-0", Phase.READY),
            ("serve-1", Phase.FAILED),
            ("serve-2", Phase.READY),
        ]
        assert status.groups[1].error["what"] == "broken"
        assert attempts(status) == attempts(await old.status())
        for group in new._groups:
            assert "launch" not in group.backend.calls
        await new.stop()

    run(live)


NEW = "args.max-num-seqs=4"


def changed(one, *settings):
    return change_recipe(one._record.journal.loaded, settings)


async def await_verdict(one) -> tuple[str, ...]:
    return (await await_status(one, lambda status: status.awaits)).awaits


def test_a_group_that_backs_off_shows_when_it_launches_next(create):
    async def live():
        one = await begin(create, "health.backoff_first_s=60")
        backend = one._groups.find("serve-1").backend
        # The first failure of a group that was ready is answered without a pause.
        backend.kill_server(0)
        await await_status(one, lambda now: now.restarts == 1 and now.phase is Phase.READY)
        backend.kill_server(0)
        status = await await_status(one, lambda now: any(g.relaunch_at for g in now.groups))
        by_name = {group.name: group for group in status.groups}
        assert by_name["serve-1"].relaunch_at > status.now
        assert by_name["serve-0"].relaunch_at is None
        await one.stop()

    run(live)


def test_an_upgrade_replaces_group_after_group(create):
    async def live():
        one = await begin(create)
        await one.upgrade(changed(one, NEW), {})
        assert await await_verdict(one) == ("serve-0.g2",)
        assert list(attempts(await one.status())) == ["serve-1", "serve-0.g2"]
        await one.confirm("")
        await await_status(one, lambda status: status.awaits == ("serve-1.g2",))
        await one.confirm("")
        status = await finish(one)
        assert status.operation_error is None
        assert list(attempts(status)) == ["serve-0.g2", "serve-1.g2"]
        assert one._record.journal.loaded.recipe.args["max-num-seqs"] == 4
        await one.scale(3)
        assert list(attempts(await finish(one)))[2] == "serve-2.g2"
        await one.stop()

    run(live)


def test_an_upgrade_that_is_refused_brings_the_old_groups_back(create):
    async def live():
        one = await begin(create)
        await one.upgrade(changed(one, NEW), {})
        await await_verdict(one)
        await one.confirm("rank 0: another answer")
        status = await finish(one)
        assert status.operation_error["why"] == "rank 0: another answer"
        assert (list(attempts(status)), status.phase) == (["serve-0", "serve-1"], Phase.READY)
        assert "max-num-seqs" not in changed(one).recipe.args or (
            changed(one).recipe.args["max-num-seqs"] != 4
        )
        assert one._record.journal.restore is None
        await one.stop()

    run(live)


def test_settings_that_no_server_reads_are_applied_without_a_restart(create):
    async def live():
        one = await begin(create)
        await one.upgrade(changed(one, "health.max_restarts=9"), {})
        status = await finish(one)
        assert status.operation_error is None
        assert attempts(status) == {"serve-0": 1, "serve-1": 1}
        for group in one._groups:
            assert group.loop.settings.health.max_restarts == 9
            assert "stop_servers" not in group.backend.calls
        await one.stop()

    run(live)


def test_a_controller_that_dies_during_an_upgrade_is_followed_by_a_roll_back(create, monkeypatch):
    async def live():
        old = await begin(create)
        before = old._record.journal.specs
        await old.upgrade(changed(old, NEW), {})
        await await_verdict(old)
        for group in old._groups:
            group._tasks.cancel()
        old._tasks.cancel()
        monkeypatch.setattr(takeover, "search", search_in(old))
        new = create(reconstructed=True)
        await new.take_over()
        status = await finish(new)
        assert (list(attempts(status)), status.phase) == (["serve-0", "serve-1"], Phase.READY)
        assert new._record.journal.specs == before
        assert "rolled back" in status.operation_error["what"], (
            "its command must not report success"
        )
        await new.stop()

    run(live)


def test_a_restart_during_which_the_controller_dies_is_no_success(create, monkeypatch):
    async def live():
        old = await begin(create)
        await old.restart(None)
        await await_status(old, lambda status: status.phase is not Phase.READY)
        for group in old._groups:
            group._tasks.cancel()
        old._tasks.cancel()
        assert old._record.journal.operation == "restart all groups"
        monkeypatch.setattr(takeover, "search", search_in(old))
        new = create(reconstructed=True)
        await new.take_over()
        status = await finish(new)
        assert status.operation_error["what"] == "restart all groups: interrupted"
        await new.restart(None)
        assert (await finish(new)).operation_error is None
        await new.stop()

    run(live)


def test_what_is_left_of_a_new_group_keeps_no_old_one_from_serving(create):
    async def live():
        one = await begin(create)
        await one.upgrade(changed(one, NEW), {})
        await await_verdict(one)
        one._groups.find("serve-0.g2").backend.left = ["server 0: pid 7 vllm"]
        await one.confirm("too slow")
        status = await finish(one)
        assert status.operation_error["why"] == "too slow"
        assert (list(attempts(status)), status.phase) == (["serve-0", "serve-1"], Phase.READY)
        assert any("pid 7" in event.text for event in await one.events(0))
        await one.stop()

    run(live)
