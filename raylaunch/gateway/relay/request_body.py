"""Reads a request completely before any server sees it: bounded in size, time and memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from raylaunch.gateway.gateway_messages import GatewayOptions
from raylaunch.gateway.openai_errors import body_too_large, body_too_slow, hold_queue_full
from raylaunch.gateway.relay.balancer import Wish
from raylaunch.gateway.relay.prefix_index import prefix_hashes
from raylaunch.gateway.relay.stream_rules import StreamRule, stream_rule, with_token_ids
from raylaunch.gateway.server_routes import INFERENCE

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "proxy-connection", "content-length", "host"),
        "expect",  # answered here: the body has arrived
    }
)
RANK_HEADER = "x-data-parallel-rank"


@dataclass(frozen=True)
class Exchange:
    """One request of a client, as often as it has to be sent."""

    method: str
    path: str
    """With the query string."""
    headers: CIMultiDict[str]
    body: bytes
    repeatable: bool
    holdable: bool
    """It may wait for a group; probes of health and metrics get their answer now."""
    wish: Wish = field(default_factory=Wish)
    rule: StreamRule | None = None


class BodyMemory:
    """Bounds the bytes of all request bodies together."""

    def __init__(self) -> None:
        self.used = 0

    @contextmanager
    def account(self, limit: int) -> Iterator[Callable[[int], None]]:
        """Yield a function that adds bytes of one body; they are given back at the end.

        The function raises GatewayError when there is no room for them.
        """
        own = 0

        def add(count: int) -> None:
            nonlocal own
            if self.used + count > limit:
                raise hold_queue_full("bytes")
            self.used += count
            own += count

        try:
            yield add
        finally:
            self.used -= own


async def read_body(
    request: web.BaseRequest,
    options: GatewayOptions,
    account: Callable[[int], None],
) -> bytes:
    """Return the whole body. `account` is called with the size of each part.

    Raises:
        GatewayError: It is too large, or took too long to arrive.
    """
    limit = options.max_body_bytes
    if (request.content_length or 0) > limit:
        raise body_too_large(limit)
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(options.body_s):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise body_too_large(limit)
                account(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise body_too_slow(options.body_s) from None
    return b"".join(chunks)


def read_exchange(request: web.BaseRequest, body: bytes, options: GatewayOptions) -> Exchange:
    """Return what is to be sent, and what may be done with it."""
    path = request.path
    inference = request.method == "POST" and path in INFERENCE
    safe = request.method in ("GET", "HEAD", "OPTIONS")
    headers = forwarded_headers(request.headers, options)
    parsed = _parse(body) if inference else {}
    rule = stream_rule(path, parsed) if options.continue_streams else None
    if rule is not None:
        headers.popall("Accept-Encoding", None)  # the events are read here
        if rule.by_tokens:
            body = with_token_ids(body, parsed)
    return Exchange(
        method=request.method,
        path=request.raw_path,
        headers=headers,
        body=body,
        repeatable=inference or safe,
        holdable=inference or path.startswith("/v1/"),
        wish=_wish(request.headers, parsed, options),
        rule=rule,
    )


def forwarded_headers(
    received: CIMultiDictProxy[str],
    options: GatewayOptions,
) -> CIMultiDict[str]:
    """Return the headers for the server: end-to-end ones, with the server's own key if needed."""
    named = {name.strip().lower() for name in received.get("Connection", "").split(",")}
    headers = CIMultiDict(
        (name, value)
        for name, value in received.items()
        if name.lower() not in HOP_BY_HOP and name.lower() not in named
    )
    if options.key_hashes:
        headers.popall("Authorization", None)
        if options.server_key:
            headers["Authorization"] = f"Bearer {options.server_key}"
    return headers


def _parse(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of the body; empty where vLLM will refuse the request itself."""
    try:
        parsed = json.loads(body)
    # RecursionError: JSON nested too deep for Python's parser.
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _wish(
    headers: CIMultiDictProxy[str],
    parsed: Mapping[str, Any],
    options: GatewayOptions,
) -> Wish:
    rank = headers.get(RANK_HEADER, "")
    prefix: list[bytes] = []
    if options.policy == "prefix-aware":
        prompt = parsed.get("messages") or parsed.get("prompt") or ""
        text = prompt if isinstance(prompt, str) else json.dumps(prompt)
        prefix = prefix_hashes(text.encode(errors="replace"))
    return Wish(
        rank=int(rank) if rank.isascii() and rank.isdigit() else None,
        session=headers.get(options.sticky_header, ""),
        prefix=prefix,
    )
