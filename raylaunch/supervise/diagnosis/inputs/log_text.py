"""Some lines of a log as one text, in which patterns are searched."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from raylaunch.supervise.diagnosis.inputs.pattern_words import needed_words

_LONG_CHARS = 100_000
"""In a longer text it pays to search words of a pattern first."""
_MANY_LINES = 20_000
_WINDOW_LINES = 6
"""Lines around a word that a match may span: a block and the blank lines in it."""


@dataclass(frozen=True)
class LogText:
    """Some of a log's lines joined to one text: a pattern is searched once and may span lines."""

    text: str
    starts: tuple[int, ...]
    """Offset in `text` of each line."""
    lines: tuple[int, ...]
    """Index in the log of each line."""

    @cached_property
    def _lower(self) -> str:
        return self.text.lower()

    def find(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """Yield all matches, each with the index of the line it begins on."""
        for start, end in self._windows(pattern):
            for match in pattern.finditer(self.text, start, end):
                position = bisect_right(self.starts, match.start()) - 1
                yield self.lines[position], match

    def _windows(self, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
        """Return the parts of a long text, whole lines, in which the pattern can match."""
        whole = [(0, len(self.text))]
        if len(self.text) <= _LONG_CHARS:
            return whole
        words, is_lower = needed_words(pattern)
        text = self._lower if is_lower else self.text
        # A few characters are longer in lower case: then no place would be right.
        if not words or len(text) != len(self.text):
            return whole
        lines: set[int] = set()
        for word in words:
            at = text.find(word)
            while at >= 0:
                lines.add(bisect_right(self.starts, at) - 1)
                if len(lines) > _MANY_LINES:
                    return whole
                at = text.find(word, at + 1)
        windows: list[tuple[int, int]] = []
        for line in sorted(lines):
            start = self.starts[max(0, line - _WINDOW_LINES)]
            behind = line + _WINDOW_LINES + 1
            end = self.starts[behind] - 1 if behind < len(self.starts) else len(self.text)
            if windows and start <= windows[-1][1] + 1:
                start = windows.pop()[0]
            windows.append((start, end))
        return windows
