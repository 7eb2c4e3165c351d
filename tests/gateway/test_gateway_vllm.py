"""Streams of real vLLM on CPU, continued after the death of their engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from relay_harness import RunningRelay, read_stream, text_of, until
from vllm_servers import VllmServer, start_vllm

from raylaunch.gateway.gateway_messages import Member

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1500)]

WORDS = ("hello the quick", "dog jumps over", "two small servers", "one cluster answer")
LENGTH = {"model": "tiny", "temperature": 0, "max_tokens": 600}
REQUESTS = [
    *(("/v1/completions", {**LENGTH, "prompt": words}) for words in WORDS),
    *(
        ("/v1/chat/completions", {**LENGTH, "messages": [{"role": "user", "content": words}]})
        for words in WORDS
    ),
]


@pytest.fixture(scope="module")
def vllm_servers(tmp_path_factory) -> Iterator[tuple[VllmServer, VllmServer]]:
    folder = tmp_path_factory.mktemp("vllm")
    pair = (start_vllm(folder, 28811), start_vllm(folder, 28812))
    try:
        for server in pair:
            server.await_ready()
        yield pair
    finally:
        for server in pair:
            server.kill()


async def test_streams_of_a_killed_engine_continue_with_the_same_text(relay, vllm_servers):
    """No controller takes the dead server out here: the relay itself sees that it is dead."""
    await check_continuation(relay, *vllm_servers)


async def check_continuation(relay: RunningRelay, dying: VllmServer, other: VllmServer) -> None:
    undisturbed = [
        text_of((await stream_from(relay, other.url, path, body))[0]) for path, body in REQUESTS
    ]
    relay.configure(Member("a", dying.url))
    received = [bytearray() for _ in REQUESTS]
    streams = [
        asyncio.create_task(collect(relay, path, body, sink))
        for (path, body), sink in zip(REQUESTS, received, strict=True)
    ]
    plain = asyncio.create_task(relay.post(*REQUESTS[0]))
    await until(lambda: all(sink.count(b"\n\n") > 5 for sink in received))
    relay.configure(Member("a", dying.url), Member("b", other.url))
    dying.kill_engine()
    await asyncio.gather(*streams)
    results = [read_stream(bytes(sink)) for sink in received]
    assert [text_of(chunks) for chunks, _ in results] == undisturbed
    assert all(done for _, done in results)
    status, answer = await plain
    assert (status, answer["choices"][0]["text"]) == (200, undisturbed[0])
    assert relay.counting.continued > 0
    assert relay.counting.broken == 0


async def collect(relay: RunningRelay, path: str, body: dict, sink: bytearray) -> None:
    async with relay.client.post(relay.url + path, json={**body, "stream": True}) as answer:
        async for data in answer.content.iter_any():
            sink += data


async def stream_from(relay: RunningRelay, url: str, path: str, body: dict):
    async with relay.client.post(url + path, json={**body, "stream": True}) as answer:
        return read_stream(await answer.read())
