"""Sends one request with the `openai` client. Failures are values, not exceptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import BaseModel

from raylaunch.verify.grading import ChatReply, StreamReply
from raylaunch.vllm_api.vllm_client import RANK_HEADER

if TYPE_CHECKING:
    from openai.types.chat import (
        ChatCompletion,
        ChatCompletionChunk,
        ChatCompletionMessageFunctionToolCall as FunctionCall,
    )

    from raylaunch.verify.cases import Request

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's variable for the API key that a server requires."""


@dataclass(frozen=True)
class Answer:
    """The answer to one request, or the reason why there is none."""

    request: Request
    value: Any
    """Names of models, a `ChatReply` or a `StreamReply`; None with a problem."""
    problem: str
    """The error; "" if there is none."""
    seconds: float
    closed: bool = False
    """Further requests would fail too: no connection, no answer in time, or the key is rejected."""


class ChatClient:
    """Sends requests to one service over kept connections.

    It never retries, never uses a proxy and never shows the API key.

    Args:
        endpoint: With "/v1": "http://192.0.2.10:20004/v1".
        api_key: Sent as a bearer token; None: the service requires none.
        timeout_s: Seconds for a whole answer.
    """

    def __init__(self, endpoint: str, api_key: str | None, timeout_s: float) -> None:
        import openai

        self._key = api_key
        self._timeout_s = timeout_s
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            # The client refuses to start without a key; a service without one ignores it.
            api_key=api_key or "none",
            timeout=timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Answer:
        """Send the request and wait for the whole answer."""
        import openai

        begun = time.monotonic()
        value = None
        problem = ""
        closed = False
        try:
            # The client's own time-out starts over with each chunk of a stream.
            async with asyncio.timeout(self._timeout_s):
                value = await self._send(request, begun)
        except (TimeoutError, openai.APITimeoutError):
            problem = f"no answer within {self._timeout_s:g} s"
            closed = True
        except openai.APIConnectionError as error:
            problem = f"no connection: {error.__cause__ or error}"
            closed = True
        except openai.AuthenticationError:
            problem = self._explain_unauthorized()
            closed = True
        except openai.APIStatusError as error:
            message = _error_message(error.body) or error.message
            problem = f"HTTP {error.status_code}: {message}"
        except (openai.APIError, ValueError, LookupError, AttributeError, TypeError) as error:
            # The client does not validate: it returns whatever JSON or text it received.
            problem = f"not an answer of an OpenAI API: {error}"
        return Answer(
            request=request,
            value=value,
            problem=self._redact_key(problem),
            seconds=time.monotonic() - begun,
            closed=closed,
        )

    async def _send(
        self, request: Request, begun: float
    ) -> tuple[str, ...] | ChatReply | StreamReply:
        if request.body is None:
            return tuple([model.id async for model in self._client.models.list()])
        headers = {}
        if request.rank is not None:
            headers[RANK_HEADER] = str(request.rank)
        # The client's methods check their own parameters and know none of vLLM's (`ignore_eos`):
        # all that they do not demand goes through `extra_body`.
        body = dict(request.body)
        model = body.pop("model")
        if request.path == "/completions":
            completion = await self._client.completions.create(
                model=model,
                prompt=body.pop("prompt"),
                extra_body=body,
                extra_headers=headers,
            )
            first = completion.choices[0]
            return ChatReply(first.text or "", finish=_or_empty(first.finish_reason))
        chat = self._client.chat.completions
        messages = body.pop("messages")
        if body.pop("stream", False):
            chunks = await chat.create(
                model=model,
                messages=messages,
                stream=True,
                extra_body=body,
                extra_headers=headers,
            )
            return await _collect_chunks(chunks, begun)
        answer = await chat.create(
            model=model,
            messages=messages,
            extra_body=body,
            extra_headers=headers,
        )
        return _read_chat(answer)

    def _explain_unauthorized(self) -> str:
        if self._key:
            return f"HTTP 401: the service rejects the key in ${KEY_VARIABLE}"
        return "HTTP 401: the service requires a key that its recipe does not name under `secrets`"

    def _redact_key(self, text: str) -> str:
        if not self._key:
            return text
        return text.replace(self._key, f"${KEY_VARIABLE}")


def _error_message(body: object) -> str:
    """Return vLLM's error message; the client has removed the outer {"error": ...}."""
    if isinstance(body, dict):
        return str(body.get("message", ""))
    return str(body or "")


def _or_empty(finish_reason: str | None) -> str:
    """Replace null, which OpenAI's types exclude but an unvalidated answer can contain."""
    return finish_reason or ""


def _read_chat(answer: ChatCompletion) -> ChatReply:
    choice = answer.choices[0]
    # vLLM has no other kind of tool call than functions.
    calls = cast("list[FunctionCall]", choice.message.tool_calls or [])
    return ChatReply(
        content=choice.message.content or "",
        reasoning=_reasoning(choice.message),
        calls=tuple((call.function.name, call.function.arguments) for call in calls),
        finish=_or_empty(choice.finish_reason),
        tokens=answer.usage.completion_tokens if answer.usage else 0,
    )


async def _collect_chunks(chunks: AsyncIterable[ChatCompletionChunk], begun: float) -> StreamReply:
    pieces: list[tuple[float, str]] = []
    tokens = None
    async for chunk in chunks:
        received = time.monotonic() - begun
        for choice in chunk.choices:
            text = choice.delta.content or _reasoning(choice.delta)
            if text:
                pieces.append((received, text))
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    return StreamReply(tuple(pieces), tokens)


def _reasoning(message: BaseModel) -> str:
    """Return the reasoning, a field that vLLM adds to OpenAI's.

    It is called `reasoning` in 0.32, `reasoning_content` before.
    """
    extra = message.model_extra or {}
    return str(extra.get("reasoning") or extra.get("reasoning_content") or "")
