"""HTTP client of one vLLM server: liveness, models, metrics, completions.

Errors are values, never exceptions. `/health` reports only the API server's own engine client: it
stays 200 while a remote rank is dead, stopped or cut off (measured, vLLM 0.32 dp=2). Callers
therefore also request completions and watch each rank's counters.
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
    """The answer to one request, or why there is none."""

    status: int | None
    """HTTP status; None without an answer."""
    latency_s: float
    """Seconds until the whole answer was read."""
    detail: str = ""
    """The error; "" if there is none."""

    @property
    def ok(self) -> bool:
        """Whether the status is a success and the body could be read."""
        if self.status is None or self.detail:
            return False
        return 200 <= self.status < 300


@dataclass(frozen=True)
class ModelsAnswer(HttpAnswer):
    """The answer of `/v1/models`."""

    names: tuple[str, ...] = ()
    """The served model names, in the server's order."""


@dataclass(frozen=True)
class MetricsAnswer(HttpAnswer):
    """The answer of `/metrics`."""

    ranks: dict[int, RankCounters] = field(default_factory=dict)
    """The counters of each data-parallel rank."""


@dataclass(frozen=True)
class TextAnswer(HttpAnswer):
    """A completion or a chat answer."""

    text: str = ""
    """May be "" on success: a single token can be a special one."""
    completion_tokens: int = 0


class VllmClient:
    """Sends requests to one server over kept connections.

    It never retries, never uses a proxy and never shows the API key. Use it inside one event loop,
    as an async context manager or with `close()`.

    Args:
        base_url: Root of the server with or without "/v1": "http://192.0.2.10:20004".
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Seconds for a whole answer, unless a call names its own time-out. Under load a
            healthy server took 3 to 8 s for `/health` on two cores (measured).
        connect_timeout_s: Seconds for the TCP connection.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 3.0,
    ) -> None:
        # Imported late, here and below: an agent launches its server before it needs httpx.
        import httpx

        headers: dict[str, str] = {}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers=headers,
            # A proxy variable on a node must not decide whether its own server is alive.
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"VllmClient({self.base_url!r})"

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
        """GET /health: 200 if the server is alive, 503 if its local engine died."""
        answer, _ = await self._request("GET", "/health", timeout_s)
        return answer

    async def models(self, timeout_s: float | None = None) -> ModelsAnswer:
        """GET /v1/models."""
        answer, body = await self._request("GET", "/v1/models", timeout_s)
        names: tuple[str, ...] = ()
        if answer.ok:
            models = _list(_json(body).get("data"))
            names = tuple(str(model["id"]) for model in models if "id" in model)
        return ModelsAnswer(answer.status, answer.latency_s, answer.detail, names)

    async def metrics(self, timeout_s: float | None = None) -> MetricsAnswer:
        """GET /metrics. A text that cannot be parsed gives no ranks and a detail."""
        answer, body = await self._request("GET", "/metrics", timeout_s)
        if not answer.ok:
            return MetricsAnswer(answer.status, answer.latency_s, answer.detail)
        try:
            ranks = read_ranks(body)
        except ValueError as error:
            detail = f"unreadable metrics: {error}"
            return MetricsAnswer(answer.status, answer.latency_s, detail)
        return MetricsAnswer(answer.status, answer.latency_s, "", ranks)

    async def complete(
        self,
        model: str,
        prompt: str = "hi",
        max_tokens: int = 1,
        timeout_s: float | None = None,
        rank: int | None = None,
    ) -> TextAnswer:
        """POST /v1/completions: the probe that notices what `/health` does not.

        Args:
            model: The served model name.
            prompt: The prompt.
            max_tokens: Tokens to generate at most.
            timeout_s: Seconds for the whole answer; None for the client's default.
            rank: The data-parallel rank that shall answer; None leaves it to vLLM's balancer
                (vLLM 0.32, entrypoints/generate/base/serving.py:220).
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        headers: dict[str, str] = {}
        if rank is not None:
            headers[RANK_HEADER] = str(rank)
        answer, text = await self._request("POST", "/v1/completions", timeout_s, body, headers)
        return _text_answer(answer, text, _completion_text)

    async def chat(
        self,
        model: str,
        messages: list[dict[str, str]],
        max_tokens: int = 64,
        timeout_s: float | None = None,
    ) -> TextAnswer:
        """POST /v1/chat/completions, not streamed."""
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        answer, text = await self._request("POST", "/v1/chat/completions", timeout_s, body)
        return _text_answer(answer, text, _chat_text)

    async def _request(
        self,
        method: str,
        path: str,
        timeout_s: float | None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[HttpAnswer, str]:
        import httpx

        limit = self._timeout_s if timeout_s is None else timeout_s
        connect = min(limit, self._connect_timeout_s)
        started = time.monotonic()
        try:
            # httpx limits each read, not the whole answer: a server that sends a byte now and then
            # would never time out.
            async with asyncio.timeout(limit):
                response = await self._http.request(
                    method,
                    path,
                    json=body,
                    headers=headers,
                    timeout=httpx.Timeout(limit, connect=connect),
                )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            latency = time.monotonic() - started
            return HttpAnswer(None, latency, _describe(error, limit)), ""
        latency = time.monotonic() - started
        detail = ""
        if not response.is_success:
            excerpt = response.text[:300].strip()
            detail = f"HTTP {response.status_code}: {excerpt}"
        return HttpAnswer(response.status_code, latency, detail), response.text


def _describe(error: Exception, limit: float) -> str:
    """Return one line for a failed request: httpx leaves the message of a time-out empty."""
    import httpx

    if isinstance(error, httpx.ConnectTimeout):
        return f"no answer to connect within {limit:g} s"
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer within {limit:g} s"
    return f"{type(error).__name__}: {error}".rstrip(": ")


Choice = dict[str, Any]
"""One entry of `choices` in vLLM's answer: any JSON object."""


def _text_answer(answer: HttpAnswer, body: str, pick: Callable[[Choice], object]) -> TextAnswer:
    if not answer.ok:
        return TextAnswer(answer.status, answer.latency_s, answer.detail)
    parsed = _json(body)
    choices = _list(parsed.get("choices"))
    if not choices:
        detail = f"no completion in the answer: {body[:200]}"
        return TextAnswer(answer.status, answer.latency_s, detail)
    text = pick(choices[0])
    tokens = _dict(parsed.get("usage")).get("completion_tokens")
    return TextAnswer(
        answer.status,
        answer.latency_s,
        text=str(text or ""),
        completion_tokens=tokens if isinstance(tokens, int) else 0,
    )


def _completion_text(choice: Choice) -> object:
    return choice.get("text")


def _chat_text(choice: Choice) -> object:
    return _dict(choice.get("message")).get("content")


def _json(body: str) -> dict[str, Any]:
    try:
        return _dict(json.loads(body))
    except (ValueError, RecursionError):  # RecursionError: arrays nested some thousand deep
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    """Return the JSON objects of a JSON array; [] for anything else."""
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]
