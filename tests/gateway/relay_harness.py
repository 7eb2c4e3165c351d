"""A relay in the test's own process, and what a client reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from aiohttp import web
from dummy_server import DummyServer

from raylaunch.gateway.gateway_messages import Member
from raylaunch.gateway.relay.forwarder import make_session
from raylaunch.gateway.relay.relay_process import Relay

DEADLINE_S = 60.0


@dataclass
class RunningRelay:
    relay: Relay
    url: str
    client: aiohttp.ClientSession

    def configure(self, *members: Member, **options: Any) -> None:
        current = replace(self.relay.options, **options)
        message = {"do": "configure", "options": current.as_json()}
        self.relay._configure({**message, "members": [member.as_json() for member in members]})

    @property
    def counting(self):
        return self.relay.members.counting

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """The status and the JSON of one request."""
        async with self.client.post(self.url + path, json=body, **more) as answer:
            return answer.status, await answer.json(content_type=None)

    async def stream(self, path: str, body: Any) -> tuple[list[dict[str, Any]], bool]:
        """The chunks of one stream, and whether it has the end mark."""
        async with self.client.post(self.url + path, json={**body, "stream": True}) as answer:
            return read_stream(await answer.read())


@asynccontextmanager
async def running_relay() -> AsyncIterator[RunningRelay]:
    async with make_session() as session, aiohttp.ClientSession() as client:
        relay = Relay(session)
        server = web.Server(relay.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield RunningRelay(relay, url, client)
        await runner.cleanup()


def member_of(server: DummyServer, state: Any = "ready", **fields: Any) -> Member:
    return Member(id=server.name, url=server.url, state=state, **fields)


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  the condition is a counter of another component
            await asyncio.sleep(0.005)


def read_stream(raw: bytes) -> tuple[list[dict[str, Any]], bool]:
    events = [event for event in raw.decode().split("\n\n") if event]
    done = bool(events) and events[-1] == "data: [DONE]"
    if done:
        events.pop()
    return [json.loads(event.removeprefix("data: ")) for event in events], done


def text_of(chunks: list[dict[str, Any]]) -> str:
    parts = []
    for chunk in chunks:
        for choice in chunk.get("choices", []):
            parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return "".join(parts)
