"""A controller seen from outside, without Ray: its metrics, its targets, its hooks."""

from __future__ import annotations

import asyncio
import errno
import json
import socket

import psutil
import pytest
import ray
from fake_controllers import attempts, await_status, begin, creator, finish, run
from test_controller_groups import search_in

from raylaunch.plan.node_usage import NodeUsage
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import change_recipe
from raylaunch.recipe.monitoring_settings import Notify
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.monitoring import (
    metrics_endpoint,
    metrics_server,
    monitor,
    notifier,
)
from raylaunch.runtime.controller.monitoring.notifier import Notifier
from raylaunch.supervise.state import Phase

DELIVERED_S = 600.0
"""A limit, for a machine that is busy with other things."""
NODE = {"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8090}


async def no_usage(group) -> dict:
    return {}


@pytest.fixture
def create(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics_endpoint, "alive_nodes", lambda: [NODE])
    monkeypatch.setattr(monitor, "_usage_of", no_usage)
    return creator(monkeypatch, tmp_path)


def metrics_on(port: int) -> tuple[str, ...]:
    return ("metrics.enabled=true", f"metrics.port={port}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def numbers(one) -> list[str]:
    """The lines of the counters, which a controller that takes over must go on with."""
    text, _ = await one._monitor._metrics.render("text/plain")
    kept = ("_restarts_total", "_failures_total", "_detection_", "_recovery_", "_last_failure_")
    return [line for line in text.decode().splitlines() if any(name in line for name in kept)]


async def failed_once(one) -> None:
    one._groups.find("serve-1").backend.kill_server(0)
    await await_status(one, lambda now: now.restarts == 1 and now.phase is Phase.READY)
    one._monitor._metrics._answer_key = ("", float("-inf"))


def test_the_metrics_agree_with_the_status_and_survive_the_controller(create, monkeypatch):
    async def live():
        old = await begin(create, *metrics_on(free_port()))
        await failed_once(old)
        before = await numbers(old)
        place = 'deployment="test",group="serve-1"'
        assert f"raylaunch_group_failures_total{{{place}}} 1.0" in before
        assert f"raylaunch_group_recovery_seconds_count{{{place}}} 1.0" in before
        assert f"raylaunch_group_detection_seconds_count{{{place}}} 1.0" in before
        restarts = [line for line in before if line.startswith("raylaunch_group_restarts_total")]
        assert [line.split()[-1] for line in restarts] == ["1.0"]
        for group in old._groups:
            group._tasks.cancel()
        monkeypatch.setattr(takeover, "search", search_in(old))
        new = create(*metrics_on(free_port()), reconstructed=True)
        await new.take_over()
        await new.status()
        assert await numbers(new) == before
        text, _ = await new._monitor._metrics.render("text/plain")
        assert b'raylaunch_controller_took_over{deployment="test"} 1.0' in text
        await new.stop()

    run(live)


def test_the_targets_are_written_and_removed(create, tmp_path):
    async def live():
        one = await begin(create, *metrics_on(free_port()))
        file = tmp_path / "monitoring" / "test.json"
        await one._monitor._metrics._write_targets()
        entries = json.loads(file.read_text())
        kinds = [entry["labels"]["raylaunch_target"] for entry in entries]
        assert kinds == ["raylaunch", "vllm", "vllm", "ray"]
        assert entries[-1]["targets"] == ["10.0.0.1:8090"]
        await one.stop()
        assert not file.exists()

    run(live)


def test_no_free_port_is_an_event_and_nothing_more(create, monkeypatch):
    async def refuse(*_args, **_options):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    async def live():
        monkeypatch.setattr(metrics_server.asyncio, "start_server", refuse)
        one = await begin(create, *metrics_on(9470))
        events = [event for event in await one.events(0) if event.kind == "metrics"]
        assert [event.text for event in events] == [
            "no metrics: the ports 9470 to 9489 of 127.0.0.1 are in use"
        ]
        await one.stop()

    run(live)


def test_metrics_are_on_by_default_and_on_loopback_only():
    metrics = read("local-dual").recipe.metrics
    assert metrics.enabled
    assert metrics.host == "loopback"


def test_the_metrics_leave_the_ports_of_servers_and_gateway_alone(create):
    async def live():
        port = free_port()
        servers = (f"gateway.port={port}", f"network.http_port={port + 1}")
        one = await begin(create, *metrics_on(port), *servers)
        [event] = [event for event in await one.events(0) if event.kind == "metrics"]
        # Two groups, so port + 2 may be that of the second one's server.
        opened = one._monitor._metrics._server.port
        assert port + 3 <= opened < port + metrics_server.TRIED_PORTS
        assert event.text == f"port {port} is taken: the metrics are on 127.0.0.1:{opened}"
        await one.stop()

    run(live)


def test_changes_of_the_deployment_ask_ray_for_its_nodes_only_now_and_then(create, monkeypatch):
    asked = []

    def nodes() -> list:
        asked.append(1)
        return [NODE]

    async def live():
        monkeypatch.setattr(metrics_endpoint, "alive_nodes", nodes)
        one = await begin(create, *metrics_on(free_port()))
        for _ in range(20):
            one._changes.note()
            await one._monitor._metrics._write_targets()
        await one.stop()

    run(live)
    assert len(asked) == 1


def test_usage_is_by_group_and_server(create, monkeypatch):
    async def usage_of(group) -> dict[int, NodeUsage]:
        return {1: NodeUsage(memory_total_bytes=len(group.name))}

    async def live():
        monkeypatch.setattr(monitor, "_usage_of", usage_of)
        one = await begin(create)
        assert set(await one.usage()) == {("serve-0", 1), ("serve-1", 1)}
        await one.stop()

    run(live)


def test_an_outage_of_rays_head_costs_only_its_targets(create, monkeypatch, tmp_path):
    def fail() -> list:
        raise ray.exceptions.RaySystemError("the GCS does not answer")

    async def live():
        monkeypatch.setattr(metrics_endpoint, "alive_nodes", fail)
        one = await begin(create, *metrics_on(free_port()))
        await one._monitor._metrics._write_targets()
        entries = json.loads((tmp_path / "monitoring" / "test.json").read_text())
        kinds = [entry["labels"]["raylaunch_target"] for entry in entries]
        assert kinds == ["raylaunch", "vllm", "vllm"]
        assert not [event for event in await one.events(0) if event.kind == "internal"]
        await one.stop()

    run(live)


async def await_note(one, text: str) -> None:
    await await_status(one, lambda _: text in [event.text for event in one._record.journal.events])


def test_an_upgrade_of_metrics_and_hooks_touches_no_server(create, tmp_path):
    notices = tmp_path / "notices"
    keep = ["/bin/sh", "-c", 'cat >>"$0"; echo >>"$0"', str(notices)]
    hook = json.dumps([{"command": keep, "phases": ["ready", "stopped"]}])

    async def live():
        one = await begin(create, *metrics_on(free_port()))
        before = one._monitor._metrics._server.port
        wanted = (*metrics_on(free_port()), f"notify={hook}", "tracing.endpoint=http://127.0.0.1:9")
        await one.upgrade(change_recipe(one._record.journal.loaded, wanted), {})
        status = await finish(one)
        assert status.operation_error is None
        assert attempts(status) == {"serve-0": 1, "serve-1": 1}
        await await_note(one, "applied to the controller: metrics, notify, tracing")
        await await_status(one, lambda _: one._monitor._metrics.address)
        assert one._monitor._metrics._server.port != before
        assert one._monitor._tracer is not None
        await one.upgrade(change_recipe(one._record.journal.loaded, ["metrics.enabled=false"]), {})
        await finish(one)
        await await_status(one, lambda _: one._monitor._metrics._server is None)
        await one.stop()
        assert not (tmp_path / "monitoring" / "test.json").exists()

    run(live)
    got = [json.loads(line)["phase"] for line in notices.read_text().splitlines()]
    assert got == ["stopped", "stopped"]


def test_a_token_that_changed_is_asked_for_on_the_same_port(create):
    async def live():
        one = create(*metrics_on(free_port()), "secrets=[SCRAPE]", "metrics.token=SCRAPE")
        await one.begin({"SCRAPE": "old"})
        await await_status(one, lambda _: one._monitor._metrics.address)
        server = one._monitor._metrics._server
        await one.upgrade(one._record.journal.loaded, {"SCRAPE": "new"})
        await finish(one)
        assert one._monitor._metrics._server is server
        assert server.token == "new"
        one._monitor.take_secrets({})
        assert server.token == "new", "without its value it does not become open to everybody"
        await one.stop()

    run(live)


def test_a_token_without_a_value_opens_nothing(create):
    async def live():
        settings = (*metrics_on(free_port()), "secrets=[SCRAPE]", "metrics.token=SCRAPE")
        one = await begin(create, *settings)
        [event] = [event for event in await one.events(0) if event.kind == "metrics"]
        assert event.text == "no metrics: the token SCRAPE has no value"
        assert one._monitor._metrics._server is None
        await one.stop()

    run(live)


def test_hooks_get_each_phase_that_they_want(create, tmp_path):
    notices = tmp_path / "notices"
    keep = ["/bin/sh", "-c", 'cat >>"$0"; echo >>"$0"', str(notices)]
    hook = {"command": keep, "phases": ["ready", "restarting", "stopped"]}

    async def live():
        one = await begin(create, f"notify={json.dumps([hook])}", "parallel.replicas=1")
        one._groups.find("serve-0").backend.kill_server(0)
        await await_status(one, lambda now: now.restarts == 1 and now.phase is Phase.READY)
        await one.stop()

    run(live)
    got = [json.loads(line) for line in notices.read_text().splitlines()]
    assert [one["phase"] for one in got] == ["ready", "restarting", "ready", "stopped"]
    assert got[1]["diagnosis"]["id"]
    assert "diagnosis" not in got[2]


class HttpReceiver:
    """A webhook that refuses the first requests."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.requests: list[str] = []

    async def serve(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].split()[0])
        self.requests.append(head + (await reader.readexactly(length)).decode())
        status = "503 No" if len(self.requests) <= self.refusals else "204 Yes"
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode())
        writer.close()


class FastClock(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def deliver(hooks: list[Notify], *notices: bytes) -> list[str]:
    problems: list[str] = []
    tasks = TaskOwner(lambda failure: problems.append(str(failure)))
    one = Notifier(hooks, {"HOOK": "s3cret"}, FastClock(), problems.append)
    one.start(tasks)
    for notice in notices:
        one.send(lambda _: True, notice)
    await one.flush(DELIVERED_S)
    await tasks.cancel_and_wait()
    return problems


@pytest.mark.parametrize(("refusals", "given_up"), [(0, 0), (4, 0), (99, 1)])
async def test_a_webhook_is_tried_five_times(refusals, given_up, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    receiver = HttpReceiver(refusals)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hook = Notify(url=f"http://127.0.0.1:{port}/hooks/T0K3N", token="HOOK", timeout_s=30)
    problems = await deliver([hook], b'{"phase": "ready"}')
    server.close()
    assert len(receiver.requests) == min(refusals + 1, notifier.TRIES)
    assert "Authorization: Bearer s3cret" in receiver.requests[0]
    assert receiver.requests[0].endswith('{"phase": "ready"}')
    assert len(problems) == given_up
    assert "T0K3N" not in "".join(problems)


async def test_a_dead_hook_does_not_delay_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    out = tmp_path / "out"
    dead = Notify(url=f"http://127.0.0.1:{free_port()}/")
    alive = Notify(command=("/bin/sh", "-c", 'cat >>"$0"', str(out)), timeout_s=60)
    problems = await deliver([dead, alive], b"one ", b"two ")
    assert out.read_text() == "one two "
    assert len(problems) == 2


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    pids = tmp_path / "pids"
    script = 'sleep 1000 & echo $! >>"$0"; wait'
    hook = Notify(command=("/bin/sh", "-c", script, str(pids)), timeout_s=0.5)
    [problem] = await deliver([hook], b"x")
    assert "no answer within 0.5 s" in problem
    # On a busy machine it may be killed before it has a child.
    children = pids.read_text().split() if pids.exists() else []
    assert not [pid for pid in children if lives(int(pid))]


def lives(pid: int) -> bool:
    """A zombie, which init has not reaped yet, does not count."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
