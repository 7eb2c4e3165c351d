"""The relay in front of dummy servers that die, hang, refuse and answer with errors."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from dummy_server import expected_text
from relay_harness import member_of, read_stream, text_of, until
from yarl import URL

from raylaunch.gateway.gateway_messages import Member
from raylaunch.gateway.relay.forwarder import MAX_DEATHS

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
PLAIN = {"model": "tiny", "prompt": "hello", "max_tokens": 12}
GREEDY = {**PLAIN, "temperature": 0, "max_tokens": 90}
QUESTION = {
    "model": "tiny",
    "temperature": 0,
    "max_completion_tokens": 90,
    "messages": [{"role": "user", "content": "hello"}],
}


def server_asked(servers):
    return next(server for server in servers if server.requests)


async def test_a_request_reaches_a_server_and_its_answer_the_client(relay, servers):
    relay.configure(member_of(servers[0]))
    status, answer = await relay.post(COMPLETIONS, PLAIN)
    assert (status, answer["choices"][0]["text"]) == (200, expected_text("hello", 12))
    assert servers[0].requests == [PLAIN]


async def test_an_untouched_stream_reaches_the_client_as_it_is(relay, servers):
    relay.configure(member_of(servers[0]))
    chunks, done = await relay.stream(COMPLETIONS, PLAIN)
    async with relay.client.post(
        servers[0].url + COMPLETIONS, json={**PLAIN, "stream": True}
    ) as direct:
        expected, _ = read_stream(await direct.read())
    expected = [{**chunk, "id": "a-1"} for chunk in expected]
    assert (chunks, done) == (expected, True)


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, GREEDY), (CHAT, QUESTION)])
async def test_a_stream_that_could_be_continued_looks_as_without_a_gateway(
    relay, servers, path, body
):
    relay.configure(member_of(servers[0]))
    chunks, done = await relay.stream(path, body)
    async with relay.client.post(servers[0].url + path, json={**body, "stream": True}) as direct:
        expected, _ = read_stream(await direct.read())
    assert (chunks, done) == ([{**chunk, "id": "a-1"} for chunk in expected], True)
    assert servers[0].requests[0]["return_token_ids"] is True


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/embeddings"])
async def test_a_request_whose_server_died_is_sent_again(relay, servers, path):
    for server in servers:
        server.die_before_answer = 1
    relay.configure(*map(member_of, servers))
    status, _ = await relay.post(path, PLAIN)
    assert (status, relay.counting.retries) == (200, 2)


async def test_a_body_of_8_mb_is_sent_again(relay, servers):
    servers[0].die_before_answer = servers[1].die_before_answer = 1
    relay.configure(*map(member_of, servers))
    body = {**PLAIN, "prompt": "x" * (8 << 20)}
    status, _ = await relay.post(COMPLETIONS, body)
    assert status == 200
    assert servers[0].requests[-1] == body


async def test_a_request_without_repetition_is_not_sent_twice(relay, servers):
    servers[0].die_before_answer = 1
    relay.configure(member_of(servers[0]))
    status, answer = await relay.post("/v1/load_lora_adapter", {"lora_name": "x"})
    assert (status, answer["error"]["code"], len(servers[0].requests)) == (502, "server_died", 1)


async def test_a_request_under_which_servers_die_gives_up(relay, servers):
    servers[0].die_before_answer = 100
    relay.configure(member_of(servers[0]))
    status, answer = await relay.post(COMPLETIONS, PLAIN)
    assert (status, answer["error"]["code"], len(servers[0].requests)) == (502, "server_died", 5)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_servers_own_error_is_passed_on_and_not_repeated(relay, servers, status):
    servers[0].status = servers[1].status = status
    relay.configure(*map(member_of, servers))
    got, answer = await relay.post(COMPLETIONS, PLAIN)
    assert got == status
    assert answer == {"error": {"message": server_asked(servers).name}}
    assert sum(len(server.requests) for server in servers) == 1


@pytest.mark.parametrize(("healthy", "text"), [(False, "a"), (True, ENGINE_DEAD)])
async def test_an_error_of_a_server_that_is_dead_is_repeated(relay, servers, healthy, text):
    servers[0].status, servers[0].healthy, servers[0].error_text = 500, healthy, text
    both = [member_of(server) for server in servers]
    relay.configure(*both)
    assert (await relay.post(COMPLETIONS, PLAIN))[0] == 200
    assert [len(server.requests) for server in servers] == [1, 1]
    # Called ready again, it is not suspected any more.
    relay.configure(member_of(servers[0], "down"), both[1])
    relay.configure(*both)
    chunks, done = await relay.stream(COMPLETIONS, PLAIN)
    assert (text_of(chunks), done) == (expected_text("hello", 12), True)
    assert [len(server.requests) for server in servers] == [2, 2]


async def test_a_request_waits_while_a_server_that_is_called_ready_has_a_dead_engine(
    relay, servers
):
    dead = servers[0]
    dead.status, dead.error_text = 500, ENGINE_DEAD
    relay.configure(member_of(dead))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    # More tries than a request has that kills servers.
    await until(lambda: len(dead.requests) > MAX_DEATHS + 1)
    relay.configure(member_of(dead, "down"))
    dead.status = 200
    relay.configure(member_of(dead))
    assert (await asked)[0] == 200


async def test_an_empty_200_is_repeated(relay, servers):
    servers[0].empty = True
    relay.configure(*map(member_of, servers))
    status, answer = await relay.post(COMPLETIONS, PLAIN)
    assert (status, answer["name"]) == (200, "b")
    assert servers[0].requests == [PLAIN]


async def test_a_refused_connection_goes_to_the_other_server(relay, servers):
    await servers[0].stop()
    relay.configure(*map(member_of, servers))
    answers = await asyncio.gather(*(relay.post(COMPLETIONS, PLAIN) for _ in range(10)))
    assert {status for status, _ in answers} == {200}


async def test_requests_wait_while_no_group_is_ready(relay, servers):
    relay.configure(member_of(servers[0], "down"))
    asked = [asyncio.create_task(relay.post(COMPLETIONS, PLAIN)) for _ in range(5)]
    await until(lambda: relay.counting.held == 5)
    relay.configure(member_of(servers[0]))
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 5
    assert (relay.counting.held, relay.counting.held_total) == (0, 5)
    assert relay.counting.held_s > 0


async def test_requests_wait_while_a_server_that_is_called_ready_refuses(relay, servers):
    port = servers[0].port
    await servers[0].stop()
    relay.configure(member_of(servers[0]))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: relay.counting.held == 1)
    await servers[0].start(port)
    assert (await asked)[0] == 200


async def test_a_request_waits_no_longer_than_it_may(relay):
    relay.configure(hold_s=0.2)
    status, answer = await relay.post(COMPLETIONS, PLAIN)
    assert (status, answer["error"]["code"]) == (503, "no_group_ready")


async def test_nothing_waits_for_groups_that_have_all_failed(relay, servers):
    relay.configure(member_of(servers[0], "down"))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: relay.counting.held == 1)
    relay.configure(member_of(servers[0], "failed"))
    for status, answer in (await asked, await relay.post(COMPLETIONS, PLAIN)):
        assert (status, answer["error"]["code"]) == (503, "all_groups_failed")
    relay.configure(member_of(servers[0]))
    assert (await relay.post(COMPLETIONS, PLAIN))[0] == 200, "a command has started it again"


async def test_a_full_hold_queue_refuses_and_says_when_to_try_again(relay, servers):
    relay.configure(member_of(servers[0], "down"), hold_requests=2)
    held = [asyncio.create_task(relay.post(COMPLETIONS, PLAIN)) for _ in range(2)]
    await until(lambda: relay.counting.held == 2)
    async with relay.client.post(relay.url + COMPLETIONS, json=PLAIN) as refused:
        answer = await refused.json()
    assert (refused.status, answer["error"]["code"]) == (503, "hold_queue_full")
    assert int(refused.headers["Retry-After"]) > 0
    relay.configure(member_of(servers[0]))
    assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]


async def test_bodies_that_wait_are_bounded_in_bytes(relay, servers):
    relay.configure(member_of(servers[0], "down"), hold_bytes=3000)
    body = {**PLAIN, "prompt": "x" * 2000}
    held = asyncio.create_task(relay.post(COMPLETIONS, body))
    await until(lambda: relay.counting.held == 1)
    status, answer = await relay.post(COMPLETIONS, body)
    assert (status, answer["error"]["code"]) == (503, "hold_queue_full")
    relay.configure(member_of(servers[0]))
    assert (await held)[0] == 200
    assert relay.relay.memory.used == 0


async def test_a_hundred_streams_survive_a_server_that_dies_under_each(relay, servers):
    servers[0].die_after_chunks = 25
    servers[0].chunk_s = servers[1].chunk_s = 0.001
    relay.configure(*map(member_of, servers))
    answers = await asyncio.gather(
        *(
            relay.stream(*((COMPLETIONS, GREEDY), (CHAT, QUESTION))[number % 2])
            for number in range(100)
        )
    )
    assert all(done for _, done in answers)
    texts = {text_of(chunks) for chunks, _ in answers}
    assert (len(answers), texts) == (100, {expected_text("hello", 90)})
    assert relay.counting.continued >= 50


@pytest.mark.parametrize("state", ["down", "draining"])
async def test_health_is_answered_for_the_address(relay, servers, state):
    relay.configure(member_of(servers[0]))
    async with relay.client.get(relay.url + "/health") as ready:
        assert ready.status == 200
    relay.configure(member_of(servers[0], state))
    async with relay.client.get(relay.url + "/health") as gone:
        assert gone.status == 503


async def test_metrics_do_not_wait_for_a_group(relay, servers):
    relay.configure(member_of(servers[0], "down"))
    async with relay.client.get(relay.url + "/metrics") as answer:
        assert answer.status == 503


async def test_every_route_and_query_passes(relay, servers):
    relay.configure(member_of(servers[0]))
    async with relay.client.get(URL(relay.url + "/v1/models?a=%2Fb&c=d", encoded=True)) as answer:
        assert (await answer.json())["path"] == "/v1/models?a=%2Fb&c=d"


async def test_a_cancelled_request_is_cancelled_at_the_server(relay, servers):
    servers[0].answer_s = 600
    relay.configure(member_of(servers[0]))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    asked.cancel()
    await until(lambda: servers[0].cancelled == 1)
    assert relay.counting.cancelled == 1
    assert relay.relay.members.in_flight() == 0


async def test_a_cancelled_stream_is_cancelled_at_the_server(relay, servers):
    servers[0].chunk_s = 0.01
    relay.configure(member_of(servers[0]))
    body = {**GREEDY, "stream": True, "max_tokens": 3_000}
    async with relay.client.post(relay.url + COMPLETIONS, json=body) as answer:
        await answer.content.readany()
    await until(lambda: servers[0].cancelled == 1)


async def test_a_held_request_whose_client_went_away_is_not_sent(relay, servers):
    relay.configure(member_of(servers[0], "down"))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: relay.counting.held == 1)
    asked.cancel()
    await until(lambda: relay.counting.held == 0)
    relay.configure(member_of(servers[0]))
    assert (await relay.post(COMPLETIONS, {**PLAIN, "user": "second"}))[0] == 200
    assert [body.get("user") for body in servers[0].requests] == ["second"]


async def test_a_server_that_hangs_loses_its_requests_when_it_is_taken_out(relay, servers):
    servers[0].answer_s = 600
    relay.configure(member_of(servers[0]))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    relay.configure(member_of(servers[0], "down"), member_of(servers[1]))
    status, answer = await asked
    assert (status, answer["name"]) == (200, "b")


async def test_a_draining_server_keeps_its_requests_and_gets_no_new_one(relay, servers):
    servers[0].chunk_s = 0.005
    relay.configure(member_of(servers[0]))
    running = asyncio.create_task(relay.stream(COMPLETIONS, GREEDY))
    await until(lambda: servers[0].requests)
    relay.configure(member_of(servers[0], "draining"), member_of(servers[1]))
    assert not await relay.relay.members.drained(["a"], 0)
    assert (await relay.post(COMPLETIONS, PLAIN))[1]["name"] == "b"
    assert await relay.relay.members.drained(["a"], 60)
    chunks, done = await running
    assert (text_of(chunks), done) == (expected_text("hello", 90), True)
    assert (servers[0].finished, relay.counting.continued) == (1, 0)


async def test_a_member_that_is_gone_from_the_list_loses_its_requests(relay, servers):
    servers[0].answer_s = 600
    relay.configure(member_of(servers[0]))
    asked = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
    await until(lambda: servers[0].requests)
    relay.configure(member_of(servers[1]))
    assert (await asked)[1]["name"] == "b"


async def test_a_large_body_is_refused_before_a_server_sees_it(relay, servers):
    relay.configure(member_of(servers[0]), max_body_bytes=2000)

    async def endless():
        while True:
            yield b"x" * 1000

    async with relay.client.post(relay.url + COMPLETIONS, data=endless()) as chunked:
        assert chunked.status == 413
    assert (await relay.post(COMPLETIONS, {**PLAIN, "prompt": "x" * 3000}))[0] == 413
    assert servers[0].requests == []


async def test_a_body_that_does_not_arrive_is_refused(relay, servers):
    relay.configure(member_of(servers[0]), body_s=0.2)

    async def slow():
        yield b"{"
        await asyncio.sleep(600)

    async with relay.client.post(relay.url + COMPLETIONS, data=slow()) as answer:
        assert answer.status == 408
    assert servers[0].requests == []


async def test_json_that_is_none_is_left_to_the_server(relay, servers):
    relay.configure(member_of(servers[0]))
    async with relay.client.post(relay.url + COMPLETIONS, data=b"[" * 5_000) as answer:
        assert answer.status == 400


async def test_a_websocket_is_bridged(relay, servers):
    relay.configure(member_of(servers[0]))
    async with relay.client.ws_connect(
        relay.url + "/v1/realtime", headers={"X-Mine": "1"}
    ) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "a: hello"
        relay.configure(member_of(servers[0], "down"))
        message = await socket.receive()
    assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1012)
    assert servers[0].headers[0]["X-Mine"] == "1"


async def test_hop_by_hop_headers_stay_here(relay, servers):
    relay.configure(member_of(servers[0]))
    headers = {"Connection": "x-private", "X-Private": "1", "TE": "trailers", "X-Kept": "1"}
    await relay.post(COMPLETIONS, PLAIN, headers=headers)
    got = {name.lower() for name in servers[0].headers[0]}
    assert "x-kept" in got
    assert not got & {"x-private", "te"}


async def test_the_servers_own_key_replaces_the_clients(relay, servers):
    relay.configure(member_of(servers[0]), key_hashes={"00": "CLIENT_KEY"}, server_key="inner")
    await relay.post(COMPLETIONS, PLAIN, headers={"Authorization": "Bearer outer"})
    assert servers[0].headers[0]["Authorization"] == "Bearer inner"


async def test_without_keys_of_its_own_the_gateway_passes_the_clients_key_on(relay, servers):
    relay.configure(member_of(servers[0]))
    await relay.post(COMPLETIONS, PLAIN, headers={"Authorization": "Bearer outer"})
    assert servers[0].headers[0]["Authorization"] == "Bearer outer"


async def test_a_rank_is_reached_by_its_header(relay, servers):
    relay.configure(member_of(servers[0], ranks=(0, 1)), member_of(servers[1], ranks=(2, 3)))
    for _ in range(4):
        await relay.post(COMPLETIONS, PLAIN, headers={"X-data-parallel-rank": "2"})
    assert (len(servers[0].requests), len(servers[1].requests)) == (0, 4)
    assert {one["X-data-parallel-rank"] for one in servers[1].headers} == {"2"}


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, GREEDY), (CHAT, QUESTION)])
@pytest.mark.parametrize("chunks_before", [1, 2, 3, 40])
async def test_a_broken_stream_continues_on_another_server(
    relay, servers, path, body, chunks_before
):
    servers[0].die_after_chunks = chunks_before
    relay.configure(*map(member_of, servers))
    chunks, done = await relay.stream(path, body)
    assert len(servers[0].requests) == 1
    assert (text_of(chunks), done) == (expected_text("hello", 90), True)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {
        "text_completion" if path == COMPLETIONS else "chat.completion.chunk"
    }
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert relay.counting.continued == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda one: one.name)
async def test_streams_of_a_process_that_is_killed_or_hangs_continue(relay, servers, number):
    program = Path(__file__).with_name("dummy_server.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, "0", "c", "0.05", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        other = Member(id="c", url=f"http://127.0.0.1:{port}")
        relay.configure(other)
        streams = [asyncio.create_task(relay.stream(COMPLETIONS, GREEDY)) for _ in range(4)]
        await until(lambda: relay.relay.members.in_flight(["c"]) == 4)
        plain = asyncio.create_task(relay.post(COMPLETIONS, PLAIN))
        process.send_signal(number)
        relay.configure(replace(other, state="down"), member_of(servers[0]))
        texts = [text_of(chunks) for chunks, done in await asyncio.gather(*streams) if done]
        assert texts == [expected_text("hello", 90)] * 4
        assert (await plain)[0] == 200
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
