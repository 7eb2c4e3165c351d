"""Serves `GET /metrics` over HTTP/1.1, one request a connection, on the controller's event loop.

A web framework would cost the controller a quarter of a second at its start and keep idle clients
for minutes. Here every limit is in sight: time, size and number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

log = logging.getLogger(__name__)

REQUEST_S = 5.0
"""Within which a request must have arrived, and within which its answer must have been taken."""
HEAD_BYTES = 16 << 10
MAX_CONNECTIONS = 64
"""Further connections are closed: a Prometheus and its replicas need a handful."""
FULL_PERIOD_S = 600.0
"""Least time between two reports that connections were closed: each is an event that is kept."""
TRIED_PORTS = 20
PLAIN = "text/plain; charset=utf-8"

Render = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From the header `Accept` to the text and its content type."""


class MetricsServer:
    """The listener of the endpoint.

    Args:
        render: Makes the answer.
        token: What a scraper must send as its bearer token; "" for nothing.
        on_full: Called when connections are closed because too many are open.
    """

    def __init__(
        self, render: Render, token: str = "", on_full: Callable[[], object] | None = None
    ) -> None:
        self.token = token
        self._render = render
        self._on_full = on_full
        self._full_at = float("-inf")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self, host: str, port: int, avoided: Collection[int] = ()) -> None:
        """Listen on the first free port from `port` on.

        Args:
            host: Address of this host.
            port: The first of the 20 that are tried.
            avoided: Ports that are left to others.

        Raises:
            OSError: none of them is free, or the address is not one of this host.
        """
        for candidate in range(port, min(port + TRIED_PORTS, 65536)):
            if candidate in avoided:
                continue
            try:
                self._server = await asyncio.start_server(
                    self._serve, host, candidate, limit=HEAD_BYTES
                )
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                self.port = self._server.sockets[0].getsockname()[1]
                return
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            self._report_full()
            return
        self._connections.add(writer)
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, kind, body = await self._answer(head.decode("latin-1"))
            async with asyncio.timeout(REQUEST_S):
                writer.write(_head_of(status, kind, len(body)) + body)
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            # Too slow, too long, or gone: an answer would not arrive.
            writer.transport.abort()
        finally:
            self._connections.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _report_full(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._on_full is not None and now - self._full_at >= FULL_PERIOD_S:
            self._full_at = now
            self._on_full()

    async def _answer(self, head: str) -> tuple[HTTPStatus, str, bytes]:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        if not self._is_allowed(headers.get("authorization", "")):
            return HTTPStatus.UNAUTHORIZED, PLAIN, b"a bearer token is needed\n"
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, PLAIN, b"GET only\n"
        if path != "/metrics":
            return HTTPStatus.NOT_FOUND, PLAIN, b"see /metrics\n"
        try:
            body, kind = await self._render(headers.get("accept", ""))
        except Exception:  # a bug costs one scrape, not the listener
            log.exception("a scrape failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, PLAIN, b"see the controller's log\n"
        return HTTPStatus.OK, kind, body

    def _is_allowed(self, authorization: str) -> bool:
        if not self.token:
            return True
        given = authorization.encode("latin-1")
        return hmac.compare_digest(given, f"Bearer {self.token}".encode())


def _head_of(status: HTTPStatus, kind: str, length: int) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    if status is HTTPStatus.UNAUTHORIZED:
        lines.append("WWW-Authenticate: Bearer")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
