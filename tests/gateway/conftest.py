"""Two dummy servers, and a relay in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from dummy_server import DummyServer
from relay_harness import RunningRelay, running_relay


@pytest.fixture
async def servers() -> AsyncIterator[tuple[DummyServer, DummyServer]]:
    pair = (await DummyServer("a").start(), await DummyServer("b").start())
    yield pair
    for server in pair:
        await server.stop()


@pytest.fixture
async def relay() -> AsyncIterator[RunningRelay]:
    async with running_relay() as running:
        yield running
