"""Two dummy servers, a relay in the test's own process, and a gateway for a whole module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from dummy_server import DummyServer
from gateway_harness import RunningGateway, free_port
from relay_harness import RunningRelay, running_relay

from raylaunch.gateway.gateway_messages import GatewayOptions


@pytest.fixture
async def servers() -> AsyncIterator[tuple[DummyServer, DummyServer]]:
    pair = (await DummyServer("a").start(), await DummyServer("b").start())
    yield pair
    for server in pair:
        await server.stop()


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory) -> Iterator[RunningGateway]:
    """One gateway for the tests that leave it running: a start takes seconds.

    The path of its folder is longer than that of a unix socket may be.
    """
    folder = tmp_path_factory.mktemp("gateway")
    running = RunningGateway(folder / ("g" * 120), GatewayOptions(port=free_port(), drain_s=5.0))
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
async def relay() -> AsyncIterator[RunningRelay]:
    async with running_relay() as running:
        yield running
