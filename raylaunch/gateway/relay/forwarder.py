"""Sends a request to a member, and again to another one until there is an answer for the client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from raylaunch.gateway.gateway_messages import Member
from raylaunch.gateway.openai_errors import (
    GatewayError,
    error_event,
    no_group_ready,
    not_repeatable,
    server_died,
)
from raylaunch.gateway.relay.member_table import Lease, MemberTable
from raylaunch.gateway.relay.request_body import HOP_BY_HOP, Exchange
from raylaunch.gateway.relay.sse_events import DONE, ERROR, EventSplitter, payload
from raylaunch.gateway.relay.stream_record import StreamDivergedError, StreamRecord

log = logging.getLogger(__name__)

MAX_DEATHS = 5
"""A request under which servers die so often may be the cause: it must not kill every group."""
CONNECT_S = 3.0
HEALTH_S = 2.0
KEEP_ALIVE_S = 3.0
"""uvicorn closes an idle connection after 5 s; a request must not meet that."""
BUFFERED_BYTES = 16 << 20
"""Answers up to this size are passed on when they are complete."""
ENGINE_DEAD = b"EngineCore encountered an issue"
"""vLLM's EngineDeadError, which no server recovers from (vllm/v1/engine/exceptions.py)."""
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.IncompleteReadError)
"""What a dying server, or the lease of a member that was taken out, raises."""


class UnreachableError(Exception):
    """The member refused the connection: the request never reached it."""


class DiedError(Exception):
    """The member exited, or was taken out, before its answer was complete."""


class NotHealthyError(DiedError):
    """The member still answers, with an error, and can serve no more."""


class ClientGoneError(Exception):
    """The client closed its connection in the middle of its answer."""


@dataclass
class Delivery:
    """What the client has received so far."""

    request: web.BaseRequest
    exchange: Exchange
    deadline: float
    """Until when the request may wait for a member, on the loop's clock."""
    record: StreamRecord | None = None
    response: web.StreamResponse | None = None
    deaths: int = 0
    attempts: int = 0
    resumed: tuple[str, bytes] | None = None

    @property
    def begun(self) -> bool:
        """The client has the first byte of its answer."""
        return self.response is not None


def make_session() -> aiohttp.ClientSession:
    """Return the client side: no limits, no time-out but for the connection, bytes as they are."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class Forwarder:
    """One object for all requests of a relay."""

    def __init__(
        self,
        members: MemberTable,
        session: aiohttp.ClientSession,
        clock: Callable[[], float],
    ) -> None:
        self.members = members
        self.session = session
        self._clock = clock

    async def forward(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Return the answer, however many attempts it takes.

        Raises:
            GatewayError: There is no answer, and the client has no byte of one.
        """
        delivery = Delivery(request, exchange, self._hold_until())
        if exchange.rule is not None:
            delivery.record = StreamRecord(exchange.rule)
        while True:
            lease = await self._lease(delivery)
            if lease is None:
                return await self._close_broken(delivery, "no group was ready to continue")
            try:
                return await self._attempt(delivery, lease)
            except UnreachableError:
                self.members.suspect(lease)
                if not exchange.holdable:
                    delivery.deadline = min(delivery.deadline, self._clock() + CONNECT_S)
            except StreamDivergedError:
                return await self._close_broken(delivery, "another server's text differs")
            except DiedError as death:
                self.members.suspect(lease)
                if (answer := await self._after_death(delivery, lease, death)) is not None:
                    return answer

    def _hold_until(self) -> float:
        return self._clock() + self.members.options.hold_s

    async def _lease(self, delivery: Delivery) -> Lease | None:
        """Return a member's lease; None when a stream that has begun finds none."""
        if not delivery.exchange.holdable and not self.members.has_ready():
            raise no_group_ready(0)
        try:
            return await self.members.acquire(delivery.exchange.wish, delivery.deadline)
        except GatewayError:
            if delivery.begun:
                return None
            raise

    async def _after_death(
        self, delivery: Delivery, lease: Lease, death: DiedError
    ) -> web.StreamResponse | None:
        """Decide what follows: None for the next attempt, else the answer.

        Raises:
            GatewayError: The request may not be sent again.
        """
        if not (lease.suspect and isinstance(death, NotHealthyError)):
            # A server that was dead before this request reached it did not die of it.
            delivery.deaths += 1
        log.info("%s: %s under %s", lease.member.id, death, delivery.exchange.path)
        if delivery.begun:
            if delivery.record is None:
                return await self._close_broken(delivery, "the server exited")
            if delivery.record.complete:
                return await self._close_complete(delivery)
            if delivery.deaths >= MAX_DEATHS:
                return await self._close_broken(delivery, "the server exited again and again")
            self.members.counting.continued += 1
            delivery.deadline = self._hold_until()
            path, body = delivery.record.resume()
            delivery.resumed = None if path is None or body is None else (path, body)
            return None
        if not delivery.exchange.repeatable:
            raise not_repeatable()
        if delivery.deaths >= MAX_DEATHS:
            raise server_died(delivery.deaths)
        return None

    async def _attempt(self, delivery: Delivery, lease: Lease) -> web.StreamResponse:
        if delivery.attempts:
            self.members.counting.retries += 1
        delivery.attempts += 1
        try:
            async with (
                self.members.attempt(lease),
                self._send(delivery, lease.member) as upstream,
            ):
                if upstream.content_type == "text/event-stream":
                    return await self._stream(delivery, lease.member, upstream)
                return await self._pass_on(delivery, lease.member, upstream)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UnreachableError(str(error)) from error
        except BROKEN as error:
            reason = "was taken out" if lease.aborted else f"broke the connection ({error!r})"
            raise DiedError(reason) from error

    @contextlib.asynccontextmanager
    async def _send(
        self, delivery: Delivery, member: Member
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        exchange = delivery.exchange
        path, body = delivery.resumed or (exchange.path, exchange.body)
        headers = exchange.headers
        if not exchange.repeatable:
            # A pooled connection may be closed by the server at the same moment.
            headers = CIMultiDict([*headers.items(), ("Connection", "close")])
        async with self.session.request(
            exchange.method,
            URL(member.url + path, encoded=True),
            headers=headers,
            data=body or None,
            allow_redirects=False,
        ) as upstream:
            yield upstream

    async def _pass_on(
        self, delivery: Delivery, member: Member, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass a whole answer on. Only one that is complete reaches the client."""
        if delivery.begun:
            # The server refuses to continue (it may be of another version, or too full).
            return await self._close_broken(delivery, f"continuing got status {upstream.status}")
        repeatable = delivery.exchange.repeatable
        if (upstream.content_length or 0) > BUFFERED_BYTES:
            return await self._pass_through(delivery, upstream)
        body = await upstream.read()
        if upstream.status >= 500 and repeatable and await self._is_dead(member, body):
            raise NotHealthyError(f"answered {upstream.status} and is not healthy")
        must_have_body = delivery.exchange.method == "POST" and repeatable
        if upstream.status == 200 and not body and must_have_body:
            raise DiedError("answered 200 with an empty body")
        headers = _answer_headers(upstream)
        if delivery.exchange.method == "HEAD" and upstream.content_length is not None:
            headers["Content-Length"] = str(upstream.content_length)
        return web.Response(status=upstream.status, headers=headers, body=body)

    async def _pass_through(
        self, delivery: Delivery, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass a very large answer on while it arrives."""
        response = await self._begin(delivery, upstream)
        async for chunk in upstream.content.iter_any():
            await _write(response, chunk)
        await response.write_eof()
        return response

    async def _is_dead(self, member: Member, error: bytes) -> bool:
        """Return whether the server can answer no more, after an error of its own.

        It is asked itself: vLLM's /health knows its engines. While it shuts down, /health answers
        200 and a request gets the error of a dead engine (measured with the stand-in).
        """
        if ENGINE_DEAD in error:
            return True
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        try:
            async with self.session.get(f"{member.url}/health", timeout=timeout) as health:
                return health.status >= 500
        except BROKEN:
            return True

    async def _stream(
        self, delivery: Delivery, member: Member, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass events on until the end mark; a stream without one is broken."""
        splitter = EventSplitter()
        async for chunk in upstream.content.iter_any():
            out = bytearray()
            for event in splitter.feed(chunk):
                if event.startswith(ERROR) and await self._is_dead(member, event):
                    await self._write_events(delivery, upstream, out)
                    raise NotHealthyError("closed the stream with an error and is not healthy")
                if event == DONE:
                    await self._write_events(delivery, upstream, out + event + b"\n\n")
                    return await _finish(delivery)
                out += _for_client(delivery, event)
            await self._write_events(delivery, upstream, out)
        if delivery.exchange.path.partition("?")[0] not in _WITHOUT_END_MARK:
            raise DiedError("closed the stream without its end")
        await self._write_events(delivery, upstream, bytearray(splitter.rest))
        return await _finish(delivery)

    async def _write_events(
        self, delivery: Delivery, upstream: aiohttp.ClientResponse, out: bytes | bytearray
    ) -> None:
        if not out:
            return
        response = delivery.response or await self._begin(delivery, upstream)
        await _write(response, bytes(out))

    async def _begin(
        self, delivery: Delivery, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers=_answer_headers(upstream))
        delivery.response = response
        await response.prepare(delivery.request)
        return response

    async def _close_broken(self, delivery: Delivery, why: str) -> web.StreamResponse:
        """Close a stream that the client has begun to read with an error event."""
        self.members.counting.broken += 1
        assert delivery.response is not None
        if delivery.response.content_type != "text/event-stream":
            # A body that is cut off must not look complete.
            transport = delivery.request.transport
            if transport is not None:
                transport.close()
            return delivery.response
        message = f"the stream broke: {why}"
        await _write(delivery.response, error_event("stream_broken", message))
        return await _finish(delivery)

    async def _close_complete(self, delivery: Delivery) -> web.StreamResponse:
        """Close a stream whose server exited after the last chunk, before the end mark."""
        assert delivery.response is not None
        await _write(delivery.response, DONE + b"\n\n")
        return await _finish(delivery)


_WITHOUT_END_MARK = frozenset({"/v1/responses", "/v1/messages", "/invocations", "/generate"})
"""Streams of other dialects end with an event of their own."""


def _for_client(delivery: Delivery, event: bytes) -> bytes:
    data = payload(event)
    if delivery.record is None or data is None:
        return event + b"\n\n"
    try:
        chunk = delivery.record.feed(data)
    except ValueError:
        return event + b"\n\n"
    return b"" if chunk is None else b"data: " + chunk + b"\n\n"


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        await response.write(data)
    except ConnectionError as error:
        raise ClientGoneError from error


async def _finish(delivery: Delivery) -> web.StreamResponse:
    assert delivery.response is not None
    with contextlib.suppress(ConnectionError):
        await delivery.response.write_eof()
    return delivery.response


def _answer_headers(upstream: aiohttp.ClientResponse) -> CIMultiDict[str]:
    return CIMultiDict(
        (name, value) for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP
    )
