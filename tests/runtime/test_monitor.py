"""A controller seen from outside, without Ray: its metrics, its targets, its hooks."""

from __future__ import annotations

import asyncio
import errno
import json
import socket

import psutil
import pytest
from fake_controllers import await_status, begin, creator, run
from test_controller_groups import search_in

from raylaunch.recipe.monitoring_settings import Notify
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.monitoring import metrics_server, monitor, notifier
from raylaunch.runtime.controller.monitoring.notifier import Notifier
from raylaunch.supervise.state import Phase

NODE = {"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8090}


async def no_usage(group) -> dict:
    return {}


@pytest.fixture
def create(monkeypatch, tmp_path):
    monkeypatch.setattr(monitor, "alive_nodes", lambda: [NODE])
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
    text, _ = await one._monitor.render("text/plain")
    kept = ("_restarts_total", "_failures_total", "_detection_", "_recovery_", "_last_failure_")
    return [line for line in text.decode().splitlines() if any(name in line for name in kept)]


async def failed_once(one) -> None:
    one._groups.find("serve-1").backend.kill_server(0)
    await await_status(one, lambda now: now.restarts == 1 and now.phase is Phase.READY)
    one._monitor._answer_key = ("", float("-inf"))


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
        text, _ = await new._monitor.render("text/plain")
        assert b'raylaunch_controller_took_over{deployment="test"} 1.0' in text
        await new.stop()

    run(live)


def test_the_targets_are_written_and_removed(create, tmp_path):
    async def live():
        one = await begin(create, *metrics_on(free_port()))
        file = tmp_path / "monitoring" / "test.json"
        await one._monitor._write_targets()
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
            "no metrics on 127.0.0.1:9470: Address already in use"
        ]
        await one.stop()

    run(live)


def test_a_token_without_a_value_opens_nothing(create):
    async def live():
        settings = (*metrics_on(free_port()), "secrets=[SCRAPE]", "metrics.token=SCRAPE")
        one = await begin(create, *settings)
        [event] = [event for event in await one.events(0) if event.kind == "metrics"]
        assert event.text == "no metrics: the token SCRAPE has no value"
        assert one._monitor._server is None
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
    await one.flush(60.0)
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
    alive = Notify(command=("/bin/sh", "-c", 'cat >>"$0"', str(out)))
    problems = await deliver([dead, alive], b"one ", b"two ")
    assert out.read_text() == "one two "
    assert len(problems) == 2


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    pids = tmp_path / "pids"
    script = 'sleep 1000 & echo $! >>"$0"; wait'
    hook = Notify(command=("/bin/sh", "-c", script, str(pids)), timeout_s=0.5)
    [problem] = await deliver([hook], b"x")
    assert "no answer within 0.5 s" in problem
    assert not [pid for pid in pids.read_text().split() if lives(int(pid))]


def lives(pid: int) -> bool:
    """A zombie, which init has not reaped yet, does not count."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
