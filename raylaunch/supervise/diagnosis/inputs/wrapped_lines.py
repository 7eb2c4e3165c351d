"""Lines that a terminal of fixed width has broken, joined again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylaunch.supervise.diagnosis.inputs.bounded_lines import cut_line
from raylaunch.supervise.diagnosis.inputs.carried_lines import strip_foreign

_NARROWEST = 72
_WIDEST = 400
_TIMES = 2
_NAMED = re.compile(
    r"^\s{0,8}(?:\([^()]{0,64}\bpid=\d|\[rank\d|(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d |"
    r"\[(?:ERROR|WARNING|INFO|EVENT)\] ?[A-Z])"
)
"""A process or library that writes its name or level before each of its lines."""
_BEGINS_A_LINE = re.compile(
    r"^(?:\s|\(|\[|$|[\w.]{1,60}(?:Error|Exception): |Traceback|"
    r"(?:usage|vllm|error|note): |[EWI]\d{4}|\d{4}-|"
    r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)"
)
_AFTER_A_BLANK = re.compile(r"^ (?!\([^()]{0,64}\bpid=)\S")
_BRACKET = re.compile(
    r"^[\[(\]](?!(?:ERROR|WARN|INFO|EVENT|TRACE|DEBUG|FATAL|rank\d|Gloo|W\d|E\d|"
    r"\d{4}-|[\w.]{1,60}\.py:|[^()]{0,64}\bpid=))"
)
_WITHIN_A_WORD = re.compile(r"[\w/.,=-]$")
_GOES_ON = re.compile(r"^[a-z0-9_/.,=-]")


def join_wrapped(lines: Sequence[str], *, once: bool = False) -> list[tuple[int, str]]:
    """Return the lines with the pieces that a terminal of fixed width has made of one joined.

    The width is that of the longest line, and two lines at least must have been broken there.

    Args:
        lines: The lines, without colours.
        once: Take one broken line for enough, if it is cut within a word.

    Returns:
        Each line with its index, that of the first piece.
    """
    width = max((len(line) for line in lines), default=0)
    broken: set[int] = set()
    if _NARROWEST <= width <= _WIDEST:
        # A wide character that does not fit leaves one column free.
        full = [index for index, line in enumerate(lines[:-1]) if len(line) in (width, width - 1)]
        broken = _find_broken(lines, full, once=once)
    joined: list[tuple[int, str]] = []
    for index, line in enumerate(lines):
        if index - 1 in broken:
            first, text = joined[-1]
            joined[-1] = first, cut_line(text + line)
        else:
            joined.append((index, line))
    return joined


def may_be_broken_once(lines: Sequence[str]) -> bool:
    """Whether a terminal may have broken these lines in a single place."""
    return len(join_wrapped(lines, once=True)) < len(lines)


def _find_broken(lines: Sequence[str], full: Sequence[int], *, once: bool) -> set[int]:
    """Return those of the full lines that the next line goes on with."""
    broken = [index for index in full if not _begins_a_line(lines[index + 1])]
    blank = [index for index in full if _AFTER_A_BLANK.match(lines[index + 1])]
    # Where a terminal breaks lines, or a process writes its name before each of its own, a piece
    # that begins with the blank between two words is the rest of a full line.
    if broken or any(_NAMED.match(lines[index]) for index in blank):
        broken = [*broken, *blank]
    if len(broken) < _TIMES:
        cut = once and any(_is_cut_in_word(lines[index], lines[index + 1]) for index in broken)
        return {*broken} if cut else set()
    brackets = [index for index in full if _BRACKET.match(lines[index + 1])]
    return {*broken, *brackets}


def _begins_a_line(line: str) -> bool:
    return _BEGINS_A_LINE.match(line) is not None or strip_foreign(line) != line


def _is_cut_in_word(line: str, after: str) -> bool:
    return bool(_WITHIN_A_WORD.search(line) and _GOES_ON.match(after))
