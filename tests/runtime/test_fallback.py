"""A node is lost and there is no spare one: a smaller recipe serves until it is back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fake_cluster import cluster_creator
from fake_controllers import await_status, run, search_in
from test_gateway_link import FakeGateway

from raylaunch.cli.exit_codes import exit_code
from raylaunch.errors import BusyError
from raylaunch.recipe.load import change_recipe
from raylaunch.runtime.agent import gateway_host
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.gateway import gateway_link
from raylaunch.supervise.degradation import Degradation, Stage
from raylaunch.supervise.state import Phase

ray = pytest.importorskip("ray")


@pytest.fixture
def made(monkeypatch, tmp_path):
    return cluster_creator(monkeypatch, tmp_path)


async def begin(create, *settings):
    one = create(*settings)
    await one.begin({})
    await await_status(one, lambda status: status.phase is Phase.READY)
    return one


async def lose_node(one, cluster):
    """Lose a node of the first group, and return the status once a fallback serves."""
    cluster.lose_node(next(iter(one._groups)).backend)
    return await await_degraded(one)


async def await_degraded(one):
    return await await_status(one, lambda now: now.serves_all and now.fallback)


async def await_full(one):
    return await await_status(
        one, lambda now: now.phase is Phase.READY and not now.fallback and not now.operation
    )


async def texts(one, kind: str) -> list[str]:
    return [event.text for event in await one.events(0) if event.kind == kind]


def names(status) -> list[str]:
    return [group.name for group in status.groups]


def abandon(one) -> None:
    """Kill a controller: what it runs stays as it is."""
    one._tasks.cancel()
    for group in one._groups:
        group._tasks.cancel()


async def take_over(old, create, monkeypatch, *settings):
    abandon(old)
    monkeypatch.setattr(takeover, "search", search_in(old))
    new = create(*settings, reconstructed=True)
    await new.take_over()
    return new


def test_a_smaller_recipe_serves_until_the_node_is_back(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        status = await lose_node(one, cluster)
        assert (status.phase, names(status)) == (Phase.DEGRADED, ["serve-0.g2"])
        assert status.fallback == "the recipe itself with parallel.data=1"
        assert exit_code(status) == 0
        assert len(status.servers) == 1
        assert cluster.held == {"serve-0.g2": 1}
        (small,) = one._groups
        assert small.backend.excluded == ("node-1",), "Ray may not have marked it dead yet"
        cluster.bring_back()
        status = await await_full(one)
        assert (names(status), len(status.servers)) == (["serve-0.g3"], 2)
        assert cluster.held == {"serve-0.g3": 2}
        (full,) = one._groups
        assert full.backend.excluded == ()
        assert cluster.checks == 1, "the recipe itself was checked before the fallback was stopped"
        said = await texts(one, "degraded")
        assert said == [
            "the recipe itself with parallel.data=1 serves until the lost node is back",
            "no longer: local-dual serves",
        ]
        assert one._record.journal.degradation == Degradation()
        assert (await one.stop()).left == ()

    run(live)


def test_servers_that_survived_on_the_lost_node_do_not_delay_the_recipe(made):
    """Their guards would wait for an agent for ten minutes, and hold the NPUs."""
    create, cluster = made

    async def live():
        one = await begin(create)
        for last, next_one in (("serve-0", "serve-0.g3"), ("serve-0.g3", "serve-0.g5")):
            cluster.survivors = {last}
            await lose_node(one, cluster)
            assert cluster.survivors == {last}, "their node is out of reach"
            cluster.bring_back()
            assert names(await await_full(one)) == [next_one]
        assert await texts(one, "failure") == []
        commands = await texts(one, "command")
        said = [text for text in commands if "survived" in text]
        assert said == [
            "stopped what had survived of serve-0 on 10.0.0.2",
            "stopped what had survived of serve-0.g3 on 10.0.0.2",
        ]
        await one.stop()

    run(live)


def test_without_a_fallback_a_lost_node_is_awaited_as_before(made):
    create, cluster = made

    async def live():
        one = await begin(create, "fallback=[]")
        group = next(iter(one._groups))
        cluster.lose_node(group.backend)
        await await_status(one, lambda now: any(e.kind == "waiting" for e in now.events))
        assert not one._fallbacks._is_concerned()
        cluster.bring_back()
        status = await await_full(one)
        assert (names(status), status.groups[0].attempt) == (["serve-0"], 2)
        assert cluster.launched == ["serve-0", "serve-0"]
        await one.stop()

    run(live)


def test_a_node_that_comes_back_early_costs_no_fallback(made):
    create, cluster = made

    async def live():
        one = await begin(create, "health.degrade_after_s=3000")
        group = next(iter(one._groups))
        cluster.lose_node(group.backend)
        await await_status(one, lambda now: any(e.kind == "waiting" for e in now.events))
        assert group.journal.waiting_since is not None
        cluster.bring_back()
        status = await await_full(one)
        assert names(status) == ["serve-0"]
        assert group.journal.waiting_since is None
        await one.stop()

    run(live)


def test_the_next_fallback_is_started_when_the_first_cannot_be(made):
    create, cluster = made
    three = (
        "parallel.data=3",
        "fallback=[{set: {parallel.data: 2}}, {set: {parallel.data: 1}}]",
    )

    async def live():
        cluster.nodes = 3
        one = await begin(create, *three)
        cluster.broken = {2}
        status = await lose_node(one, cluster)
        assert status.fallback == "the recipe itself with parallel.data=1"
        assert cluster.held == {"serve-0.g3": 1}, "nothing of the first one is left"
        failures = await texts(one, "failure")
        assert any(
            "start the fallback the recipe itself with parallel.data=2" in t for t in failures
        )
        await one.stop()

    run(live)


def test_the_recipe_serves_again_when_no_fallback_can_be_started(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        cluster.broken = {1}
        cluster.lose_node(next(iter(one._groups)).backend)
        await await_status(one, lambda now: one._record.journal.degradation.failures > 0)
        cluster.bring_back()
        status = await await_full(one)
        assert names(status) == ["serve-0"]
        await await_status(one, lambda now: one._record.journal.degradation == Degradation())
        await one.stop()

    run(live)


def test_a_recipe_that_does_not_start_gives_way_to_its_fallback_and_is_tried_again(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        await lose_node(one, cluster)
        cluster.broken = {2}
        cluster.bring_back()
        state = one._record.journal
        await await_status(
            one, lambda now: now.serves_all and now.fallback and state.degradation.failures == 1
        )
        assert cluster.held == {"serve-0.g4": 1}
        assert state.degradation.serving == 0
        cluster.broken = set()
        status = await await_full(one)
        assert len(status.servers) == 2
        await one.stop()

    run(live)


def test_a_recipe_that_fails_its_checks_costs_the_fallback_nothing(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        await lose_node(one, cluster)
        cluster.problem = "the weights are missing on 10.0.0.2"
        cluster.bring_back()
        await await_status(one, lambda _: cluster.checks > 1)
        assert (await one.status()).serves_all
        assert cluster.launched == ["serve-0", "serve-0.g2"]
        failures = await texts(one, "failure")
        assert any("weights are missing" in text for text in failures)
        cluster.problem = ""
        await await_full(one)
        await one.stop()

    run(live)


def test_a_recipe_that_loses_its_node_again_while_it_starts_does_not_wait_for_it(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        await lose_node(one, cluster)
        lost: list[str] = []

        def lose_again(status) -> bool:
            """Lose the node again in the moment in which the recipe itself is launched."""
            growing = one._record.journal.degradation.stage is Stage.GROWING
            for group in one._groups:
                if growing and not lost and group.journal.phase is Phase.STARTING:
                    lost.append(group.name)
                    cluster.lose_node(group.backend)
            return bool(lost) and status.serves_all and bool(status.fallback)

        cluster.bring_back()
        await await_status(one, lose_again)
        assert one._record.journal.degradation.failures == 1
        await one.stop()

    run(live)


def test_a_degraded_deployment_takes_no_other_recipe(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        await lose_node(one, cluster)
        with pytest.raises(BusyError, match="its fallback serves"):
            await one.scale(2)
        changed = change_recipe(one._record.journal.loaded, ["args.max-num-seqs=4"])
        with pytest.raises(BusyError, match="its fallback serves"):
            await one.upgrade(changed, {})
        await one.restart(None)
        status = await await_status(one, lambda now: not now.operation and now.serves_all)
        assert status.groups[0].attempt == 2, "its groups can be restarted"
        await one.stop()

    run(live)


def test_a_stop_interrupts_a_switch_and_leaves_nothing(made):
    create, cluster = made

    async def live():
        one = await begin(create)
        cluster.lose_node(next(iter(one._groups)).backend)
        await await_status(one, lambda now: now.operation.startswith("start the fallback"))
        assert (await one.stop()).left == ()
        assert cluster.held == {}
        assert (await one.status()).phase is Phase.STOPPED

    run(live)


def test_a_node_with_a_device_fault_is_not_used_by_the_next_groups_either(made):
    from raylaunch.supervise.state import Failure

    create, cluster = made

    async def live():
        one = await begin(create)
        group = next(iter(one._groups))
        fault = Failure(0, 0.0, "npu-hbm", "device", 0, node="10.0.0.9")
        group.journal.history = group.journal.history.remember(fault)
        await lose_node(one, cluster)
        (small,) = one._groups
        assert small.journal.history.excluded_nodes == ("10.0.0.9",)
        assert "10.0.0.9" in small.backend.excluded
        await one.stop()

    run(live)


GATEWAY = ("gateway.enabled=true", "network.http_port=8000")


@pytest.fixture
def gateway(monkeypatch):
    fake = FakeGateway()
    monkeypatch.setattr(gateway_host, "start_gateway", fake.start)
    monkeypatch.setattr(gateway_link, "connect_gateway", lambda _: None)
    monkeypatch.setattr(ray, "util", SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"))
    return fake


def test_requests_wait_for_the_fallback_when_the_recipe_is_refused(made, gateway):
    create, cluster = made

    async def live():
        one = await begin(create, *GATEWAY)
        await lose_node(one, cluster)
        cluster.refused = {2}
        cluster.bring_back()
        await await_status(one, lambda now: one._record.journal.degradation.failures > 0)
        await await_degraded(one)
        states = {state for members in gateway.pushed for state in members.values()}
        assert "failed" not in states, "the gateway would refuse what it holds"
        await one.stop()

    run(live)


def test_clients_keep_the_gateways_address_and_the_fallback_is_drained(made, gateway):
    create, cluster = made

    async def live():
        one = await begin(create, *GATEWAY)
        endpoint = (await one.status()).endpoint
        status = await lose_node(one, cluster)
        assert status.endpoint == endpoint
        await gateway.await_call(lambda: gateway.pushed[-1] == {"serve-0.g2/0": "ready"})
        assert gateway.calls == [], "nothing is drained that does not serve"
        cluster.bring_back()
        assert (await await_full(one)).endpoint == endpoint
        await gateway.await_call(lambda: gateway.pushed[-1] == {"serve-0.g3/0": "ready"})
        assert gateway.calls == ["drain serve-0.g2/0"]
        await one.stop()

    run(live)


# -- a controller that takes over -----------------------------------------------------------------


def test_a_new_controller_goes_on_where_no_agent_keeps_a_journal(made, monkeypatch):
    """A group that waits for a lost node has released all its NPUs, and its agents with them."""
    create, cluster = made

    async def live():
        old = await begin(create, "health.degrade_after_s=3000")
        group = next(iter(old._groups))
        cluster.lose_node(group.backend)
        await await_status(old, lambda now: any(e.kind == "waiting" for e in now.events))
        waiting_since = group.journal.waiting_since
        version = (await old.wait_change(-1, 0.1))[0]
        while group.journal.number != old._store._kept.get(group.name):
            version, _ = await old.wait_change(version, 0.1)
        abandon(old)
        clock = SystemClock()

        async def search(*_, **__):
            return takeover.sort_copies(cluster.stored.items(), clock)

        monkeypatch.setattr(takeover, "search", search)
        new = create("health.degrade_after_s=3000", reconstructed=True)
        await new.take_over()
        await new.status()
        (adopted,) = new._groups
        assert adopted.journal.waiting_since == pytest.approx(waiting_since, abs=1)
        cluster.bring_back()
        status = await await_full(new)
        assert (names(status), status.groups[0].attempt) == (["serve-0"], 2)
        await new.stop()
        assert cluster.stored == {}, "nothing is kept of a deployment that is stopped"

    run(live)


def test_a_new_controller_grows_back_from_the_fallback_that_it_finds(made, monkeypatch):
    create, cluster = made

    async def live():
        old = await begin(create)
        await lose_node(old, cluster)
        new = await take_over(old, create, monkeypatch)
        status = await await_degraded(new)
        assert names(status) == ["serve-0.g2"]
        assert cluster.launched == ["serve-0", "serve-0.g2"], "the fallback's server was adopted"
        (small,) = new._groups
        await new.restart(None)
        await await_status(new, lambda now: now.serves_all and now.groups[0].attempt == 2)
        assert small.backend.excluded == ("node-1",), "Ray may still count it"
        cluster.bring_back()
        assert names(await await_full(new)) == ["serve-0.g3"]
        await new.stop()

    run(live)


def names_of_fallbacks(one) -> list[str]:
    groups = [(group.name, group.request.spec.loaded.recipe) for group in one._groups]
    return [name for name, recipe in groups if recipe.parallel.data == 1]


@pytest.mark.parametrize("stage", [Stage.DEGRADING, Stage.GROWING, Stage.RETURNING])
def test_a_new_controller_continues_the_switch_that_it_finds(made, monkeypatch, stage):
    create, cluster = made

    async def live():
        old = await begin(create)
        cluster.broken = {2} if stage is Stage.RETURNING else set()
        if stage is not Stage.DEGRADING:
            await lose_node(old, cluster)
            cluster.slow = True
            cluster.bring_back()
        else:
            cluster.slow = True
            cluster.lose_node(next(iter(old._groups)).backend)

        def has_launched(_):
            state = old._record.journal.degradation
            target = [spec.name for spec in state.target]
            return state.stage is stage and target[0] in cluster.launched

        await await_status(old, has_launched)
        launched = list(cluster.launched)
        cluster.broken, cluster.slow = set(), False
        new = await take_over(old, create, monkeypatch)
        for group in new._groups:
            of_fallback = group.name in names_of_fallbacks(new)
            assert group.loop.recovery.avoided == (("node-1",) if of_fallback else ())
        await await_status(
            new, lambda now: now.serves_all and not new._record.journal.degradation.is_switching
        )
        assert cluster.launched[: len(launched)] == launched
        assert launched[-1] not in cluster.launched[len(launched) :], "it was adopted"
        assert (await new.status()).operation_error is None
        await new.stop()

    run(live)
