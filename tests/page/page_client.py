"""The page as a browser gets it, without a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp

DEADLINE_S = 60


def root_of(link: str) -> str:
    return link.partition("?")[0]


async def enter(browser: aiohttp.ClientSession, link: str) -> str:
    """Open the link; return the address of the page."""
    async with browser.get(link) as answer:
        assert answer.status == 200
        return str(answer.url)


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, object]]:
    """The server-sent events of a response."""
    name = ""
    async for raw in answer.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def read_until(events: AsyncIterator[tuple[str, object]], wanted: str) -> object:
    async with asyncio.timeout(DEADLINE_S):
        async for name, data in events:
            if name == wanted:
                return data
    raise AssertionError(f"the stream ended without {wanted}")
