"""Which streams can be continued after a break, and with which request. Pure.

A stream is continued when its text is determined by the request: temperature 0, or a seed. Where
nothing but the text of the tokens reaches the client, the next server continues from the prompt's
tokens and the tokens so far. Otherwise (tools, reasoning, stop strings, log probabilities, a seed)
it gets the original request again, and what the client already has is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["chat", "completions"]
COMPLETIONS = "/v1/completions"
KINDS: Mapping[str, Kind] = {"/v1/chat/completions": "chat", COMPLETIONS: "completions"}
DEFAULT_MAX_TOKENS = 16
"""Of `/v1/completions` (vLLM 0.32, completion/protocol.py); a chat has no limit of its own."""
SHARED = frozenset(
    {
        *("model", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty"),
        *("logit_bias", "stop_token_ids", "ignore_eos", "skip_special_tokens"),
        *("spaces_between_special_tokens", "bad_words", "allowed_token_ids", "priority"),
        *("cache_salt", "user", "stream", "stream_options", "vllm_xargs"),
    }
)
"""Fields with the same meaning in a chat and in a completion (vLLM 0.32, protocol.py of both)."""
RENDERING = frozenset(
    {
        *("messages", "chat_template", "chat_template_kwargs", "add_generation_prompt"),
        *("continue_final_message", "add_special_tokens", "documents", "store", "metadata"),
        *("prompt", "suffix", "truncate_prompt_tokens", "truncation_side", "request_id"),
        *("session_id", "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens"),
        *("return_token_ids", "safety_identifier", "parallel_tool_calls", "prompt_cache_key"),
    }
)
"""Fields that decide the prompt's tokens, which are known by then, or that are set again."""


@dataclass(frozen=True)
class StreamRule:
    """How a broken stream of one request is continued."""

    kind: Kind
    request: Mapping[str, Any]
    by_tokens: bool
    """From prompt and tokens so far; otherwise by the original request."""
    wants_ids: bool
    """The client itself asked for token ids."""

    @property
    def wants_usage(self) -> bool:
        """The client asked for the usage at the end."""
        options = self.request.get("stream_options")
        return isinstance(options, Mapping) and bool(options.get("include_usage"))

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the client wants; None: as many as fit."""
        default = DEFAULT_MAX_TOKENS if self.kind == "completions" else None
        limit = self.request.get("max_tokens", default)
        if self.kind == "chat":
            limit = self.request.get("max_completion_tokens") or limit
        return limit if isinstance(limit, int) else None


def stream_rule(path: str, request: Mapping[str, Any]) -> StreamRule | None:
    """Return how to continue this request's stream; None when that cannot be done."""
    kind = KINDS.get(path)
    if kind is None or not _is_single_stream(request):
        return None
    greedy = request.get("temperature") == 0 and not isinstance(request["temperature"], bool)
    if not greedy and request.get("seed") is None:
        return None
    by_tokens = greedy and _is_plain_text(kind, request)
    return StreamRule(kind, request, by_tokens, bool(request.get("return_token_ids")))


def _is_single_stream(request: Mapping[str, Any]) -> bool:
    if request.get("stream") is not True or request.get("use_beam_search"):
        return False
    if request.get("n", 1) not in (1, None) or request.get("best_of", 1) not in (1, None):
        return False
    prompt = request.get("prompt")
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(token, int) for token in prompt)
    return not request.get("echo")


def _is_plain_text(kind: Kind, request: Mapping[str, Any]) -> bool:
    """Return whether the rest of the text follows from prompt, tokens so far and shared fields."""
    for name, value in request.items():
        unset = value in (None, False, [], {}, 0)
        if not unset and name not in SHARED and name not in RENDERING:
            return False
    return kind == "completions" or _only_text(request.get("messages"))


def _only_text(messages: object) -> bool:
    """Images and audio stand in the prompt's tokens as placeholders only."""
    if not isinstance(messages, Sequence):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            return False
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text":
                return False
    return True


def with_token_ids(body: bytes, request: Mapping[str, Any]) -> bytes:
    """Return the body with vLLM's `return_token_ids` switched on.

    The field is spliced in: writing an 8 MB body again would cost 30 ms.
    """
    if request.get("return_token_ids"):
        return body
    if "return_token_ids" in request:
        return json.dumps({**request, "return_token_ids": True}).encode()
    brace = body.index(b"{") + 1
    return body[:brace] + b'"return_token_ids":true,' + body[brace:]


def continuation(rule: StreamRule, prompt: Sequence[int], tokens: Sequence[int]) -> bytes:
    """Return the completion request that continues after these tokens."""
    shared = {name: value for name, value in rule.request.items() if name in SHARED}
    minimum = rule.request.get("min_tokens")
    if isinstance(minimum, int):
        shared["min_tokens"] = max(0, minimum - len(tokens))
    limit = rule.max_tokens
    shared["max_tokens"] = None if limit is None else limit - len(tokens)
    shared["prompt"] = [*prompt, *tokens]
    shared["return_token_ids"] = True
    return json.dumps(shared, separators=(",", ":")).encode()
