"""Asks one question with the `openai` client. What comes back is a value: the answer, or why there is none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raylaunch.verify.grading import Said, Streamed
from raylaunch.vllm_api.vllm_client import RANK_HEADER

if TYPE_CHECKING:
    from raylaunch.verify.cases import Question

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own variable for the key that it asks for."""


@dataclass(frozen=True)
class Answer:
    """What came back: a value (names of models, `Said` or `Streamed`), or the problem that kept it from coming."""

    question: Question
    value: Any
    problem: str
    seconds: float
    closed: bool = False
    """No other question would get further: nobody answers at all, or the key is refused."""


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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, question: Question) -> Answer:
        """Ask, and wait for the whole answer."""
        import openai

        begun, value, problem, closed = time.monotonic(), None, "", False
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await self._send(question, begun)
        except (TimeoutError, openai.APITimeoutError):
            problem, closed = f"no answer within {self._timeout_s:g} s", True
        except openai.APIConnectionError as error:
            problem, closed = f"no connection: {error.__cause__ or error}", True
        except openai.AuthenticationError:
            problem, closed = self._say_refused(), True
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}: {_say(error.body) or error.message}"
        except (openai.APIError, ValueError, LookupError, AttributeError, TypeError) as error:
            problem = f"not an answer of an OpenAI API: {error}"  # the client hands on whatever JSON or text came
        return Answer(question, value, self._without_key(problem), time.monotonic() - begun, closed)

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
        return _read(
            await chat.create(
                model=model, messages=messages, extra_body=body, extra_headers=headers
            )
        )

    def _say_refused(self) -> str:
        if self._key:
            return f"HTTP 401: the service asks for another key than ${KEY_VARIABLE} holds"
        return "HTTP 401: the service asks for a key that its recipe does not name under `secrets`"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, f"${KEY_VARIABLE}") if self._key else text


def _say(body: object) -> str:
    """What vLLM says of an error: {"message": ...}, the outer {"error": ...} taken off by the client."""
    return str(body.get("message", "")) if isinstance(body, dict) else str(body or "")


def _read(answer: Any) -> Said:  # noqa: ANN401 - openai's types know neither vLLM's `reasoning` nor a wrong answer
    choice = answer.choices[0]
    return Said(
        content=choice.message.content or "",
        reasoning=_reasoning(choice.message),
        calls=tuple(
            (call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or ()
        ),
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
