"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 120


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One page, with all that it logged and requested."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1000)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            data = message.json()
            if data.get("id") in self._answers:
                self._answers.pop(data["id"]).set_result(data)
            self._take(data.get("method", ""), data.get("params", {}))

    def _take(self, method: str, given: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.problems.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.problems.append(given["entry"]["text"])

    async def call(self, method: str, **given: object) -> dict[str, Any]:
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": given, "sessionId": self._session}
        await self._socket.send_json(message)
        async with asyncio.timeout(DEADLINE_S):
            data = await answer
        assert "error" not in data, data
        return data["result"]

    async def open(self, address: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def run(self, script: str) -> Any:
        done = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def wait_for(self, script: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        async with asyncio.timeout(DEADLINE_S):
            while not (value := await self.run(script)):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        return value


@contextlib.asynccontextmanager
async def open_browser(program: str, folder: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile in `folder`, and end it by its process group's leader."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        place = folder / "DevToolsActivePort"
        async with asyncio.timeout(DEADLINE_S):
            while not (place.exists() and len(place.read_text().split()) == 2):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        port, path = place.read_text().split()
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            yield await _new_page(socket)
    finally:
        process.terminate()
        await process.wait()


async def _new_page(socket: aiohttp.ClientWebSocketResponse) -> Page:
    async def ask(number: int, method: str, **given: object) -> dict[str, Any]:
        await socket.send_json({"id": number, "method": method, "params": given})
        while (data := await socket.receive_json()).get("id") != number:
            pass
        return data["result"]

    target = await ask(1, "Target.createTarget", url="about:blank")
    found = await ask(2, "Target.attachToTarget", targetId=target["targetId"], flatten=True)
    page = Page(socket, found["sessionId"])
    page.listening = asyncio.create_task(page.listen())
    return page
