"""Evaluates `[ ]`, `[[ ]]` and `test`: true, false, or unknown without running the script."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence

from raylaunch.importer.shell.placeholders import is_open

_NUMERIC: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}
_TEXTUAL = ("=", "==", "!=", "<", ">")


def evaluate(words: Sequence[str], *, patterns: bool) -> bool | None:
    """Return the result of a test; None if it depends on what the script does not set.

    `patterns`: the right side of `==` is a pattern, as in `[[ ]]`.
    """
    for joint in ("-o", "||"):
        if joint in words[1:-1]:
            return _either(_split(words, joint), patterns=patterns)
    for joint in ("-a", "&&"):
        if joint in words[1:-1]:
            return _both(_split(words, joint), patterns=patterns)
    if words[:1] == ["!"] or words[:1] == ("!",):
        inner = evaluate(words[1:], patterns=patterns) if len(words) < 100 else None
        return None if inner is None else not inner
    return _single(words, patterns=patterns)


def _split(words: Sequence[str], joint: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == joint:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _either(parts: list[list[str]], *, patterns: bool) -> bool | None:
    results = [evaluate(part, patterns=patterns) for part in parts]
    if True in results:
        return True
    return None if None in results else False


def _both(parts: list[list[str]], *, patterns: bool) -> bool | None:
    results = [evaluate(part, patterns=patterns) for part in parts]
    if False in results:
        return False
    return None if None in results else True


def _single(words: Sequence[str], *, patterns: bool) -> bool | None:
    if any(is_open(word) for word in words):
        return None
    if not words:
        return False
    if len(words) == 1:
        return bool(words[0])
    if len(words) == 2:
        return _unary(words[0], words[1])
    if len(words) == 3:
        return _binary(words[0], words[1], words[2], patterns=patterns)
    return None


def _unary(test: str, value: str) -> bool | None:
    if test == "-n":
        return bool(value)
    if test == "-z":
        return not value
    # -f, -d, -x and the others ask for the node's files.
    return None


def _binary(left: str, test: str, right: str, *, patterns: bool) -> bool | None:
    if test in _NUMERIC:
        if not all(re.fullmatch(r"\s*-?\d{1,18}\s*", each) for each in (left, right)):
            return None
        return _NUMERIC[test](int(left), int(right))
    if test not in _TEXTUAL:
        return None
    if test in ("<", ">"):
        return left < right if test == "<" else left > right
    is_pattern = patterns and re.search(r"[*?\[]", right)
    same = fnmatch.fnmatchcase(left[:4096], right[:256]) if is_pattern else left == right
    return same if test != "!=" else not same


def matches(value: str, patterns: Sequence[str]) -> bool | None:
    """Return whether a value fits one pattern of a `case`; None if the value is unknown."""
    if is_open(value):
        return None
    return any(fnmatch.fnmatchcase(value[:4096], pattern[:256]) for pattern in patterns)
