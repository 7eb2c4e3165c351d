"""The HTTP side of one vLLM server: liveness, models, metrics, a completion. Errors are values, never exceptions.

`/health` speaks only of the API server's own engine client: it stays 200 while a remote rank is dead, stopped or cut
off (measured, vLLM 0.32 dp=2), so callers also ask for completions and watch each rank's counters.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from raylaunch.vllm_api.vllm_metrics import RankCounters, read_ranks

RANK_HEADER = "X-data-parallel-rank"


@dataclass(frozen=True)
class HttpAnswer:
    """What came back. `status` None: no answer. `detail` says what is wrong, "" when nothing is. Latency in seconds."""

    status: int | None
    latency_s: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the answer is a success and says what was asked for."""
        return self.status is not None and 200 <= self.status < 300 and not self.detail


@dataclass(frozen=True)
class ModelsAnswer(HttpAnswer):
    """`/v1/models`: the served names, in the server's order."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricsAnswer(HttpAnswer):
    """`/metrics`: the counters of each data-parallel rank."""

    ranks: dict[int, RankCounters] = field(default_factory=dict)


@dataclass(frozen=True)
class TextAnswer(HttpAnswer):
    """A completion or a chat answer. `text` may be "" on success: one token can be a special one."""

    text: str = ""
    completion_tokens: int = 0


class VllmClient:
    """Asks one server, over connections it keeps. Never retries, never uses a proxy, never shows the API key.

    Use it inside one event loop, as an async context manager or with `close()`.

    Args:
        base_url: Root of the server with or without "/v1": "http://192.0.2.10:20004".
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Seconds for a whole answer where a call does not name its own. Under load a healthy server took
            3 to 8 s for `/health` on two cores (measured).
        connect_timeout_s: Seconds for the TCP connection.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 3.0,
    ) -> None:
        import httpx  # here and below: an agent has its server started before it needs this

        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=False,  # a proxy variable on a node must not decide whether its own server is alive
        )

    def __repr__(self) -> str:
        return f"EngineClient({self.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the kept connections."""
        await self._http.aclose()

    async def health(self, timeout_s: float | None = None) -> HttpAnswer:
        """GET /health: 200 alive, 503 the local engine died."""
        answer, _ = await self._ask("GET", "/health", timeout_s)
        return answer

    async def models(self, timeout_s: float | None = None) -> ModelsAnswer:
        """GET /v1/models."""
        answer, body = await self._ask("GET", "/v1/models", timeout_s)
        names = tuple(str(model["id"]) for model in _list(_json(body).get("data")) if "id" in model)
        return ModelsAnswer(
            answer.status, answer.latency_s, answer.detail, names if answer.ok else ()
        )

    async def metrics(self, timeout_s: float | None = None) -> MetricsAnswer:
        """GET /metrics, per rank. A text that cannot be read is an answer without ranks and with a detail."""
        answer, body = await self._ask("GET", "/metrics", timeout_s)
        if not answer.ok:
            return MetricsAnswer(answer.status, answer.latency_s, answer.detail)
        try:
            ranks = read_ranks(body)
        except (ValueError, OverflowError) as error:
            return MetricsAnswer(answer.status, answer.latency_s, f"unreadable metrics: {error}")
        return MetricsAnswer(answer.status, answer.latency_s, "", ranks)

    async def complete(
        self,
        model: str,
        prompt: str = "hi",
        max_tokens: int = 1,
        timeout_s: float | None = None,
        rank: int | None = None,
    ) -> TextAnswer:
        """POST /v1/completions: the probe that sees what `/health` does not.

        `rank` names the data-parallel rank that shall answer (vLLM 0.32, entrypoints/generate/base/serving.py:220).
        """
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        headers = {} if rank is None else {RANK_HEADER: str(rank)}
        answer, text = await self._ask("POST", "/v1/completions", timeout_s, body, headers)
        return _text_answer(answer, text, lambda choice: choice.get("text"))

    async def chat(
        self,
        model: str,
        messages: list[dict[str, str]],
        max_tokens: int = 64,
        timeout_s: float | None = None,
    ) -> TextAnswer:
        """POST /v1/chat/completions, not streamed."""
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        answer, text = await self._ask("POST", "/v1/chat/completions", timeout_s, body)
        return _text_answer(
            answer, text, lambda choice: _dict(choice.get("message")).get("content")
        )

    async def _ask(
        self,
        method: str,
        path: str,
        timeout_s: float | None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[HttpAnswer, str]:
        import httpx

        limit = self._timeout_s if timeout_s is None else timeout_s
        begun = time.monotonic()
        try:
            # httpx limits each read, not the whole answer: a server that drips bytes would never time out.
            async with asyncio.timeout(limit):
                timeout = httpx.Timeout(limit, connect=min(limit, self._connect_timeout_s))
                response = await self._http.request(
                    method, path, json=body, headers=headers, timeout=timeout
                )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            return HttpAnswer(None, time.monotonic() - begun, _say(error, limit)), ""
        latency = time.monotonic() - begun
        detail = (
            ""
            if response.is_success
            else f"HTTP {response.status_code}: {response.text[:300].strip()}"
        )
        return HttpAnswer(response.status_code, latency, detail), response.text


def _say(error: Exception, limit: float) -> str:
    """One line for a failed request. httpx leaves the message of a time-out empty."""
    import httpx

    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        phase = " to connect" if isinstance(error, httpx.ConnectTimeout) else ""
        return f"no answer{phase} within {limit:g} s"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _text_answer(
    answer: HttpAnswer, body: str, pick: Callable[[dict[str, Any]], Any]
) -> TextAnswer:
    if not answer.ok:
        return TextAnswer(answer.status, answer.latency_s, answer.detail)
    parsed = _json(body)
    choices = _list(parsed.get("choices"))
    if not choices:
        return TextAnswer(
            answer.status, answer.latency_s, f"no completion in the answer: {body[:200]}"
        )
    tokens = _dict(parsed.get("usage")).get("completion_tokens")
    text = pick(choices[0])
    return TextAnswer(
        answer.status,
        answer.latency_s,
        "",
        str(text or ""),
        tokens if isinstance(tokens, int) else 0,
    )


def _json(body: str) -> dict[str, Any]:
    try:
        return _dict(json.loads(body))
    except ValueError:
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
