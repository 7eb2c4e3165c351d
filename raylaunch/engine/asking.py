"""Asks one question with the `openai` client. What comes back is a value: the answer, or why there is none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raylaunch.engine.client import RANK_HEADER
from raylaunch.engine.judge import Said, Streamed

if TYPE_CHECKING:
    from raylaunch.engine.questions import Question

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own variable for the key that it asks for."""


@dataclass(frozen=True)
class Answer:
    """What came back: a value (names of models, `Said` or `Streamed`), or the problem that kept it from coming."""

    question: Question
    value: Any
    problem: str
    seconds: float
    silent: bool = False
    """Nobody answered at all."""


class Asker:
    """Asks one service, over connections it keeps. Never retries, never uses a proxy, never shows the API key.

    Args:
        endpoint: With "/v1": "http://192.0.2.10:20004/v1".
        api_key: Sent as a bearer token; None: the service asks for none.
        timeout_s: Seconds for a whole answer.
    """

    def __init__(self, endpoint: str, api_key: str | None, timeout_s: float) -> None:
        import openai

        self._key = api_key
        self._timeout_s = timeout_s
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=api_key or "none",  # the client wants one; a service without a key ignores it
            timeout=timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, question: Question) -> Answer:
        """Ask, and wait for the whole answer."""
        import openai

        begun, value, problem, silent = time.monotonic(), None, "", False
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await self._send(question, begun)
        except (TimeoutError, openai.APITimeoutError):
            problem, silent = f"no answer within {self._timeout_s:g} s", True
        except openai.APIConnectionError as error:
            problem, silent = f"no connection: {error.__cause__ or error}", True
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}: {error.message}"
        except (openai.APIError, ValueError, LookupError, AttributeError, TypeError) as error:
            problem = f"not an answer of an OpenAI API: {error}"  # the client hands on whatever JSON or text came
        return Answer(question, value, self._without_key(problem), time.monotonic() - begun, silent)

    async def _send(self, question: Question, begun: float) -> tuple[str, ...] | Said | Streamed:
        if question.body is None:
            return tuple([model.id async for model in self._client.models.list()])
        body = dict(question.body)
        model = body.pop("model")
        headers = {} if question.rank is None else {RANK_HEADER: str(question.rank)}
        if question.path == "/completions":
            text: Any = await self._client.completions.create(
                model=model, prompt=body.pop("prompt"), extra_body=body, extra_headers=headers
            )
            return Said(text.choices[0].text or "", finish=text.choices[0].finish_reason or "")
        chat = self._client.chat.completions
        messages = body.pop("messages")
        if body.pop("stream", False):
            chunks = await chat.create(
                model=model, messages=messages, stream=True, extra_body=body, extra_headers=headers
            )
            return await _collect(chunks, begun)
        return _read(await chat.create(model=model, messages=messages, extra_body=body, extra_headers=headers))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, f"${KEY_VARIABLE}") if self._key else text


def _read(answer: Any) -> Said:  # noqa: ANN401 - openai's types know neither vLLM's `reasoning` nor a wrong answer
    choice = answer.choices[0]
    return Said(
        content=choice.message.content or "",
        reasoning=_reasoning(choice.message),
        calls=tuple((call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()),
        finish=choice.finish_reason or "",
        tokens=answer.usage.completion_tokens if answer.usage else 0,
    )


async def _collect(chunks: Any, begun: float) -> Streamed:  # noqa: ANN401 - likewise
    pieces: list[tuple[float, str]] = []
    tokens = None
    async for chunk in chunks:
        at = time.monotonic() - begun
        texts = (choice.delta.content or _reasoning(choice.delta) for choice in chunk.choices)
        pieces.extend((at, text) for text in texts if text)
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return Streamed(tuple(pieces), tokens)


def _reasoning(message: Any) -> str:  # noqa: ANN401 - likewise
    """A field of vLLM's own: `reasoning` in 0.32, `reasoning_content` before."""
    more = message.model_extra or {}
    return str(more.get("reasoning") or more.get("reasoning_content") or "")
