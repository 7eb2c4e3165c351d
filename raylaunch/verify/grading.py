"""Judges the answers to `verify`'s questions. Pure: what a server said goes in, a result and what was seen come out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Result = Literal["passed", "unclear", "failed", "skipped"]
"""`unclear`: nothing is wrong, but the promise was not seen kept either. `skipped`: the recipe promises nothing."""

APPEND_THINK = "minimax_m2_append_think"
"""Puts `<think>` before every answer and keeps all of it in `content` (vLLM 0.32 reasoning/minimax_m2_...py)."""
SHOWN = 60
"""Characters of an answer that a line shows."""
UNREADABLE = 3
"""So many replacement or control characters are no accident: one alone may be a character that was cut in two."""

RULERS = " \t\r\n-=_*#~.:|─│"
"""What healthy answers repeat: rulers and tables. A row of "!" is no ruler, it is what NaN in the logits looks like."""


@dataclass(frozen=True)
class Said:
    """An answer of a model. `calls`: name and arguments of each tool call, the arguments as they came."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Streamed:
    """A streamed answer: when each piece of text came (seconds after the question), and the usage at the end."""

    pieces: tuple[tuple[float, str], ...] = ()
    tokens: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A result and what was seen."""

    result: Result
    detail: str


def judge_models(names: Sequence[str], wanted: str) -> Verdict:
    """The model is listed under its served name."""
    if wanted in names:
        return Verdict("passed", f"{', '.join(names)} is listed")
    return Verdict("failed", f"{wanted} is not listed, only {', '.join(names) or 'nothing'}")


def judge_chat(said: Said, *, random_weights: bool = False) -> Verdict:
    """There is an answer, and it is text. With random weights what it says is not judged."""
    text = said.content or said.reasoning
    if not text.strip():
        return Verdict(
            "failed",
            f"an empty answer of {said.tokens} tokens (finish_reason {said.finish or 'none'})",
        )
    if random_weights:
        return Verdict("passed", f"{said.tokens} tokens, of random weights: {shorten(text)}")
    if problem := find_garbage(text):
        return Verdict("failed", f"garbled, {problem}: {shorten(text)}")
    return Verdict("passed", f"{said.tokens} tokens: {shorten(text)}")


def judge_chinese(said: Said, *, random_weights: bool = False) -> Verdict:
    """As `judge_chat`, and some of the answer is Chinese."""
    verdict = judge_chat(said, random_weights=random_weights)
    if (
        verdict.result == "passed"
        and not random_weights
        and not re.search("[一-鿿]", said.content + said.reasoning)
    ):
        return Verdict(
            "unclear",
            f"no Chinese character in the answer: {shorten(said.content or said.reasoning)}",
        )
    return verdict


def judge_stream(streamed: Streamed) -> Verdict:
    """The answer comes in pieces, and the last one holds the usage."""
    pieces = streamed.pieces
    if len(pieces) < 2:
        return Verdict(
            "failed", f"{len(pieces)} pieces with text: the answer does not come while it is made"
        )
    seen = f"{len(pieces)} pieces, the first after {pieces[0][0]:.2f} s, the last after {pieces[-1][0]:.2f} s"
    if not streamed.tokens:
        return Verdict("failed", f"{seen}, but no usage at the end")
    return Verdict("passed", f"{seen}; usage at the end: {streamed.tokens} tokens")


def judge_call(said: Said, tool: Mapping[str, object]) -> Verdict | None:
    """The tool was called, with arguments that are JSON and complete. None: no tool was called, nor was it tried."""
    function = tool["function"]
    assert isinstance(function, Mapping)
    if not said.calls:
        if not re.search(r"<[\w:|]*tool_call|<invoke\b", said.content):
            return None
        if said.finish == "length":
            return Verdict(
                "unclear", f"cut off after {said.tokens} tokens, in the middle of a call"
            )
        return Verdict("failed", f"the parser left a call in the content: {shorten(said.content)}")
    for name, arguments in said.calls:
        if problem := _find_call_problem(name, arguments, function):
            return Verdict("failed", problem)
    return Verdict(
        "passed", "; ".join(f"{name}({_cut(arguments)})" for name, arguments in said.calls)
    )


def judge_named_call(said: Said, tool: Mapping[str, object]) -> Verdict:
    """What a call demanded by name shows, after the model has not called by itself: never all that was promised.

    With a reasoning parser vLLM 0.32 guides only what comes after the thoughts: random weights never come to their end,
    and no call is made (measured; `structured-outputs-config.enable_in_reasoning` guides from the beginning).
    """
    verdict = judge_call(said, tool)
    by_itself = 'the model called no tool by itself (tool_choice "auto")'
    if verdict is not None and verdict.result == "passed":
        detail = f"{by_itself}; named in tool_choice (guided decoding) the arguments are JSON: {verdict.detail}"
        return Verdict("unclear", detail)
    if verdict is not None:
        return verdict
    if said.finish == "length":
        return Verdict(
            "unclear",
            f"{by_itself}, nor named: cut off after {said.tokens} tokens, {shorten(said.content)}",
        )
    return Verdict("failed", f"{by_itself}, nor when it was named: {shorten(said.content)}")


def judge_reasoning(said: Said, parser: str) -> Verdict:
    """Thoughts are where the parser promises them: `content` for append_think, `reasoning` for all others."""
    kept = "<think>" in said.content or "</think>" in said.content
    if parser == APPEND_THINK:
        if said.content.startswith("<think>") and not said.reasoning:
            return Verdict("passed", f"{parser} keeps <think> in content: {shorten(said.content)}")
        return Verdict(
            "failed",
            f"{parser} promises <think> in content: {shorten(said.content or said.reasoning)}",
        )
    if kept:
        return Verdict("failed", f"{parser} left <think> in content: {shorten(said.content)}")
    if said.reasoning:
        return Verdict("passed", f"{parser} fills reasoning: {shorten(said.reasoning)}")
    return Verdict(
        "unclear", f"no reasoning in this answer, nor <think> in content: {shorten(said.content)}"
    )


def judge_ranks(
    texts: Mapping[int, str], again: Mapping[int, str], *, random_weights: bool = False
) -> dict[int, Verdict]:
    """Every rank says the same. `again`: what they said when asked a second time, one by one, because they differed.

    Two answers of one rank that differ say that other requests change its batches: then nothing can be concluded.
    """
    final = {**texts, **again}
    usual = _choose_usual(list(final.values()))
    return {
        rank: _judge_rank(text, usual, random_weights=random_weights)
        if text == texts[rank] or text == usual
        else Verdict("unclear", f"not the same twice: {shorten(texts[rank])}, then {shorten(text)}")
        for rank, text in final.items()
    }


def find_garbage(text: str) -> str:
    """What makes `text` look garbled; "" when nothing does."""
    unreadable = [
        char for char in text if char == "\ufffd" or (ord(char) < 32 and char not in "\n\r\t")
    ]
    if len(unreadable) >= UNREADABLE:
        return f"{len(unreadable)} unreadable characters"
    repeated = re.search(r"(.{1,20}?)\1{15,}", text, re.DOTALL)
    if repeated and repeated[1].strip(RULERS):
        return f"{shorten(repeated[1])} again and again"
    return ""


def shorten(text: str) -> str:
    """The beginning of a text on one line, in quotes."""
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line) <= SHOWN else f'{_cut(line)}"'


def _cut(line: str) -> str:
    return line if len(line) <= SHOWN else f"{line[:SHOWN].rstrip()}..."


def _judge_rank(text: str, usual: str | None, *, random_weights: bool) -> Verdict:
    garbage = "" if random_weights else find_garbage(text)
    if usual is None:
        return Verdict("failed", f"{'garbled' if garbage else 'the ranks differ'}: {shorten(text)}")
    if text != usual:
        word = "garbled" if find_garbage(text) else "differs"
        return Verdict("failed", f"{word}: {shorten(text)}, where the others say {shorten(usual)}")
    if not text.strip():
        return Verdict("failed", "an empty answer")
    return (
        Verdict("failed", f"garbled, {garbage}: {shorten(text)}")
        if garbage
        else Verdict("passed", shorten(text))
    )


def _choose_usual(texts: list[str]) -> str | None:
    """What most ranks say; of two equally frequent answers the one that is not garbled, if it is the only one."""
    counts = Counter(texts).most_common()
    best = [text for text, count in counts if count == counts[0][1]]
    sound = [text for text in best if text.strip() and not find_garbage(text)]
    if len(best) == 1:
        return best[0]
    return sound[0] if len(sound) == 1 else None


def _find_call_problem(name: str, arguments: str, function: Mapping[str, object]) -> str:
    if name != function["name"]:
        return f"a call of {name!r}, which was not offered"
    try:
        parsed = json.loads(arguments)
    except ValueError as error:
        return f"the arguments are no JSON ({error}): {shorten(arguments)}"
    parameters = function["parameters"]
    assert isinstance(parameters, Mapping)
    missing = [
        one for one in parameters["required"] if not isinstance(parsed, dict) or one not in parsed
    ]
    return f"the arguments lack {', '.join(missing)}: {shorten(arguments)}" if missing else ""
