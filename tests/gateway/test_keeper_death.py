"""The keeper is killed: HAProxy and relay serve on, and the next keeper adopts them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dummy_server import expected_text
from gateway_harness import DEPLOYMENT, RunningGateway, free_port, until_async
from relay_harness import member_of, read_stream, text_of, until

from raylaunch.errors import NodeError
from raylaunch.gateway.gateway_messages import GatewayOptions, hash_key
from raylaunch.gateway.gateway_orphans import adopt_relay, find_orphans, stop_orphans
from raylaunch.node.process.guard import read_process, send_signal
from raylaunch.node.process.process_markers import await_exit, find_marked, is_alive

COMPLETIONS = "/v1/completions"
PLAIN = {"model": "tiny", "prompt": "hello", "max_tokens": 12}
STREAM = {**PLAIN, "max_tokens": 90, "temperature": 0, "stream": True}


@pytest.fixture
async def gateway(shared_gateway, servers) -> AsyncIterator[RunningGateway]:
    """The shared gateway, in front of the first server, with all its processes."""
    await asyncio.to_thread(shared_gateway.start, servers[0])
    await shared_gateway.open(servers[0])
    yield shared_gateway
    await shared_gateway.http.close()


async def kill_keeper(gateway: RunningGateway) -> None:
    """Kill it, and wait until its lock is free."""
    keeper = read_process(gateway.status.keeper_pid)
    assert keeper is not None
    send_signal(keeper, signal.SIGKILL)
    await asyncio.to_thread(await_exit, keeper, time.monotonic() + 60)
    assert not is_alive(keeper)


async def restart(gateway: RunningGateway, *servers) -> None:
    await asyncio.to_thread(gateway.start, *servers)


async def test_no_request_notices_and_the_next_keeper_adopts_both_processes(gateway, servers):
    before = gateway.status
    answered = 0
    stopping = asyncio.Event()

    async def ask() -> None:
        nonlocal answered
        while not stopping.is_set():
            assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
            answered += 1

    async def answers(count: int) -> None:
        enough = answered + count
        await until(lambda: answered >= enough or client.done())

    servers[0].chunk_s = 0.01
    client = asyncio.create_task(ask())
    stream = gateway.http.post(before.url + COMPLETIONS, json=STREAM)
    async with stream as running:
        await answers(5)
        await kill_keeper(gateway)
        await answers(5)
        await restart(gateway, servers[0])
        await answers(5)
        chunks, done = read_stream(await running.read())
    stopping.set()
    await client
    assert (text_of(chunks), done) == (expected_text("hello", 90), True)
    after = gateway.status
    assert after.keeper_pid != before.keeper_pid
    assert (after.haproxy_pid, after.relay_pid) == (before.haproxy_pid, before.relay_pid)
    assert (after.port, after.relay_starts) == (before.port, before.relay_starts)
    assert after.counters.requests >= before.counters.requests + 10


async def test_the_next_keeper_keeps_what_it_has_adopted(gateway, servers):
    await kill_keeper(gateway)
    await restart(gateway, servers[0])
    adopted = gateway.status
    for name in ("relay", "haproxy"):
        old = getattr(adopted, f"{name}_pid")
        os.kill(old, signal.SIGKILL)

        async def replaced(name=name, old=old) -> bool:
            return getattr(await gateway.refresh(), f"{name}_pid") not in (old, None)

        await until_async(replaced)
        assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
    assert gateway.status.relay_starts == adopted.relay_starts + 1
    assert gateway.status.haproxy_starts == adopted.haproxy_starts + 1
    await gateway.configure(member_of(servers[1]))
    assert (await gateway.post(COMPLETIONS, PLAIN))[1]["name"] == "b"


async def test_what_has_changed_meanwhile_is_in_force_after_the_adoption(gateway, servers):
    await gateway.configure(member_of(servers[0]), key_hashes={hash_key("first"): "KEY"})
    haproxy = (await gateway.refresh()).haproxy_pid
    await kill_keeper(gateway)
    gateway.options = GatewayOptions(
        **{**gateway.options.as_json(), "key_hashes": {hash_key("second"): "KEY"}}
    )
    await restart(gateway, servers[0])
    assert gateway.status.haproxy_pid == haproxy, "keys are replaced in the one that runs"
    for key, expected in (("first", 401), ("second", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await gateway.post(COMPLETIONS, PLAIN, headers=headers))[0] == expected
    await kill_keeper(gateway)
    gateway.options = gateway.first_options
    await restart(gateway, servers[0])
    assert gateway.status.haproxy_pid != haproxy, "without keys it has another configuration"
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200


async def test_what_an_adopted_relay_reports_is_in_the_log(gateway, servers):
    await kill_keeper(gateway)
    await restart(gateway, servers[0])
    log = gateway.folder / "gateway.log"
    size = log.stat().st_size
    servers[0].die_before_answer = 1
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
    await until(lambda: f"under {COMPLETIONS}" in log.read_text()[size:])


async def test_a_killed_relay_and_keeper_cost_the_connections_but_not_the_port(gateway, servers):
    before = gateway.status
    await kill_keeper(gateway)
    os.kill(before.relay_pid, signal.SIGKILL)
    await restart(gateway, servers[0])
    assert gateway.status.port == before.port
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
    found = find_orphans(gateway.folder, DEPLOYMENT, gateway.instance)
    assert before.haproxy_pid not in [process.pid for process in found]


async def test_an_owner_learns_of_the_keepers_death_from_its_connection(gateway):
    waiting = asyncio.create_task(gateway.client.wait_exit())
    await kill_keeper(gateway)
    async with asyncio.timeout(60):
        await waiting
        await gateway.client.wait_exit()  # there is none any more


async def test_a_relay_of_another_instance_is_not_adopted(gateway):
    await kill_keeper(gateway)
    gateway.instance, own = "0" * 16, gateway.instance
    try:
        with pytest.raises(NodeError, match="another start"):
            await asyncio.to_thread(gateway.start)
    finally:
        gateway.instance = own


async def test_a_stop_without_a_keeper_lets_running_requests_finish(tmp_path, servers):
    running = RunningGateway(tmp_path / "g", GatewayOptions(port=free_port(), drain_s=60.0))
    try:
        await asyncio.to_thread(running.start, servers[0])
        await running.open(servers[0])
        servers[0].chunk_s = 0.01
        async with running.http.post(running.status.url + COMPLETIONS, json=STREAM) as answer:
            await kill_keeper(running)
            marks = (running.folder, DEPLOYMENT, running.instance)
            pids = {process.pid for process in find_orphans(*marks)}
            assert pids == {running.status.haproxy_pid, running.status.relay_pid}
            stopping = asyncio.create_task(asyncio.to_thread(stop_orphans, *marks, 60.0))
            chunks, done = read_stream(await answer.read())
        assert (text_of(chunks), done) == (expected_text("hello", 90), True)
        assert await stopping is True
        assert find_marked(DEPLOYMENT, instance=running.instance) == []
        await running.http.close()
    finally:
        await asyncio.to_thread(running.kill)


def test_a_folder_without_a_relay_gives_none(tmp_path: Path):
    assert adopt_relay(tmp_path / "none", "i") is None
    assert find_orphans(tmp_path, DEPLOYMENT, "i") == []
    assert stop_orphans(tmp_path, DEPLOYMENT, "i") is True
