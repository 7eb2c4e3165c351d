"""A whole gateway as processes, with its client and the membership that a test pushes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from dummy_server import DummyServer
from relay_harness import member_of

from raylaunch.gateway.gateway_client import GatewayClient, start_gateway
from raylaunch.gateway.gateway_messages import GatewayOptions, GatewayStatus
from raylaunch.node.process.process_markers import terminate_marked

DEPLOYMENT = "gateway-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_async(condition: Callable[[], Awaitable[object]]) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class RunningGateway:
    """Its processes may be shared by tests; `http` belongs to one test."""

    http: aiohttp.ClientSession

    def __init__(self, folder: Path, options: GatewayOptions) -> None:
        self.folder = folder
        self.first_options = options
        self.options = options
        self.instance = os.urandom(8).hex()

    def start(self, *servers: DummyServer) -> GatewayClient:
        self.client = start_gateway(
            self.folder,
            self.options,
            deployment=DEPLOYMENT,
            instance=self.instance,
            env=os.environ,
            members=[member_of(server) for server in servers],
        )
        self.status = self.client.status()
        return self.client

    async def open(self, *servers: DummyServer) -> None:
        """Prepare for one test: the first options, these servers, a connection for each request."""
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        self.options = self.first_options
        await self.configure(*map(member_of, servers))
        await self.refresh()

    async def configure(self, *members: Any, **options: Any) -> None:
        self.options = replace(self.options, **options)
        await asyncio.to_thread(self.client.configure, members, self.options)

    async def refresh(self) -> GatewayStatus:
        self.status = await asyncio.to_thread(self.client.status)
        return self.status

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        async with self.http.post(self.status.url + path, json=body, **more) as answer:
            return answer.status, await answer.json(content_type=None)

    def kill(self) -> None:
        """Kill what is left of it."""
        terminate_marked(DEPLOYMENT, instance=self.instance, grace_s=5.0)
