"""The HTTP client against the stand-in: answers, failures as values, and what must never leave it."""

import asyncio
import json
import re
import signal
import socket

import pytest
from standin_servers import free_port

from raylaunch.vllm_api.vllm_client import VllmClient
from raylaunch.vllm_api.vllm_metrics import RankCounters


@pytest.fixture
async def client_of():
    """Clients that are closed at the end of the test."""
    clients = []

    def make(server, **more):
        clients.append(VllmClient(server if isinstance(server, str) else server.url, **more))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def mute_server():
    """A server that takes connections and sends `reply`, then nothing: (url, set_reply)."""
    replies = {"bytes": b""}

    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(replies["bytes"])
        await reader.read()  # until the client gives up
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", lambda data: replies.update(bytes=data)
    server.close()


async def test_a_healthy_pair_answers_everything(servers, client_of):
    primary, _ = servers.pair()
    client = client_of(primary.url + "/v1/")
    health = await client.health()
    assert (health.status, health.ok, health.detail) == (200, True, "")
    assert health.latency_s > 0
    assert (await client.models()).names == ("tiny",)
    first, second = await client.complete("tiny"), await client.complete("tiny", "hi", max_tokens=5)
    assert (first.ok, first.completion_tokens) == (True, 1)
    assert second.text.startswith(first.text)
    ranks = (await client.metrics()).ranks
    assert ranks == {
        0: RankCounters(prompt_tokens=1, generation_tokens=1, finished=1),
        1: RankCounters(prompt_tokens=1, generation_tokens=5, finished=1),
    }


async def test_chat(servers, client_of):
    server = servers.serve("--served-model-name", "tiny")
    answer = await client_of(server).chat(
        "tiny", [{"role": "user", "content": "Who are you?"}], max_tokens=4
    )
    assert answer.ok
    assert len(answer.text.split()) == answer.completion_tokens == 4


async def test_calls_share_one_connection(servers, client_of):
    server = servers.serve("--served-model-name", "tiny")
    client = client_of(server)
    for _ in range(3):
        await client.health()
        await client.complete("tiny")
    server.says(r"(?s)(POST.*){3}")
    assert len(set(re.findall(r"127\.0\.0\.1:(\d+) - ", server.log))) == 1


async def test_nobody_listens(client_of):
    client = client_of(f"http://127.0.0.1:{free_port()}")
    for answer in (
        await client.health(),
        await client.models(),
        await client.metrics(),
        await client.complete("m"),
    ):
        assert not answer.ok
        assert answer.status is None
        assert "ConnectError" in answer.detail


async def test_a_stopped_server_is_a_time_out(servers, client_of):
    server = servers.serve()
    client = client_of(server)
    assert (await client.health()).ok
    server.stop()
    answer = await client.health(timeout_s=0.2)
    assert (answer.status, answer.detail) == (None, "no answer within 0.2 s")
    assert answer.latency_s >= 0.2
    server.kill(signal.SIGCONT)
    assert (await client.health()).ok


async def test_a_dead_server_after_a_good_answer_is_a_value_too(servers, client_of):
    server = servers.serve()
    client = client_of(server)
    assert (await client.health()).ok
    server.end()
    assert (await client.health()).status is None


async def test_an_answer_that_drips_still_times_out(client_of, mute_server):
    url, reply = mute_server
    reply(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nsome")
    answer = await client_of(url).health(timeout_s=0.2)
    assert (answer.status, answer.detail) == (None, "no answer within 0.2 s")


async def test_something_else_on_the_port(client_of, mute_server):
    url, reply = mute_server
    client = client_of(url)
    reply(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    assert "RemoteProtocolError" in (await client.health()).detail
    page = b"<html>hello</html>"
    reply(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
    answer = await client.complete("m")
    assert (answer.status, answer.ok) == (200, False)
    assert "no completion in the answer: <html>hello" in answer.detail
    assert (await client.models()).names == ()
    assert (await client.metrics()).ranks == {}


async def test_unreadable_metrics_have_a_detail(client_of, mute_server):
    url, reply = mute_server
    text = b'vllm:num_requests_running{engine="0"} many\n'
    reply(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
    answer = await client_of(url).metrics()
    assert not answer.ok
    assert answer.detail.startswith("unreadable metrics")


async def test_the_servers_own_words_are_in_the_detail(servers, client_of):
    answer = await client_of(servers.serve()).complete("no-such-model")
    assert answer.status == 404
    assert "The model `no-such-model` does not exist." in answer.detail


async def test_the_key_opens_and_is_shown_nowhere(servers, client_of):
    server = servers.serve("--served-model-name", "tiny", "--api-key", "s3cret")
    refused = await client_of(server, api_key="wr0ng").models()
    assert (refused.status, refused.names) == (401, ())
    client = client_of(server, api_key="s3cret")
    answers = [await client.models(), await client.complete("tiny"), await client.complete("other")]
    assert [answer.status for answer in answers] == [200, 200, 404]
    assert "s3cret" not in repr(client) + str(vars(client)) + repr(answers)
    assert "wr0ng" not in repr(refused)


async def test_proxy_variables_change_nothing(servers, client_of, monkeypatch):
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, url)
        assert (await client_of(servers.serve()).health(timeout_s=20)).ok


async def test_a_dead_engine_shows_as_500(servers, client_of):
    primary, headless = servers.pair("--enable-expert-parallel")
    headless.end()
    client = client_of(primary)
    assert (await client.health()).ok
    assert (await client.complete("tiny")).status == 500


def test_answers_print_as_json_lines():
    from dataclasses import asdict

    from raylaunch.vllm_api.vllm_client import MetricsAnswer

    answer = MetricsAnswer(200, 0.1, "", {0: RankCounters(running=1)})
    assert json.loads(json.dumps(asdict(answer)))["ranks"]["0"]["running"] == 1
