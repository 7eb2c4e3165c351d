"""The relay process: behind HAProxy on a unix socket, in front of the groups.

Run as `python -m raylaunch.gateway.relay.relay_process FOLDER CLIENTS LISTENER OWNER`: the
gateway's folder, and three inherited sockets: HAProxy's listening one, the relay's own, and a
connection to the keeper. While the relay is started again, requests wait in its socket's backlog.
It outlives its keeper (`relay_owners.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from raylaunch.gateway.gateway_messages import GatewayOptions, read_member, read_options
from raylaunch.gateway.openai_errors import GatewayError, no_group_ready
from raylaunch.gateway.relay.forwarder import ClientGoneError, Forwarder, make_session
from raylaunch.gateway.relay.member_table import MemberTable
from raylaunch.gateway.relay.relay_owners import Owners
from raylaunch.gateway.relay.request_body import BodyMemory, read_body, read_exchange
from raylaunch.gateway.relay.websocket_bridge import bridge
from raylaunch.node.process.process_markers import DEPLOYMENT, INSTANCE

log = logging.getLogger(__name__)

HEALTH = frozenset({"/health", "/ping"})
"""Answered here: the question is whether this address can answer, not whether one server can."""
SHUTDOWN_S = 1.0
BACKLOG = 4096
KEPT = ("before", "starts")


class Relay:
    """The HTTP handler, and the commands of the keeper."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.options = GatewayOptions()
        self.members = MemberTable(self.options, time.monotonic)
        self.forwarder = Forwarder(self.members, session, time.monotonic)
        self.memory = BodyMemory()
        self.kept: dict[str, Any] = {}
        """What the keeper wants to give to the next one."""

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
        self.kept = {name: message[name] for name in KEPT if name in message}
        if "options" in message:
            self.options = read_options(message["options"])
            self.members.set_options(self.options)
        if "members" in message:
            self.members.configure([read_member(member) for member in message["members"]])


async def serve(folder: Path, clients: int, listener: socket.socket, owner: socket.socket) -> None:
    """Serve until SIGTERM comes, or until there was no owner for the grace."""
    async with make_session() as session:
        relay = Relay(session)
        server = web.Server(relay.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        is_open = False

        async def on_command(message: Mapping[str, Any]) -> object:
            nonlocal is_open
            result = await relay.command(message)
            if not is_open and message.get("do") == "configure":
                # The first command has said what to serve.
                is_open = True
                await site.start()
            return result

        owners = Owners(
            folder,
            (clients, listener.fileno()),
            lambda: {**relay.kept, "instance": os.environ.get(INSTANCE, "")},
            on_command,
            lambda: relay.options.orphan_grace_s,
        )
        following = asyncio.create_task(owners.follow(owner))
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        following.add_done_callback(lambda _task: stopped.set())
        await stopped.wait()
        if following.done():
            following.result()
            await asyncio.to_thread(_stop_gateway, folder)
        following.cancel()
        await runner.cleanup()


def _stop_gateway(folder: Path) -> None:
    """Stop the rest of a gateway without an owner, and remove its files."""
    # Only needed here: a relay with a keeper never loads it.
    from raylaunch.gateway.gateway_orphans import remove_all, stop_orphans

    log.warning("no keeper has come: the gateway stops")
    stop_orphans(folder, os.environ.get(DEPLOYMENT, ""), os.environ.get(INSTANCE, ""))
    remove_all(folder)


def main() -> int:
    """Run the relay with the folder and the sockets of the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s relay: %(message)s")
    # HAProxy's signal for a soft stop: it may be sent to all processes of a gateway.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    clients, listener, owner = map(int, sys.argv[2:5])
    asyncio.run(serve(folder, clients, socket.socket(fileno=listener), socket.socket(fileno=owner)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
