"""What `verify` asks a server, as values, and each as a curl line for a person. Most are the MiniMax-M2 guide's own."""

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
_CITIES = {"city": {"type": "string", "enum": ["上海", "北京"]}}
_WHERE = {
    "type": "object",
    "properties": _CITIES,
    "required": ["city"],
    "additionalProperties": False,
}
CLOSED_TOOL = {
    "type": "function",
    "function": {"name": "get_current_weather", "strict": True, "parameters": _WHERE},
}
"""The tool with a closed list of cities: guided decoding then ends, also with weights that mean nothing.

Without `strict` some parsers let any JSON through: with vLLM 0.32 and hermes the arguments became `true` (measured).
"""
NAMED = {"type": "function", "function": {"name": "get_current_weather"}}


@dataclass(frozen=True)
class Question:
    """One request: the path below the endpoint, the body (None: a GET), and the rank that shall answer (None: any)."""

    path: str
    body: dict[str, Any] | None = None
    rank: int | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.body and self.body.get("stream"))


def models() -> Question:
    """Which models are served."""
    return Question("/models")


def fixed_prompt(model: str, rank: int | None = None) -> Question:
    """The same completion for every rank. A model that is well goes on counting."""
    body = {
        "model": model,
        "prompt": "1, 2, 3, 4, 5, 6, 7, 8,",
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }
    return Question("/completions", body, rank)


def english(model: str) -> Question:
    """The guide's request for A2, without its `ignore_eos`: forced past its end, a healthy model repeats itself."""
    more = {"stream": False, "temperature": 0.8, "top_p": 0.8, "max_tokens": 200}
    return _chat(model, "Hello, who are you?", **more)


def chinese(model: str) -> Question:
    """The guide's request for A3."""
    return _chat(model, "你好,请介绍一下你自己,并展示一次工具调用的参数格式。", max_tokens=256)


def stream(model: str) -> Question:
    """A chat answer in pieces, with the usage in the last one."""
    more = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 64,
        "ignore_eos": True,
    }
    return _chat(model, "Hello, who are you?", **more)


def tool_call(model: str) -> Question:
    """The guide's request with a tool, which the model may call or not."""
    return _chat(
        model, "请查询上海的天气。", tools=[TOOL], tool_choice="auto", temperature=0, max_tokens=512
    )


def named_tool_call(model: str) -> Question:
    """The same with the call demanded by name: vLLM then lets only the JSON of its arguments through."""
    return _chat(
        model,
        "请查询上海的天气。",
        tools=[CLOSED_TOOL],
        tool_choice=NAMED,
        temperature=0,
        max_tokens=512,
    )


def reasoning(model: str) -> Question:
    """A question worth a thought."""
    return _chat(model, "Which is larger, 9.11 or 9.9?", temperature=0, max_tokens=512)


def curl(endpoint: str, question: Question, key_variable: str = "", timeout_s: float = 60.0) -> str:
    """The question as one line for a shell; the API key only as the variable that holds it."""
    words = ["curl", "-sS", *(["-N"] if question.streams else []), "--max-time", f"{timeout_s:g}"]
    words.append(shlex.quote(endpoint.rstrip("/") + question.path))
    if key_variable:
        words += ["-H", f'"Authorization: Bearer ${key_variable}"']
    if question.rank is not None:
        words += ["-H", shlex.quote(f"{RANK_HEADER}: {question.rank}")]
    if question.body is not None:
        words += ["-H", "'Content-Type: application/json'"]
        words += ["-d", shlex.quote(json.dumps(question.body, ensure_ascii=False))]
    return " ".join(words)


def _chat(model: str, text: str, **more: object) -> Question:
    return Question(
        "/chat/completions",
        {"model": model, "messages": [{"role": "user", "content": text}], **more},
    )
