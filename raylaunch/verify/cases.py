"""The requests of `verify`, and each one as a curl line. Most are the MiniMax-M2 guide's own."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from raylaunch.vllm_api.vllm_client import RANK_HEADER

TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get weather by city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
"""The guide's tool."""
_CLOSED_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["上海", "北京"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CLOSED_TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "strict": True,
        "parameters": _CLOSED_PARAMETERS,
    },
}
"""The tool with a closed list of cities: guided decoding terminates with random weights too.

Without `strict` some parsers let any JSON through: with vLLM 0.32 and hermes the arguments became
`true` (measured).
"""
TOOL_CHOICE = {"type": "function", "function": {"name": "get_current_weather"}}
"""The value of `tool_choice` that demands a call of the tool by name."""
_WEATHER_PROMPT = "请查询上海的天气。"


@dataclass(frozen=True)
class Request:
    """One request to the OpenAI API.

    `path` is below the endpoint. `body` None makes it a GET. `rank` is the data-parallel rank that
    must answer; None: any.
    """

    path: str
    body: dict[str, Any] | None = None
    rank: int | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is streamed."""
        return bool(self.body and self.body.get("stream"))


def models() -> Request:
    """Return the request for the served models."""
    return Request("/models")


def fixed_prompt(model: str, rank: int | None = None) -> Request:
    """Return the same deterministic completion for every rank; a healthy model continues to count.

    `ignore_eos` gives answers of one length, which can be compared as a whole.
    """
    body = {
        "model": model,
        "prompt": "1, 2, 3, 4, 5, 6, 7, 8,",
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }
    return Request("/completions", body, rank)


def english(model: str) -> Request:
    """Return the guide's request for A2, without its `ignore_eos`.

    A healthy model that is forced past its end of sequence repeats itself, which looks garbled.
    """
    return _chat(
        model,
        "Hello, who are you?",
        stream=False,
        temperature=0.8,
        top_p=0.8,
        max_tokens=200,
    )


def chinese(model: str) -> Request:
    """Return the guide's request for A3."""
    return _chat(
        model,
        "你好,请介绍一下你自己,并展示一次工具调用的参数格式。",
        max_tokens=256,
    )


def stream(model: str) -> Request:
    """Return a streamed chat request with the usage in the last chunk."""
    return _chat(
        model,
        "Hello, who are you?",
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=64,
        ignore_eos=True,
    )


def tool_call(model: str) -> Request:
    """Return the guide's request with a tool. The model decides whether to call it."""
    return _chat(
        model,
        _WEATHER_PROMPT,
        tools=[TOOL],
        tool_choice="auto",
        temperature=0,
        max_tokens=512,
    )


def named_tool_call(model: str) -> Request:
    """Return the request that demands the call by name.

    vLLM then guides the decoding: only JSON that matches the tool's parameters can come out.
    """
    return _chat(
        model,
        _WEATHER_PROMPT,
        tools=[CLOSED_TOOL],
        tool_choice=TOOL_CHOICE,
        temperature=0,
        max_tokens=512,
    )


def reasoning(model: str) -> Request:
    """Return a question that makes a reasoning model think."""
    return _chat(
        model,
        "Which is larger, 9.11 or 9.9?",
        temperature=0,
        max_tokens=512,
    )


def curl(endpoint: str, request: Request, key_variable: str = "", timeout_s: float = 60.0) -> str:
    """Return the request as one shell line.

    Args:
        endpoint: URL with "/v1".
        request: The request.
        key_variable: Name of the variable that holds the API key, which itself never appears;
            "" sends none.
        timeout_s: Seconds for the whole answer.
    """
    url = endpoint.rstrip("/") + request.path
    words = ["curl", "-sS"]
    if request.streams:
        words.append("-N")
    words += ["--max-time", f"{timeout_s:g}", shlex.quote(url)]
    if key_variable:
        # Double quotes: the shell must expand the variable.
        words += ["-H", f'"Authorization: Bearer ${key_variable}"']
    if request.rank is not None:
        words += ["-H", shlex.quote(f"{RANK_HEADER}: {request.rank}")]
    if request.body is not None:
        body = json.dumps(request.body, ensure_ascii=False)
        words += ["-H", "'Content-Type: application/json'"]
        words += ["-d", shlex.quote(body)]
    return " ".join(words)


def _chat(model: str, text: str, **parameters: object) -> Request:
    message = {"role": "user", "content": text}
    body = {"model": model, "messages": [message], **parameters}
    return Request("/chat/completions", body)
