"""A real gateway and a controller whose groups are servers of this process: no client notices.

Restarts, upgrades (beside the old groups and in their place), refused ones and deaths, each under
plain and streaming clients that never retry, whose texts are compared.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from fake_controllers import FakeBackend, attempts, await_status, creator, finish

from raylaunch.node.process.process_markers import terminate_marked
from raylaunch.plan.launch_plan import Place, Ports
from raylaunch.recipe.load import change_recipe
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller.group import group_supervisor
from raylaunch.supervise.state import Phase

sys.path.append(str(Path(__file__).parent.parent / "gateway"))
from dummy_server import DummyServer, expected_text

ray = pytest.importorskip("ray")

SETTINGS = ("gateway.enabled=true", "gateway.port=28300", "gateway.drain_s=60")
TOKENS, CHUNK_S = 30, 0.01
DEADLINE_S = 240
MORE = 3
"""Answers of each kind that are awaited after each change."""


class ServingBackend(FakeBackend):
    """A group whose primary is a server that answers."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.server = DummyServer(self.name)
        self.server.chunk_s, self.server.keep = CHUNK_S, False

    async def plan(self, facts):
        await self.server.start()
        first, *others = self.plan_made.servers
        place = Place("127.0.0.1", "lo", node_id="node-0")
        first = replace(first, node=place, ports=Ports(self.server.port, 2))
        self.plan_made = replace(self.plan_made, servers=(first, *others))
        return await super().plan(facts)

    async def stop_servers(self, grace_s: float) -> list[str]:
        await self.server.stop()
        return await super().stop_servers(grace_s)

    async def die(self) -> None:
        await self.server.stop()
        self.kill_server(0)


class Clients:
    """Plain and streaming clients without retries; `failures` names what they should not see."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/completions"
        self.failures: list[str] = []
        self.answered = {"plain": 0, "stream": 0}
        self._news = asyncio.Condition()
        self._tasks = [
            asyncio.create_task(self._run(kind, ask))
            for kind, ask in (("plain", self._plain), ("stream", self._stream))
            for _ in range(2)
        ]

    async def _run(self, kind, ask) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                body = {"model": "m", "prompt": "count", "max_tokens": TOKENS, "temperature": 0}
                try:
                    text = await ask(session, body)
                except (aiohttp.ClientError, ValueError, KeyError) as error:
                    text = repr(error)
                if text != expected_text("count", TOKENS):
                    self.failures.append(f"{kind}: {text}")
                async with self._news:
                    self.answered[kind] += 1
                    self._news.notify_all()
                await asyncio.sleep(CHUNK_S)

    async def _plain(self, session, body) -> str:
        async with session.post(self.url, json=body) as answer:
            return (await answer.json())["choices"][0]["text"]

    async def _stream(self, session, body) -> str:
        text = ""
        async with session.post(self.url, json={**body, "stream": True}) as answer:
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    return text
                if data:
                    text += json.loads(data)["choices"][0]["text"]
        raise ValueError(f"a stream without an end: {text}")

    async def answer_more(self) -> None:
        """Wait until both kinds had some more answers."""
        wanted = {kind: count + MORE for kind, count in self.answered.items()}
        async with self._news:
            await self._news.wait_for(
                lambda: all(self.answered[kind] >= count for kind, count in wanted.items())
            )

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def create(monkeypatch):
    made = []
    # A socket below it may have a path of 107 bytes, which pytest's own folders exceed.
    home = Path(tempfile.mkdtemp(prefix="rl-"))
    new = creator(monkeypatch, home)
    monkeypatch.setattr(group_supervisor, "RayGroup", ServingBackend)
    monkeypatch.setattr(ray, "util", SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))

    def create(*settings):
        made.append(new(*settings))
        return made[-1]

    yield create
    for one in made:
        terminate_marked("test", instance=one._request.instance, grace_s=5.0)
    shutil.rmtree(home)


async def upgrade(one, clients, setting: str, verdict: str = ""):
    await one.upgrade(change_recipe(one._record.journal.loaded, [setting]), {})
    status = await await_status(one, lambda status: status.awaits or not status.operation)
    while status.operation:
        await clients.answer_more()
        await one.confirm(verdict)
        status = await await_status(one, lambda now: not now.operation or now.awaits)
    await clients.answer_more()
    return status


def test_no_client_notices_a_change_or_a_death(create, monkeypatch):
    async def live():
        one = create(*SETTINGS)
        await one.begin({})
        await await_status(one, lambda status: status.phase is Phase.READY and status.endpoint)
        clients = Clients((await one.status()).endpoint)
        await clients.answer_more()
        await one.restart(None)
        assert (await finish(one)).operation_error is None
        await clients.answer_more()

        for number, is_room in enumerate((True, False), 2):
            monkeypatch.setattr(placement, "has_spare", lambda *_, room=is_room, **__: room)
            status = await upgrade(one, clients, f"args.max-num-seqs={number}")
            assert status.operation_error is None
            assert list(attempts(status)) == [f"serve-0.g{number}", f"serve-1.g{number}"]
            status = await upgrade(one, clients, "args.max-num-seqs=9", "too slow")
            assert status.operation_error["why"] == "too slow"
            assert list(attempts(status)) == [f"serve-0.g{number}", f"serve-1.g{number}"]

        await one._groups.find("serve-1.g3").backend.die()
        await await_status(one, lambda status: attempts(status)["serve-1.g3"] == 2)
        await await_status(one, lambda status: status.phase is Phase.READY)
        await clients.answer_more()
        await one.scale(1)
        await finish(one)
        await one._groups.find("serve-0.g3").backend.die()  # the only one: requests wait
        await await_status(one, lambda status: attempts(status)["serve-0.g3"] >= 2)
        await clients.answer_more()
        assert clients.failures == []
        await clients.close()
        await one.stop()

    asyncio.run(asyncio.wait_for(live(), DEADLINE_S))
