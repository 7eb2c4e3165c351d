"""The listener of the metrics: who may read, and what bad clients cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from raylaunch.runtime.controller.monitoring import metrics_server
from raylaunch.runtime.controller.monitoring.metrics_server import MAX_CONNECTIONS, MetricsServer

LIMIT_S = 60


async def answer(accept: str) -> tuple[bytes, str]:
    return f"asked for {accept}\n".encode(), "text/plain"


async def opened(token: str = "", render=answer) -> MetricsServer:
    server = MetricsServer(render, token)
    await server.open("127.0.0.1", free_port())
    return server


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def ask(server: MetricsServer, text: str) -> str:
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(text.encode())
        reply = (await reader.read()).decode()
        writer.close()
    return reply


async def test_a_scrape_is_answered_and_the_connection_closed():
    server = await opened()
    reply = await ask(server, "GET /metrics?x=1 HTTP/1.1\r\nAccept: text/plain\r\n\r\n")
    head, _, body = reply.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert body == "asked for text/plain\n"
    server.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET / HTTP/1.1", "404"), ("POST /metrics HTTP/1.1", "405"), ("rubbish", "405")],
)
async def test_anything_else_is_refused(request_line, status):
    server = await opened()
    assert f"HTTP/1.1 {status}" in await ask(server, f"{request_line}\r\n\r\n")
    server.close()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", "401"),
        ("Authorization: Bearer wrong\r\n", "401"),
        ("Authorization: Bearer s3cret\r\n", "200"),
        ("authorization: Bearer s3cret\r\n", "200"),
    ],
)
async def test_a_token_is_asked_for_where_there_is_one(header, status):
    server = await opened("s3cret")
    assert f"HTTP/1.1 {status}" in await ask(server, f"GET /metrics HTTP/1.1\r\n{header}\r\n")
    server.close()


async def test_a_port_in_use_leads_to_the_next_one():
    first = await opened()
    second = MetricsServer(answer)
    await second.open("127.0.0.1", first.port)
    assert first.port < second.port <= first.port + 20
    first.close()
    second.close()


async def test_an_address_of_another_host_is_an_error():
    with pytest.raises(OSError, match="assign requested address"):
        await MetricsServer(answer).open("192.0.2.1", free_port())


async def test_idle_clients_are_dropped_and_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(metrics_server, "REQUEST_S", 0.2)
    server = await opened()
    idle = [
        await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS + 40)
    ]
    async with asyncio.timeout(LIMIT_S):
        for reader, _ in idle:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    assert "200 OK" in await ask(server, "GET /metrics HTTP/1.1\r\n\r\n")
    for _, writer in idle:
        writer.close()
    server.close()


async def test_a_thousand_connections_are_one_report_and_a_scrape_is_answered_after_them(
    monkeypatch,
):
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(metrics_server, "REQUEST_S", 600.0)
    reports: list[str] = []
    server = MetricsServer(answer, on_full=lambda: reports.append("full"))
    await server.open("127.0.0.1", free_port())
    kept = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    async with asyncio.timeout(LIMIT_S):
        for _ in range(1000):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert reports == ["full"]
        for _, writer in kept:
            writer.close()
        while server._connections:  # noqa: ASYNC110 - the listener has no event for it
            await asyncio.sleep(0.01)
    assert "200 OK" in await ask(server, "GET /metrics HTTP/1.1\r\n\r\n")
    server.close()


async def test_a_request_without_end_is_dropped():
    server = await opened()
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * (1 << 20))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    server.close()


async def test_a_bug_in_a_scrape_costs_one_answer():
    async def fail(_accept: str) -> tuple[bytes, str]:
        raise RuntimeError("bug")

    server = await opened(render=fail)
    for _ in range(2):
        reply = await ask(server, "GET /metrics HTTP/1.1\r\n\r\n")
        assert "HTTP/1.1 500" in reply
        assert "bug" not in reply
    server.close()
