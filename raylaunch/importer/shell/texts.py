"""Operations on text that expansions need: braces, trimming, `seq` and `basename`."""

from __future__ import annotations

import fnmatch
import re

_MAX_BRACE_WORDS = 4096

_MAX_TRIMMED = 512
"""Characters of a value that `%` and `#` cut: each length is tried, so the cost is its square."""


def expand_braces(text: str) -> list[str]:
    """Expand `{1..4}` and `{a,b}`, at most one of them, as loops over nodes use it."""
    span = re.fullmatch(r"([^{}]*)\{(-?\d{1,9})\.\.(-?\d{1,9})\}([^{}]*)", text)
    if span:
        first = int(span[2])
        last = int(span[3])
        step = 1 if last >= first else -1
        if abs(last - first) >= _MAX_BRACE_WORDS:
            return [text]
        return [f"{span[1]}{number}{span[4]}" for number in range(first, last + step, step)]
    listed = re.fullmatch(r"([^{}]*)\{([^{}\s\"':]*,[^{}\s\"':]*)\}([^{}]*)", text)
    if listed:
        parts = listed[2].split(",")
        return [f"{listed[1]}{part}{listed[3]}" for part in parts][:_MAX_BRACE_WORDS]
    return [text]


def trim(value: str, operator: str, pattern: str) -> str | None:
    """Remove the shortest (`#`, `%`) or longest (`##`, `%%`) match from one end."""
    if len(value) > _MAX_TRIMMED or len(pattern) > 64 or pattern.count("*") > 3:
        return None
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if len(operator) == 2 else lengths:
        if operator[0] == "#" and fnmatch.fnmatchcase(value[:length], pattern):
            return value[length:]
        if operator[0] == "%" and fnmatch.fnmatchcase(value[len(value) - length :], pattern):
            return value[: len(value) - length]
    return value


def output_of(command: str, words: list[str]) -> str | None:
    """Return the output of a command that only works on its words, None if it is unknown."""
    if command == "echo":
        return None if words[:1] in (["-e"], ["-n"]) else " ".join(words)
    if command in ("which", "command -v"):
        # The one program whose path matters; a server's own environment finds it.
        return "vllm" if words == ["vllm"] else None
    if command == "basename" and words:
        name = words[0].rstrip("/").rpartition("/")[2]
        return name.removesuffix(words[1]) if len(words) > 1 else name
    if command == "dirname" and words:
        return words[0].rstrip("/").rpartition("/")[0] or "."
    if command == "seq" and all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
        return _sequence([int(word) for word in words])
    return None


def _sequence(numbers: list[int]) -> str | None:
    if not 1 <= len(numbers) <= 3:
        return None
    first = numbers[0] if len(numbers) > 1 else 1
    step = numbers[1] if len(numbers) == 3 else 1
    last = numbers[-1]
    if step == 0 or abs(last - first) // abs(step) >= _MAX_BRACE_WORDS:
        return None
    end = last + (1 if step > 0 else -1)
    return " ".join(map(str, range(first, end, step)))
