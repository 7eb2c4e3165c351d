"""Serves the page on loopback: a token that works once, server-sent events, perhaps actions.

A browser sends a cookie of 127.0.0.1 to every port of it, also to a server of another user of this
machine. So a session is a cookie and a path, both random: another server learns neither from a
request that it gets.

Without actions the page only reads. With them a request must also come from the page itself: a
browser names the origin of every POST, and a script cannot change that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from raylaunch.errors import BusyError, NodeError, RaylaunchError
from raylaunch.page.page_file import live_page, live_policy
from raylaunch.page.page_model import encode_value
from raylaunch.web.page_actions import ActionRequest, PageActions
from raylaunch.web.page_feed import PageFeed
from raylaunch.web.page_source import PageSource

HOST = "127.0.0.1"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names in a browser's request. Another one is that of a site that points its name to loopback."""
COOKIE = "raylaunch-page"
TOKEN_BYTES = 24
MAX_STREAMS = 32
"""Open streams of all browsers together; a page has one, and one more while a log is shown."""
KEEPALIVE_S = 10.0
WRITE_S = 30.0
"""A browser that has not read for so long is disconnected; it connects again by itself."""
SHUTDOWN_S = 0.5
MAX_LINES = 5000
LINES = 500
MAX_SERVER = 100_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Result = TypeVar("Result")

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": live_policy(),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageServer:
    """The page of one deployment, for the browser that has the link.

    Args:
        source: The deployment.
        token: Of the link; it works once.
        actions: What the page may do beside reading; None for nothing.
    """

    def __init__(self, source: PageSource, token: str, actions: PageActions | None = None) -> None:
        self._source = source
        self._token = token
        self._actions = actions
        self._sessions: dict[str, str] = {}
        """Path of a session -> its cookie."""
        # Threads of its own: those of asyncio would be waited for at the exit, up to the time-out
        # of a call to a controller that does not answer.
        self._threads = ThreadPoolExecutor(max_workers=MAX_STREAMS + 1)
        self._feed = PageFeed(source, self._in_thread)
        self._streams = 0
        self._runner: web.AppRunner | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, port: int) -> str:
        """Listen, and return the link.

        Args:
            port: 0 for any free one.

        Raises:
            NodeError: the port cannot be used.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 10)
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/", self._enter)
        app.router.add_get("/p/{session}/", self._page)
        app.router.add_get("/p/{session}/stream", self._stream)
        app.router.add_get("/p/{session}/log", self._log)
        app.router.add_post("/p/{session}/action", self._act)
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S, access_log=None
        )
        self._runner = runner
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise NodeError(
                f"the page cannot be served on {HOST} port {port}",
                why=error.strerror or str(error),
                todo="leave --port out: any free port is taken",
            ) from error
        self._publish_actions()
        self._reading = asyncio.create_task(self._feed.run())
        return f"http://{HOST}:{runner.addresses[0][1]}/?token={self._token}"

    async def closed(self) -> None:
        """Wait until the deployment is stopped, and say so on every open page."""
        assert self._reading is not None
        await self._reading
        if self._actions is not None:
            # The command that stopped it may still verify that nothing is left.
            await self._actions.finish()
        self._feed.finish()

    async def close(self) -> None:
        """Close every connection and stop listening."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._runner is not None:
            await self._runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- who may read --------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse names of other sites, and requests without a session."""
        if _host_of(request) not in LOOPBACK:
            raise web.HTTPForbidden(text="this page is served for loopback only\n")
        if request.path != "/" and not self._has_session(request):
            raise _unauthorized()
        return await handler(request)

    def _has_session(self, request: web.Request) -> bool:
        # From the path, not from the route: a request with another method has none.
        _, _, rest = request.path.partition("/p/")
        expected = self._sessions.get(rest.partition("/")[0], "")
        given = request.cookies.get(COOKIE, "")
        return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        """Exchange the token for a session, once."""
        given = request.query.get("token", "")
        known = self._token
        if not known or not hmac.compare_digest(given.encode(), known.encode()):
            raise _unauthorized()
        self._token = ""
        session = secrets.token_urlsafe(TOKEN_BYTES)
        cookie = secrets.token_urlsafe(TOKEN_BYTES)
        self._sessions[session] = cookie
        path = f"/p/{session}/"
        response = web.Response(status=303, headers={"Location": path})
        # Not "Strict": a link that is clicked on another site's page would lose the cookie.
        response.set_cookie(COOKIE, cookie, path=path, httponly=True, samesite="Lax")
        return response

    # -- what is read --------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        del request  # every session gets the same page
        return web.Response(text=live_page(), content_type="text/html")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Send the parts of the page, and each one again when it has changed."""
        with self._count_stream(), self._feed.follow():
            response = await _open_stream(request)
            sent = 0
            while True:
                for number, name, text in self._feed.newer(sent):
                    await _send(response, f"event: {name}\ndata: {text}\n\n")
                    sent = number
                if self._feed.is_finished:
                    return response
                if not await self._feed.wait(sent, KEEPALIVE_S):
                    await _send(response, ":\n\n")

    async def _log(self, request: web.Request) -> web.StreamResponse:
        """Send the last lines of a server's log, and new ones as they are written."""
        group = request.query.get("group", "")
        server = _number(request, "server", 0, MAX_SERVER)
        lines = _number(request, "lines", LINES, MAX_LINES)
        pieces = self._source.follow_log(group, server, lines)
        with self._count_stream():
            response = await _open_stream(request)
            while True:
                try:
                    piece = await self._in_thread(lambda: next(pieces, None))
                except RaylaunchError as error:
                    await _send(response, f"event: lost\ndata: {encode_value(error.what)}\n\n")
                    return response
                if piece is None:
                    return response
                await _send(response, f"event: lines\ndata: {piece}\n\n" if piece else ":\n\n")

    # -- what is done --------------------------------------------------------------------------

    async def _act(self, request: web.Request) -> web.StreamResponse:
        """Start an action that the page asks for."""
        if self._actions is None:
            raise web.HTTPForbidden(
                text="this page only reads: `raylaunch ui --allow-actions` serves one that acts\n"
            )
        if request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="an action is asked for by the page itself only\n")
        wanted = await _read_action(request)
        try:
            self._actions.start(wanted, self._publish_actions)
        except BusyError as error:
            return web.json_response(error.as_dict(), status=409)
        except RaylaunchError as error:
            return web.json_response(error.as_dict(), status=400)
        return web.json_response({}, status=202)

    def _publish_actions(self) -> None:
        if self._actions is not None:
            self._feed.publish("actions", self._actions.encode(self._source.secrets))

    @contextlib.contextmanager
    def _count_stream(self) -> Iterator[None]:
        """Count an open stream within the block, and refuse one too many."""
        if self._streams >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text="too many open pages\n")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


async def serve_page(
    source: PageSource,
    port: int,
    on_link: Callable[[str], None],
    actions: PageActions | None = None,
) -> None:
    """Serve the page of a deployment until that is stopped, or the task is cancelled.

    Args:
        source: The deployment.
        port: 0 for any free one.
        on_link: Called with the link when the server listens.
        actions: What the page may do beside reading; None for nothing.

    Raises:
        NodeError: the port cannot be used.
    """
    server = PageServer(source, secrets.token_urlsafe(TOKEN_BYTES), actions)
    try:
        on_link(await server.open(port))
        await server.closed()
    finally:
        await server.close()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


async def _open_stream(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(text.encode())


async def _read_action(request: web.Request) -> ActionRequest:
    """Return the action in the body of a request.

    JSON alone: a form of another site can be sent without asking, JSON cannot.
    """
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="an action is a JSON object\n")
    try:
        given = json.loads(await request.read())
    except ValueError as error:  # also text that is not UTF-8
        raise web.HTTPBadRequest(text="an action is a JSON object\n") from error
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise web.HTTPBadRequest(text="an action is a JSON object of texts\n")
    try:
        return ActionRequest(**given)
    except TypeError as error:  # a field too many, or one that is missing
        raise web.HTTPBadRequest(
            text="an action has `action`, `confirm`, and perhaps a target\n"
        ) from error


def _host_of(request: web.Request) -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _number(request: web.Request, name: str, default: int, greatest: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) <= greatest and len(text) < 9):
        raise web.HTTPBadRequest(text=f"{name} is a number from 0 to {greatest}\n")
    return int(text)


def _unauthorized() -> web.HTTPUnauthorized:
    return web.HTTPUnauthorized(
        text="The link is wrong or was used before: it works once.\n"
        "Type `raylaunch ui` again for another one.\n"
    )
