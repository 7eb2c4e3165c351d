"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 120
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the tests run as root, where Chromium refuses to have one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",  # a picture is taken without them, and would be laid out again
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}
TEXT_OF_KEY = {"Enter": "\r"}


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One page, with all that it logged and requested."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.statuses: list[int] = []

    def take(self, method: str, given: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Network.responseReceived":
            self.statuses.append(given["response"]["status"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.problems.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.problems.append(given["entry"]["text"])

    async def call(self, method: str, **given: object) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **given)

    async def open(self, address: str) -> None:
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

    async def resize(
        self, width: int, height: int, scale: float = 1, *, phone: bool = False
    ) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    async def press(self, key: str) -> None:
        """Press and release a key."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": TEXT_OF_KEY[key]} if key in TEXT_OF_KEY else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def picture(self, x: float, y: float, width: float, height: float) -> bytes:
        """Return a part of the page as PNG, in CSS pixels from its top left corner."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        done = await self.call(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(done["data"])


class Browser:
    """A connection to Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def listen(self) -> None:
        async for message in self._socket:
            data = message.json()
            if data.get("id") in self._answers:
                self._answers.pop(data["id"]).set_result(data)
            page = self._pages.get(data.get("sessionId", ""))
            if page is not None:
                page.take(data.get("method", ""), data.get("params", {}))

    async def call(self, method: str, session: str = "", **given: object) -> dict[str, Any]:
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        message: dict[str, object] = {"id": number, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        await self._socket.send_json(message)
        async with asyncio.timeout(DEADLINE_S):
            data = await answer
        assert "error" not in data, data
        return data["result"]

    @contextlib.asynccontextmanager
    async def open_page(self) -> AsyncIterator[Page]:
        """Open a page of its own: no cookies and nothing cached from another one."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        try:
            target = await self.call(
                "Target.createTarget", url="about:blank", browserContextId=context
            )
            attached = await self.call(
                "Target.attachToTarget", targetId=target["targetId"], flatten=True
            )
            page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            yield page
        finally:
            await self.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.asynccontextmanager
async def open_browser(program: str, folder: Path) -> AsyncIterator[Browser]:
    """Start a browser with a profile in `folder`, and stop it by its main process."""
    process = await asyncio.create_subprocess_exec(
        program,
        *OPTIONS,
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
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
            finally:
                listening.cancel()
    finally:
        process.terminate()
        await process.wait()
