"""The relay process: behind HAProxy on a unix socket, in front of the groups.

Run as `python -m raylaunch.gateway.relay.relay_process FD`, the number of an inherited listening
socket. While the relay is started again, requests wait in its backlog. Commands and replies are
JSON lines on stdin and stdout. At the end of stdin the keeper is gone, and the relay exits.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import aiohttp
from aiohttp import web

from raylaunch.gateway.gateway_messages import (
    MESSAGE_LIMIT,
    GatewayOptions,
    read_member,
    read_options,
)
from raylaunch.gateway.openai_errors import GatewayError, no_group_ready
from raylaunch.gateway.relay.forwarder import ClientGoneError, Forwarder, make_session
from raylaunch.gateway.relay.member_table import MemberTable
from raylaunch.gateway.relay.request_body import BodyMemory, read_body, read_exchange
from raylaunch.gateway.relay.websocket_bridge import bridge

log = logging.getLogger(__name__)

HEALTH = frozenset({"/health", "/ping"})
"""Answered here: the question is whether this address can answer, not whether one server can."""
SHUTDOWN_S = 1.0
BACKLOG = 4096


class Relay:
    """The HTTP handler, and the commands of the keeper."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.options = GatewayOptions()
        self.members = MemberTable(self.options, time.monotonic)
        self.forwarder = Forwarder(self.members, session, time.monotonic)
        self.memory = BodyMemory()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of a client."""
        counting = self.members.counting
        if request.path in HEALTH:
            return self._health()
        counting.requests += 1
        try:
            return await self._answer(request)
        except GatewayError as error:
            counting.failed += 1
            return web.Response(
                status=error.status,
                body=error.body(),
                content_type="application/json",
                headers=error.headers,
            )
        except (ClientGoneError, asyncio.CancelledError):
            counting.cancelled += 1
            raise

    def _health(self) -> web.Response:
        if self.members.has_ready():
            return web.Response()
        error = no_group_ready(0)
        return web.Response(status=503, body=error.body(), content_type="application/json")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            deadline = time.monotonic() + self.options.hold_s
            return await bridge(request, self.members, self.session, self.options, deadline)
        with self.memory.account(self.options.hold_bytes) as account:
            body = await read_body(request, self.options, account)
            exchange = read_exchange(request, body, self.options)
            return await self.forwarder.forward(request, exchange)

    async def command(self, message: Mapping[str, Any]) -> object:
        """Run one command of the keeper; return its result as JSON."""
        match message:
            case {"do": "configure"}:
                self._configure(message)
                return None
            case {"do": "drain", "ids": ids, "timeout_s": timeout_s}:
                return await self.members.drained(ids, timeout_s)
            case _:
                return {
                    "counters": asdict(self.members.counting),
                    "members": [asdict(member) for member in self.members.status()],
                }

    def _configure(self, message: Mapping[str, Any]) -> None:
        if "options" in message:
            self.options = read_options(message["options"])
            self.members.set_options(self.options)
        if "members" in message:
            self.members.configure([read_member(member) for member in message["members"]])


async def serve(listener: socket.socket) -> None:
    """Serve until stdin is closed or SIGTERM comes."""
    async with make_session() as session:
        relay = Relay(session)
        server = web.Server(relay.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        control = asyncio.create_task(_follow_commands(relay, runner, listener))
        control.add_done_callback(lambda _task: stopped.set())
        await stopped.wait()
        control.cancel()
        await runner.cleanup()


async def _follow_commands(relay: Relay, runner: web.ServerRunner, listener: socket.socket) -> None:
    """Run commands; listen as soon as the first one has said what to serve."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MESSAGE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    site: web.SockSite | None = None
    while line := await reader.readline():
        message = json.loads(line)
        task = asyncio.create_task(_run(relay, message))
        running.add(task)
        task.add_done_callback(running.discard)
        if site is None:
            await task
            site = web.SockSite(runner, listener, backlog=BACKLOG)
            await site.start()


async def _run(relay: Relay, message: Mapping[str, Any]) -> None:
    try:
        reply = {"id": message["id"], "result": await relay.command(message)}
    except (ValueError, KeyError, TypeError) as error:
        reply = {"id": message["id"], "error": str(error)}
    # One short line at a time: the keeper reads always, so this does not block.
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the relay on the socket that is the first argument."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s relay: %(message)s")
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
