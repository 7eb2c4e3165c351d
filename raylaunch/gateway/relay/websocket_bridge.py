"""Connects a client's websocket with one of a server."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web
from yarl import URL

from raylaunch.gateway.gateway_messages import GatewayOptions
from raylaunch.gateway.openai_errors import GatewayError
from raylaunch.gateway.relay.balancer import Wish
from raylaunch.gateway.relay.forwarder import BROKEN
from raylaunch.gateway.relay.member_table import MemberTable
from raylaunch.gateway.relay.request_body import forwarded_headers

HANDSHAKE = frozenset(
    {
        *("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"),
        *("sec-websocket-accept", "sec-websocket-protocol"),
    }
)
SERVER_LOST = 1012
"""Close code "service restart" (IANA's registry of RFC 6455)."""


async def bridge(
    request: web.BaseRequest,
    members: MemberTable,
    session: aiohttp.ClientSession,
    options: GatewayOptions,
    deadline: float,
) -> web.WebSocketResponse:
    """Pass messages both ways until one side closes.

    Raises:
        GatewayError: No member took the connection.
    """
    lease = await members.acquire(Wish(), deadline)
    headers = forwarded_headers(request.headers, options)
    for name in HANDSHAKE:
        headers.popall(name, None)
    client: web.WebSocketResponse | None = None
    try:
        async with (
            members.attempt(lease),
            session.ws_connect(
                URL(lease.member.url + request.raw_path, encoded=True),
                headers=headers,
                protocols=_protocols(request),
                max_msg_size=options.max_body_bytes,
            ) as server,
        ):
            accepted = (server.protocol,) if server.protocol else ()
            client = web.WebSocketResponse(protocols=accepted, max_msg_size=options.max_body_bytes)
            await client.prepare(request)
            await _both_ways(client, server)
    except aiohttp.WSServerHandshakeError as error:
        raise GatewayError(error.status, "websocket_refused", error.message) from error
    except BROKEN as error:
        members.suspect(lease)
        if client is None:
            raise GatewayError(502, "server_died", "the server closed the websocket") from error
        await client.close(code=SERVER_LOST, message=b"the server was taken out")
    return client


def _protocols(request: web.BaseRequest) -> tuple[str, ...]:
    listed = request.headers.get("Sec-WebSocket-Protocol", "")
    return tuple(name.strip() for name in listed.split(",") if name.strip())


async def _both_ways(
    client: web.WebSocketResponse, server: aiohttp.ClientWebSocketResponse
) -> None:
    to_server = asyncio.create_task(_copy(client, server))
    to_client = asyncio.create_task(_copy(server, client))
    try:
        await asyncio.wait((to_server, to_client), return_when=asyncio.FIRST_COMPLETED)
    finally:
        to_server.cancel()
        to_client.cancel()
    await server.close(code=client.close_code or 1000)
    await client.close(code=server.close_code or 1000)


async def _copy(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        if message.type == aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
