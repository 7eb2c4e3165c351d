"""What a client has received of one stream, so that another server can continue it.

The parts of a chunk that grow (text, reasoning, arguments of tool calls, token ids, log
probabilities) are *channels*. For each one the record knows what was sent. While a server repeats
what the client already has, its chunks are cut and compared; a difference is an error.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any

from raylaunch.gateway.relay.stream_rules import COMPLETIONS, StreamRule, continuation

TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
IDENTITY = ("id", "created", "model")
Json = dict[str, Any]


class StreamDivergedError(Exception):
    """Another server's answer differs from what the client already has."""


class StreamRecord:
    """The record of one stream over all its attempts."""

    def __init__(self, rule: StreamRule) -> None:
        self.rule = rule
        self.finished = False
        """The chunk with the finish reason was sent."""
        self.complete = False
        """The client has all that it asked for, but for the end mark."""
        self._identity: Json = {}
        self._begun = False
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        """For each channel how far the current server has come."""
        self._prompt: array[int] | None = None
        self._tokens = array("q")
        self._all_ids = True
        self._plain = True
        """Every chunk so far was text alone."""
        self._base = 0
        """Tokens that the current server got as a part of its prompt."""
        self._clean = (0, 0)
        """Tokens and characters after which the text has no half of a character."""

    def resume(self) -> tuple[str | None, bytes | None]:
        """Prepare for the next server; return path and body, or None for the original request."""
        tokens, characters = self._clean
        limit = self.rule.max_tokens
        known = self.rule.by_tokens and self._plain and self._all_ids
        if not known or self._prompt is None or self.finished or not tokens:
            tokens, characters = 0, 0
        if limit is not None and tokens >= limit:
            tokens, characters = 0, 0
        self._positions = {self._text_channel: characters, "token_ids": tokens}
        self._tokens = self._tokens[:tokens]
        self._base = tokens
        self._clean = (tokens, characters)
        if not tokens:
            return None, None
        assert self._prompt is not None
        return COMPLETIONS, continuation(self.rule, self._prompt, self._tokens)

    @property
    def _text_channel(self) -> str:
        return "content" if self.rule.kind == "chat" else "text"

    def feed(self, event_data: bytes) -> bytes | None:
        """Take the data of one event; return what the client gets, None for nothing.

        Raises:
            StreamDivergedError: The text differs from what was sent before.
            ValueError: The data is not JSON.
        """
        chunk = json.loads(event_data)
        if not isinstance(chunk, dict) or "choices" not in chunk:
            return event_data
        self._take_prompt(chunk)
        self._set_identity(chunk)
        self._correct_usage(chunk)
        choices = chunk["choices"]
        if choices:
            if self._base and self.rule.kind == "chat":
                choices[0] = _as_chat_choice(choices[0])
                chunk["object"] = "chat.completion.chunk"
            if not self._take_choice(choices[0]):
                return None
        else:
            self.complete = True
        if self.finished and not self.rule.wants_usage:
            self.complete = True
        return json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()

    def _take_prompt(self, chunk: Json) -> None:
        """Keep the prompt's tokens: they come once, beside a chat's choices or inside a choice."""
        places = [chunk, *chunk["choices"][:1]]
        for place in places:
            ids = place.get("prompt_token_ids")
            first = bool(ids) and self._prompt is None
            if first:
                self._prompt = array("q", ids)
            if "prompt_token_ids" in place and not (self.rule.wants_ids and first):
                place["prompt_token_ids"] = None  # as vLLM writes it where it was not asked

    def _set_identity(self, chunk: Json) -> None:
        if not self._identity:
            self._identity = {name: chunk[name] for name in IDENTITY if name in chunk}
        chunk.update(self._identity)

    def _correct_usage(self, chunk: Json) -> None:
        usage = chunk.get("usage")
        if self._base and isinstance(usage, dict):
            usage["prompt_tokens"] -= self._base
            usage["completion_tokens"] += self._base

    def _take_choice(self, choice: Json) -> bool:
        """Cut what was sent before; return whether something is left for the client."""
        repeats = self._repeats()
        text, ids = self._measure(choice)
        grown = self._cut_lists(choice)
        if self.rule.kind == "chat":
            grown = self._cut_delta(choice.setdefault("delta", {})) or grown
        else:
            choice["text"], more = self._cut_text("text", choice.get("text") or "")
            grown = more or grown
        self._note_clean(text, ids)
        finish = choice.get("finish_reason")
        if finish is not None:
            news = not self.finished
            self.finished = True
            return news
        if repeats:
            return grown
        return grown or not self._only_ids(choice, ids)

    def _repeats(self) -> bool:
        """Return whether the current server still is at what the client already has."""
        sent = {**{name: len(text) for name, text in self._texts.items()}, **self._counts}
        return any(self._positions.get(name, 0) < length for name, length in sent.items())

    def _only_ids(self, choice: Json, ids: int) -> bool:
        """Return whether the chunk exists for token ids alone that the client does not get."""
        return bool(ids) and not self.rule.wants_ids and choice.get("delta") == {}

    def _measure(self, choice: Json) -> tuple[str, int]:
        """Note the tokens of a chunk; return its plain text and how many tokens it has."""
        delta = choice.get("delta", {})
        text = delta.get("content") if self.rule.kind == "chat" else choice.get("text")
        ids = choice.get("token_ids")
        self._plain = self._plain and not any(
            value for name, value in delta.items() if name not in ("role", "content")
        )
        if text and not ids:
            self._all_ids = False
        self._tokens.extend(ids or [])
        return text or "", len(ids or [])

    def _note_clean(self, text: str, ids: int) -> None:
        # The text of several tokens may stop inside a character of the last one.
        if text and ids == 1:
            position = self._positions.get(self._text_channel, 0)
            self._clean = (len(self._tokens), position)

    def _cut_delta(self, delta: Json) -> bool:
        grown = False
        for name in TEXTS:
            if isinstance(delta.get(name), str):
                delta[name], more = self._cut_text(name, delta[name])
                grown = more or grown
        calls = delta.get("tool_calls")
        if calls:
            delta["tool_calls"] = [call for call in calls if self._cut_call(call)]
            grown = grown or bool(delta["tool_calls"])
        if delta.get("role"):
            grown = grown or not self._begun
            if self._begun:
                del delta["role"]
            self._begun = True
        return grown

    def _cut_call(self, call: Json) -> bool:
        """Cut one tool call. Its id is random: the client keeps the first one."""
        channel = f"call {call.get('index', 0)}"
        function = call.get("function") or {}
        grown = False
        if call.get("id") or function.get("name"):
            grown = self._advance(f"{channel} head", 1) > 0
            if not grown:
                for part, name in ((call, "id"), (call, "type"), (function, "name")):
                    part.pop(name, None)
        if isinstance(function.get("arguments"), str):
            function["arguments"], more = self._cut_text(channel, function["arguments"])
            grown = grown or more
        return grown

    def _cut_lists(self, choice: Json) -> bool:
        """Cut token ids and log probabilities; drop the ids that the client did not ask for."""
        grown = False
        ids = choice.get("token_ids")
        if ids is not None:
            fresh = self._advance("token_ids", len(ids))
            choice["token_ids"] = ids[len(ids) - fresh :]
            grown = self.rule.wants_ids and fresh > 0
        if ids is not None and not self.rule.wants_ids:
            choice["token_ids"] = None
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            lists = {name: part for name, part in logprobs.items() if isinstance(part, list)}
            for name, part in lists.items():
                fresh = self._advance(f"logprobs {name}", len(part))
                logprobs[name] = part[len(part) - fresh :]
                grown = grown or fresh > 0
        return grown

    def _advance(self, channel: str, count: int) -> int:
        """Move a counted channel on; return how many of the `count` entries are new."""
        position = self._positions.get(channel, 0) + count
        sent = self._counts.get(channel, 0)
        self._positions[channel] = position
        self._counts[channel] = max(sent, position)
        return max(0, min(count, position - sent))

    def _cut_text(self, channel: str, text: str) -> tuple[str, bool]:
        """Move a text channel on; return what is new of `text`, and whether that is anything."""
        sent = self._texts.get(channel, "")
        position = self._positions.get(channel, 0)
        old = text[: max(0, len(sent) - position)]
        if sent[position : position + len(old)] != old:
            raise StreamDivergedError(channel)
        new = text[len(old) :]
        if new:
            self._texts[channel] = sent + new
        self._positions[channel] = position + len(text)
        return new, bool(new)


def _as_chat_choice(choice: Mapping[str, Any]) -> Json:
    """Return a completion's choice in the form of a chat's."""
    rest = {
        name: value for name, value in choice.items() if name not in ("text", "prompt_token_ids")
    }
    return {**rest, "delta": {"content": choice.get("text") or ""}}
