"""A whole gateway: keeper, HAProxy and relay as processes, in front of dummy servers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import psutil
import pytest
from certificates import make_certificate
from dummy_server import expected_text
from gateway_harness import DEPLOYMENT, RunningGateway, free_port, until_async
from relay_harness import member_of, read_stream, text_of, until

from raylaunch.errors import BusyError, NodeError
from raylaunch.gateway.gateway_client import connect_gateway
from raylaunch.gateway.gateway_messages import GatewayOptions, hash_key
from raylaunch.gateway.keeper_socket import listen_for_clients
from raylaunch.node.process.process_markers import find_marked

COMPLETIONS = "/v1/completions"
PLAIN = {"model": "tiny", "prompt": "hello", "max_tokens": 12}
STREAM = {**PLAIN, "max_tokens": 90, "temperature": 0, "stream": True}


@pytest.fixture
async def gateway(shared_gateway, servers) -> AsyncIterator[RunningGateway]:
    """The shared gateway, in front of the first server."""
    await shared_gateway.open(servers[0])
    yield shared_gateway
    await shared_gateway.http.close()


@pytest.fixture
async def own_gateway(tmp_path, servers) -> AsyncIterator[RunningGateway]:
    """A gateway that the test may stop."""
    running = RunningGateway(tmp_path / "g", GatewayOptions(port=free_port(), drain_s=5.0))
    try:
        await asyncio.to_thread(running.start, servers[0])
        await running.open(servers[0])
        yield running
        await running.http.close()
    finally:
        await asyncio.to_thread(running.kill)


async def test_requests_streams_and_websockets_pass(gateway, servers):
    status, answer = await gateway.post(COMPLETIONS, PLAIN)
    assert (status, answer["choices"][0]["text"]) == (200, expected_text("hello", 12))
    async with gateway.http.post(gateway.status.url + COMPLETIONS, json=STREAM) as stream:
        chunks, done = read_stream(await stream.read())
    assert (text_of(chunks), done) == (expected_text("hello", 90), True)
    async with gateway.http.ws_connect(gateway.status.url + "/v1/realtime") as websocket:
        await websocket.send_str("hello")
        assert await websocket.receive_str() == "a: hello"


async def test_its_files_are_private_and_its_processes_marked(gateway):
    status = gateway.status
    assert gateway.folder.stat().st_mode & 0o777 == 0o700
    pids = {status.keeper_pid, status.haproxy_pid, status.relay_pid}
    marked = find_marked(DEPLOYMENT, instance=gateway.instance)
    assert pids <= {process.pid for process in marked}
    keeper = psutil.Process(status.keeper_pid)
    assert keeper.ppid() != os.getpid()
    assert os.getsid(status.keeper_pid) != os.getsid(0)


async def test_a_killed_haproxy_refuses_no_connection(gateway):
    for _ in range(3):
        before = await gateway.refresh()
        haproxy = psutil.Process(before.haproxy_pid)
        haproxy.kill()
        await asyncio.to_thread(psutil.wait_procs, [haproxy], 60)
        assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
        assert (await gateway.refresh()).haproxy_starts == before.haproxy_starts + 1


async def test_a_killed_relay_fails_no_request(gateway):
    """Four clients ask without a pause, and without trying again."""
    answered = 0
    stopping = asyncio.Event()

    async def ask() -> None:
        nonlocal answered
        while not stopping.is_set():
            assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
            answered += 1

    clients = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        for _ in range(3):
            enough = answered + 20
            await until(lambda enough=enough: answered >= enough or any(map(is_done, clients)))
            await kill_relay(gateway)
    finally:
        stopping.set()
        await asyncio.gather(*clients)


async def kill_relay(gateway: RunningGateway) -> None:
    async def runs() -> bool:
        return (await gateway.refresh()).relay_pid is not None

    await until_async(runs)
    os.kill(gateway.status.relay_pid, signal.SIGKILL)


def is_done(task: asyncio.Task[None]) -> bool:
    return task.done()


async def test_held_requests_survive_the_relays_death(gateway, servers):
    await gateway.configure(member_of(servers[0], "down"))
    asked = [asyncio.create_task(gateway.post(COMPLETIONS, PLAIN)) for _ in range(5)]

    async def held() -> bool:
        return (await gateway.refresh()).counters.held == 5

    await until_async(held)
    await kill_relay(gateway)
    await until_async(held)
    await gateway.configure(member_of(servers[0]))
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 5


async def test_another_start_of_the_same_instance_adopts(gateway, servers):
    before = gateway.status
    again = await asyncio.to_thread(gateway.start, *servers)
    status = again.status()
    assert (status.keeper_pid, status.relay_pid) == (before.keeper_pid, before.relay_pid)
    assert [member.id for member in status.members] == ["a", "b"]


async def test_another_instance_in_the_same_folder_is_refused(gateway):
    gateway.instance, own = "0" * 16, gateway.instance
    with pytest.raises(BusyError):
        await asyncio.to_thread(gateway.start)
    gateway.instance = own


async def test_two_starts_at_the_same_moment_share_one_keeper(tmp_path, servers):
    running = RunningGateway(tmp_path / "g", GatewayOptions(port=free_port()))
    try:
        clients = await asyncio.gather(
            *(asyncio.to_thread(running.start, servers[0]) for _ in range(2))
        )
        assert len({client.status().keeper_pid for client in clients}) == 1
    finally:
        await asyncio.to_thread(running.kill)


async def test_two_gateways_on_one_machine_take_two_ports(gateway, own_gateway, servers):
    taken = GatewayOptions(port=gateway.status.port, drain_s=5.0)
    listener = listen_for_clients(taken.address, taken.port)
    assert listener.getsockname()[1] > gateway.status.port
    listener.close()
    await own_gateway.configure(member_of(servers[1]))
    assert (await gateway.post(COMPLETIONS, PLAIN))[1]["name"] == "a"
    assert (await own_gateway.post(COMPLETIONS, PLAIN))[1]["name"] == "b"


@pytest.mark.parametrize("keeper", ["alive", "killed"])
async def test_without_an_owner_the_gateway_stops_after_its_grace(own_gateway, servers, keeper):
    await own_gateway.configure(member_of(servers[0]), orphan_grace_s=0.5)
    if keeper == "killed":
        os.kill(own_gateway.status.keeper_pid, signal.SIGKILL)
    await until(lambda: not find_marked(DEPLOYMENT, instance=own_gateway.instance))
    assert connect_gateway(own_gateway.folder) is None
    port = own_gateway.status.port
    # A process that exits loses its environment before its sockets.
    await until(lambda: not accepts(port))
    left = {file.name for file in own_gateway.folder.iterdir()}
    assert left <= {"gateway.log", "haproxy.cfg", "keeper.lock"}


async def test_stop_lets_running_requests_finish_and_refuses_new_ones(own_gateway, servers):
    servers[0].chunk_s = 0.01
    stream = own_gateway.http.post(own_gateway.status.url + COMPLETIONS, json=STREAM)
    async with stream as answer:
        stopped = asyncio.create_task(asyncio.to_thread(own_gateway.client.stop, 60.0))
        await until(lambda: not accepts(own_gateway.status.port))
        chunks, done = read_stream(await answer.read())
    assert (text_of(chunks), done) == (expected_text("hello", 90), True)
    assert await stopped is True
    assert find_marked(DEPLOYMENT, instance=own_gateway.instance) == []
    assert not (own_gateway.folder / "keeper.sock").exists()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_stop_cuts_what_does_not_finish_in_time(own_gateway, servers):
    servers[0].answer_s = 600
    asked = asyncio.create_task(own_gateway.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    assert await asyncio.to_thread(own_gateway.client.stop, 0.2) is False
    with pytest.raises((aiohttp.ClientError, AssertionError)):
        assert (await asked)[0] == 200
    assert find_marked(DEPLOYMENT, instance=own_gateway.instance) == []


async def test_drain_waits_for_a_members_requests(gateway, servers):
    servers[0].answer_s = 0.3
    asked = asyncio.create_task(gateway.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    await gateway.configure(member_of(servers[0], "draining"), member_of(servers[1]))
    assert await asyncio.to_thread(gateway.client.drain, ["a"], 0.0) is False
    assert await asyncio.to_thread(gateway.client.drain, ["a"], 60.0) is True
    assert (await asked)[0] == 200


async def test_keys_are_checked_rotated_and_not_passed_on(gateway, servers):
    await gateway.configure(member_of(servers[0]), key_hashes={hash_key("first"): "KEY_ONE"})
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 401
    for wrong in ("Bearer second", "Basic first", "first", "Bearer ", "Bearer first first"):
        headers = {"Authorization": wrong}
        status, answer = await gateway.post(COMPLETIONS, PLAIN, headers=headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    first = {"Authorization": "Bearer first"}
    assert (await gateway.post(COMPLETIONS, PLAIN, headers=first))[0] == 200
    assert "Authorization" not in servers[0].headers[0]
    haproxy = (await gateway.refresh()).haproxy_pid
    await asyncio.to_thread(gateway.client.rotate_keys, {"KEY_TWO": "second"})
    assert (await gateway.post(COMPLETIONS, PLAIN, headers=first))[0] == 401
    second = {"Authorization": "Bearer second"}
    assert (await gateway.post(COMPLETIONS, PLAIN, headers=second))[0] == 200
    assert (await gateway.refresh()).haproxy_pid == haproxy
    async with gateway.http.get(gateway.status.url + "/health") as health:
        assert health.status == 200
    assert len(servers[0].requests) == 2
    for file in gateway.folder.iterdir():
        assert not file.is_file() or b"second" not in file.read_bytes()


async def test_rotated_keys_survive_haproxys_death(gateway, servers):
    await gateway.configure(member_of(servers[0]), key_hashes={hash_key("first"): "KEY_ONE"})
    await asyncio.to_thread(gateway.client.rotate_keys, {"KEY_TWO": "second"})
    os.kill((await gateway.refresh()).haproxy_pid, signal.SIGKILL)
    for key, expected in (("first", 401), ("second", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await gateway.post(COMPLETIONS, PLAIN, headers=headers))[0] == expected


async def test_a_key_has_a_rate_limit(gateway, servers):
    keys = {hash_key("first"): "KEY_ONE", hash_key("second"): "KEY_TWO"}
    await gateway.configure(member_of(servers[0]), key_hashes=keys, rate_limit_per_key=5)
    first = {"Authorization": "Bearer first"}
    answers = [await gateway.post(COMPLETIONS, PLAIN, headers=first) for _ in range(7)]
    assert [status for status, _ in answers] == [200] * 5 + [429] * 2
    second = {"Authorization": "Bearer second"}
    assert (await gateway.post(COMPLETIONS, PLAIN, headers=second))[0] == 200


async def test_tls_is_terminated(tmp_path, gateway, servers):
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    await gateway.configure(member_of(servers[0]), certificate=str(certificate), key=str(key))
    await gateway.refresh()
    assert gateway.status.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=certificate)
    status, _ = await gateway.post(COMPLETIONS, PLAIN, ssl=trusting)
    assert status == 200
    make_certificate(tmp_path, "127.0.0.1")
    await gateway.configure(member_of(servers[0]))
    renewed = ssl.create_default_context(cafile=certificate)
    assert (await gateway.post(COMPLETIONS, PLAIN, ssl=renewed))[0] == 200


@pytest.mark.parametrize("problem", ["key-mismatch", "expired", "missing"])
async def test_a_wrong_certificate_changes_nothing(tmp_path, gateway, servers, problem):
    begins = datetime.now(UTC) - timedelta(days=9 if problem == "expired" else 0)
    certificate, key = make_certificate(tmp_path / "one", "127.0.0.1", begins=begins)
    if problem == "key-mismatch":
        _, key = make_certificate(tmp_path / "two", "127.0.0.1")
    if problem == "missing":
        certificate = tmp_path / "none.pem"
    with pytest.raises(NodeError, match=problem):
        await gateway.configure(member_of(servers[0]), certificate=str(certificate), key=str(key))
    os.kill((await gateway.refresh()).haproxy_pid, signal.SIGKILL)
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200


async def test_a_body_of_a_gigabyte_is_refused_by_its_length(gateway, servers):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.status.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n{")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    writer.close()
    assert servers[0].requests == []


SMUGGLED = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}",
    "length and chunks": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "hidden chunks": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "blank before colon": b"Content-Length : 2\r\n\r\n{}",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "folded header": b"X-A: 1\r\n Content-Length: 60\r\n\r\n",
    "bare CR": b"X-A: 1\rContent-Length: 60\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_smuggled_request_never_becomes_a_second_one(gateway, servers, name):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.status.port)
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + SMUGGLED[name] + inner)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    statuses = [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1")]
    # Either refused, or both sides see the same end of the first request.
    assert statuses[0] == b"400" or len(statuses) == len(servers[0].paths)


async def test_a_client_that_sends_a_byte_a_second_never_reaches_a_server(gateway, servers):
    """The limit itself takes 30 s: only its being set is read here."""
    config = (gateway.folder / "haproxy.cfg").read_text()
    assert "http-request wait-for-body time 30s" in config
    assert "timeout http-request 30s" in config
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.status.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    assert (await gateway.post(COMPLETIONS, PLAIN))[0] == 200
    assert len(servers[0].requests) == 1
    writer.close()


async def test_a_body_of_8_mb_passes_and_is_sent_again(gateway, servers):
    servers[0].die_before_answer = 1
    body = {**PLAIN, "prompt": "x" * (8 << 20)}
    assert (await gateway.post(COMPLETIONS, body))[0] == 200
    assert servers[0].requests == [body, body]


async def test_a_cancelled_request_is_cancelled_at_the_server(gateway, servers):
    servers[0].answer_s = 600
    asked = asyncio.create_task(gateway.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    asked.cancel()
    await until(lambda: servers[0].cancelled == 1)


async def test_errors_of_the_gateway_have_the_form_of_openai(gateway, servers):
    await gateway.configure(member_of(servers[0], "down"), hold_s=0.1)
    status, answer = await gateway.post(COMPLETIONS, PLAIN)
    assert status == 503
    assert set(answer["error"]) == {"message", "type", "param", "code"}
