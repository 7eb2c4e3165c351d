"""A small OpenAI server whose text is determined by its tokens, and which misbehaves on request.

Its tokens are bytes, its text is made of three-byte characters: a continuation that begins inside
a character, repeats a token or leaves one out gives other text. Run as a program it serves on the
port that is its argument; faults are then asked for in the request's `user` field.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from aiohttp import web

ALPHABET = "一二三四五六七八九十百千万上下左右日月火水木金土山川田人口目耳手足"
STREAM = ALPHABET.encode()


def next_token(count: int) -> int:
    """The token that follows after `count` tokens."""
    return STREAM[count % len(STREAM)]


def tokenize(text: str) -> list[int]:
    data = text.encode()
    return list(data + b" " * (-len(data) % len(STREAM)))


def expected_text(prompt: str, max_tokens: int) -> str:
    """What an undisturbed server answers."""
    count = len(tokenize(prompt))
    data = bytes(next_token(count + number) for number in range(max_tokens))
    return data.decode(errors="ignore")


class DummyServer:
    """Serves in the event loop of a test."""

    def __init__(self, name: str = "dummy") -> None:
        self.name = name
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0
        self.finished = 0
        self.healthy = True
        self.chunk_s = 0.0
        self.answer_s = 0.0
        self.die_before_answer = 0
        """Requests that are still to be closed without an answer."""
        self.die_after_chunks: int | None = None
        self.error_event_after: int | None = None
        self.status = 200
        self.error_text = name
        self.empty = False
        self.ids_per_chunk = 1
        self.keep = True
        """Remember requests."""
        self._runner: web.ServerRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> DummyServer:
        server = web.Server(self.handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port or self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._echo(request)
        data = await request.content.read()
        if self.keep:
            self.paths.append(request.path_qs)
            self.headers.append(dict(request.headers))
        try:
            body = json.loads(data) if data else {}
        except (ValueError, RecursionError):
            return web.json_response({"error": {"message": "not JSON"}}, status=400)
        if self.keep:
            self.requests.append(body)
        try:
            answer = await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return answer

    async def _answer(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(self.answer_s)
        if self.die_before_answer > 0:
            self.die_before_answer -= 1
            self._cut(request)
        if self.status != 200:
            return web.json_response({"error": {"message": self.error_text}}, status=self.status)
        if self.empty:
            return web.Response(status=200)
        if request.method != "POST":
            return web.json_response({"name": self.name, "path": request.raw_path})
        if body.get("stream"):
            return await self._stream(request, body)
        return web.json_response({"name": self.name, **self._plain(request.path, body)})

    def _cut(self, request: web.BaseRequest) -> None:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    def _plain(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt, tokens = self._tokens(path, body)
        text = bytes(tokens).decode(errors="ignore")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if "chat" in path:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {"id": self.name, "choices": [choice], "usage": {"prompt_tokens": len(prompt)}}

    def _tokens(self, path: str, body: dict[str, Any]) -> tuple[list[int], list[int]]:
        prompt = body.get("prompt", "")
        if "chat" in path:
            prompt = "".join(message["content"] for message in body["messages"])
        ids = prompt if isinstance(prompt, list) else tokenize(prompt)
        count = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        return ids, [next_token(len(ids) + number) for number in range(count)]

    async def _stream(self, request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, chunk in enumerate(self._chunks(request.path, body)):
            if number == self.die_after_chunks:
                self._cut(request)
            if number == self.error_event_after:
                await response.write(b'data: {"error": {"message": "EngineCore", "code": 500}}\n\n')
                break
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.sleep(self.chunk_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        prompt, tokens = self._tokens(path, body)
        chat = "chat" in path
        ids_wanted = bool(body.get("return_token_ids"))
        frame = {"id": f"{self.name}-{len(self.requests)}", "created": 1, "model": "tiny"}
        chunks: list[dict[str, Any]] = []
        if chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
            first["finish_reason"] = None
            ids = {"prompt_token_ids": prompt if ids_wanted else None}
            chunks.append({**frame, "object": "chat.completion.chunk", "choices": [first], **ids})
        pending = b""
        for start in range(0, len(tokens), self.ids_per_chunk):
            part = tokens[start : start + self.ids_per_chunk]
            pending += bytes(part)
            text, pending = _complete(pending)
            last = start + self.ids_per_chunk >= len(tokens)
            choice: dict[str, Any] = {"index": 0, "logprobs": None}
            choice["finish_reason"] = "length" if last else None
            choice["token_ids"] = part if ids_wanted else None
            if chat:
                choice["delta"] = {"content": text}
            else:
                choice["text"] = text
                choice["prompt_token_ids"] = prompt if ids_wanted and not start else None
            kind = "chat.completion.chunk" if chat else "text_completion"
            chunks.append({**frame, "object": kind, "choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
            usage["total_tokens"] = len(prompt) + len(tokens)
            chunks.append({**frame, "choices": [], "usage": usage})
        return chunks

    async def _echo(self, request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.headers.append(dict(request.headers))
        async for message in socket:
            await socket.send_str(f"{self.name}: {message.data}")
        return socket


def _complete(data: bytes) -> tuple[str, bytes]:
    """Split into whole characters and the bytes of an unfinished one."""
    for cut in (len(data), len(data) - 1, len(data) - 2):
        with contextlib.suppress(UnicodeDecodeError):
            return data[: max(0, cut)].decode(), data[max(0, cut) :]
    return data.decode(errors="replace"), b""


async def main() -> None:
    server = DummyServer(sys.argv[2])
    server.chunk_s = float(sys.argv[3])
    await server.start(int(sys.argv[1]))
    print(server.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
