"""Grades the answers to `verify`'s requests. Pure: an answer in, a verdict out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Result = Literal["passed", "unclear", "failed", "skipped"]
"""`unclear`: no fault was seen, but the promised behaviour was not seen either.

`skipped`: the recipe does not promise it.
"""

APPEND_THINK = "minimax_m2_append_think"
"""Puts `<think>` before every answer and keeps all of it in `content`.

Source: vLLM 0.32, reasoning/minimax_m2_reasoning_parser.py.
"""
SHOWN_CHARACTERS = 60
"""Characters of an answer that a detail quotes."""
MAX_UNREADABLE = 2
"""Replacement or control characters in a healthy answer: a character cut in two leaves one."""
RULERS = " \t\r\n-=_*#~.:|─│"
"""Characters that healthy answers repeat in rulers and tables.

"!" is not one of them: a row of "!" is the output of NaN logits.
"""
_REPETITION = re.compile(r"(.{1,20}?)\1{15,}", re.DOTALL)
_UNPARSED_CALL = re.compile(r"<[\w:|]*tool_call|<invoke\b")
"""The markup of tool calls that a parser should have removed from the content."""
_CHINESE = re.compile("[一-鿿]")


@dataclass(frozen=True)
class ChatReply:
    """The reply of a model.

    `calls` are name and arguments of each tool call, the arguments as received.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str = ""
    tokens: int = 0

    @property
    def text(self) -> str:
        """The content, or the reasoning of a reply without content."""
        return self.content or self.reasoning


@dataclass(frozen=True)
class StreamReply:
    """A streamed reply.

    `pieces` are the texts with their arrival in seconds after the request. `tokens` is the usage
    of the last chunk.
    """

    pieces: tuple[tuple[float, str], ...] = ()
    tokens: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A result and the observation behind it."""

    result: Result
    detail: str


def judge_models(names: Sequence[str], wanted: str) -> Verdict:
    """Check that the served name is listed."""
    listed = ", ".join(names)
    if wanted in names:
        return Verdict("passed", f"{listed} is listed")
    return Verdict("failed", f"{wanted} is not listed, only {listed or 'nothing'}")


def judge_chat(reply: ChatReply, *, random_weights: bool = False) -> Verdict:
    """Check that the reply has text and is not garbled. With random weights any text passes."""
    quoted = shorten(reply.text)
    if not reply.text.strip():
        reason = reply.finish or "none"
        return Verdict(
            "failed", f"an empty answer of {reply.tokens} tokens (finish_reason {reason})"
        )
    if random_weights:
        return Verdict("passed", f"{reply.tokens} tokens, of random weights: {quoted}")
    garbage = find_garbage(reply.text)
    if garbage:
        return Verdict("failed", f"garbled, {garbage}: {quoted}")
    return Verdict("passed", f"{reply.tokens} tokens: {quoted}")


def judge_chinese(reply: ChatReply, *, random_weights: bool = False) -> Verdict:
    """Check as `judge_chat` does, and that the reply contains Chinese."""
    verdict = judge_chat(reply, random_weights=random_weights)
    if verdict.result != "passed" or random_weights:
        return verdict
    if _CHINESE.search(reply.content + reply.reasoning):
        return verdict
    return Verdict("unclear", f"no Chinese character in the answer: {shorten(reply.text)}")


def judge_stream(reply: StreamReply) -> Verdict:
    """Check that the answer was streamed in pieces and that its last chunk had the usage."""
    pieces = reply.pieces
    if len(pieces) < 2:
        return Verdict(
            "failed",
            f"{len(pieces)} pieces with text: the answer was not streamed while it was generated",
        )
    first = pieces[0][0]
    last = pieces[-1][0]
    times = f"the first after {first:.2f} s, the last after {last:.2f} s"
    seen = f"{len(pieces)} pieces, {times}"
    if not reply.tokens:
        return Verdict("failed", f"{seen}, but no usage at the end")
    return Verdict("passed", f"{seen}; usage at the end: {reply.tokens} tokens")


def judge_call(reply: ChatReply, tool: Mapping[str, object]) -> Verdict | None:
    """Check that the tool was called with complete JSON arguments.

    None: the model did not try to call a tool.
    """
    if not reply.calls:
        return _judge_missing_call(reply)
    function = tool["function"]
    assert isinstance(function, Mapping)
    for name, arguments in reply.calls:
        problem = _find_call_problem(name, arguments, function)
        if problem:
            return _judge_bad_call(reply, problem)
    calls = [f"{name}({_cut(arguments)})" for name, arguments in reply.calls]
    return Verdict("passed", "; ".join(calls))


def _judge_bad_call(reply: ChatReply, problem: str) -> Verdict:
    if reply.finish != "length":
        return Verdict("failed", problem)
    # vLLM 0.23 puts the reasoning before the arguments of a call that is named in tool_choice, so
    # that these may not even have begun (measured, minimax_m2_append_think).
    return Verdict("unclear", f"cut off after {reply.tokens} tokens, in a call: {problem}")


def _judge_missing_call(reply: ChatReply) -> Verdict | None:
    if not _UNPARSED_CALL.search(reply.content):
        return None
    if reply.finish == "length":
        # A parser cannot remove a call that has no closing tag.
        return Verdict("unclear", f"cut off after {reply.tokens} tokens, in the middle of a call")
    quoted = shorten(reply.content)
    return Verdict("failed", f"the tool parser left a call in the content: {quoted}")


def judge_named_call(reply: ChatReply, tool: Mapping[str, object]) -> Verdict:
    """Check a call that was demanded by name, after the model made none by itself.

    It never passes: guided decoding proves the path of the arguments, not the tool parser. With a
    reasoning parser vLLM 0.32 guides only the text after the reasoning: random weights never finish
    it and no call is made (measured; `structured-outputs-config.enable_in_reasoning` guides from
    the first token).
    """
    verdict = judge_call(reply, tool)
    by_itself = 'the model called no tool by itself (tool_choice "auto")'
    if verdict is not None and verdict.result == "passed":
        named = "named in tool_choice (guided decoding) the arguments are JSON"
        return Verdict("unclear", f"{by_itself}; {named}: {verdict.detail}")
    if verdict is not None:
        return verdict
    quoted = shorten(reply.content)
    if reply.finish == "length":
        cut = f"cut off after {reply.tokens} tokens, {quoted}"
        return Verdict("unclear", f"{by_itself}, nor when named in tool_choice: {cut}")
    return Verdict("failed", f"{by_itself}, nor when named in tool_choice: {quoted}")


def judge_reasoning(reply: ChatReply, parser: str) -> Verdict:
    """Check that the reasoning is in the field where the parser puts it.

    That is `content` for append_think and `reasoning` for all others.
    """
    content = shorten(reply.content)
    if parser == APPEND_THINK:
        if reply.content.startswith("<think>") and not reply.reasoning:
            return Verdict("passed", f"{parser} keeps <think> in content: {content}")
        return Verdict("failed", f"{parser} promises <think> in content: {shorten(reply.text)}")
    if "<think>" in reply.content or "</think>" in reply.content:
        return Verdict("failed", f"{parser} left <think> in content: {content}")
    if reply.reasoning:
        return Verdict("passed", f"{parser} fills reasoning: {shorten(reply.reasoning)}")
    return Verdict("unclear", f"no reasoning in this answer, and no <think> in content: {content}")


def judge_ranks(
    texts: Mapping[int, str], again: Mapping[int, str], *, random_weights: bool = False
) -> dict[int, Verdict]:
    """Check that every rank gives the same answer.

    A rank that answers differently the second time proves nothing: other requests change its
    batches, and with them the last digits of the logits.

    Args:
        texts: The answers of all ranks to the same prompt at the same time.
        again: If they differed: the answers when the ranks were asked one by one.
        random_weights: Whether garbled text passes.
    """
    final = {**texts, **again}
    usual = _choose_usual(list(final.values()))
    verdicts = {}
    for rank, text in final.items():
        first = texts[rank]
        if text in (first, usual):
            verdicts[rank] = _judge_rank(text, usual, random_weights=random_weights)
        else:
            detail = f"two different answers: {shorten(first)}, then {shorten(text)}"
            verdicts[rank] = Verdict("unclear", detail)
    return verdicts


def find_garbage(text: str) -> str:
    """Describe the sign that `text` is garbled; "" if there is none."""
    unreadable = [char for char in text if _is_unreadable(char)]
    if len(unreadable) > MAX_UNREADABLE:
        return f"{len(unreadable)} unreadable characters"
    repeated = _REPETITION.search(text)
    if repeated and repeated[1].strip(RULERS):
        return f"{shorten(repeated[1])} repeated at least 16 times"
    return ""


def _is_unreadable(char: str) -> bool:
    """Whether it is the replacement character, or a control character other than white space."""
    return char == "\ufffd" or (ord(char) < 32 and char not in "\n\r\t")


def shorten(text: str) -> str:
    """Quote the beginning of a text on one line."""
    line = json.dumps(text, ensure_ascii=False)
    if len(line) <= SHOWN_CHARACTERS:
        return line
    return f'{_cut(line)}"'


def _cut(line: str) -> str:
    if len(line) <= SHOWN_CHARACTERS:
        return line
    return f"{line[:SHOWN_CHARACTERS].rstrip()}..."


def _judge_rank(text: str, usual: str | None, *, random_weights: bool) -> Verdict:
    """Grade one rank; `usual` None: no answer has a majority."""
    quoted = shorten(text)
    garbage = find_garbage(text)
    if usual is None:
        is_garbled = garbage and not random_weights
        reason = "garbled" if is_garbled else "the ranks differ"
        return Verdict("failed", f"{reason}: {quoted}")
    if text != usual:
        # Garbled counts with random weights too: the other ranks have the same weights.
        reason = "garbled" if garbage else "differs"
        return Verdict("failed", f"{reason}: {quoted}, where the others answer {shorten(usual)}")
    if not text.strip():
        return Verdict("failed", "an empty answer")
    if garbage and not random_weights:
        return Verdict("failed", f"garbled, {garbage}: {quoted}")
    return Verdict("passed", quoted)


def _choose_usual(texts: list[str]) -> str | None:
    """Choose the answer of most ranks.

    Of several equally frequent answers it is the only sound one; None if there is no such answer.
    """
    counts = Counter(texts).most_common()
    best = [text for text, count in counts if count == counts[0][1]]
    if len(best) == 1:
        return best[0]
    sound = [text for text in best if text.strip() and not find_garbage(text)]
    if len(sound) == 1:
        return sound[0]
    return None


def _find_call_problem(name: str, arguments: str, function: Mapping[str, object]) -> str:
    """Describe what is wrong with a tool call; "" if nothing is."""
    if name != function["name"]:
        return f"a call of {name!r}, a tool that was not offered"
    try:
        parsed = json.loads(arguments)
    except ValueError as error:
        return f"the arguments are not valid JSON ({error}): {shorten(arguments)}"
    parameters = function["parameters"]
    assert isinstance(parameters, Mapping)
    present = parsed if isinstance(parsed, dict) else {}
    missing = [field for field in parameters["required"] if field not in present]
    if not missing:
        return ""
    return f"the arguments lack {', '.join(missing)}: {shorten(arguments)}"
