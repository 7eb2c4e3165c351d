"""Lines kept of a log, in bounded memory: the first, the last, and the telling ones between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

MAX_LINE_CHARS = 8192
"""Longest line that is searched: half of it from the head, half from the tail."""
_CUT_MARK = " [...] "
HEAD_SHARE = 4
"""The head gets this part of the bytes, the lines between another, the tail the rest."""
ERROR_WORDS = (
    *(b"rror", b"ERR", b"xception", b"ailed", b"ailure", b"FATAL", b"annot ", b"imed out"),
    *(b"imeout", b"illed", b"efused", b"nable to", b"raceback", b"not found", b"o space"),
)


def cut_line(line: str) -> str:
    """Return `line` with its middle removed when it is longer than `MAX_LINE_CHARS`."""
    if len(line) <= MAX_LINE_CHARS:
        return line
    half = MAX_LINE_CHARS // 2
    return f"{line[:half]}{_CUT_MARK}{line[-half:]}"


def may_hold(data: bytes, word: bytes) -> bool:
    """Whether the rarest byte of a word is in `data`: 10 times as fast as a search of the word."""
    return _rarest_byte(word) in data


@cache
def _rarest_byte(word: bytes) -> bytes:
    """Return the first byte of a word that is no small letter and no blank; "" if all are."""
    return next((word[n : n + 1] for n in range(len(word)) if word[n : n + 1] in _RARE), b"")


_RARE = frozenset(bytes([code]) for code in range(33, 127) if not ord("a") <= code <= ord("z"))


class Piece(NamedTuple):
    """Whole lines that follow each other."""

    number: int
    """Of the first line, in the file."""
    data: bytes

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its number, without its newline."""
        yield from enumerate(self.data.removesuffix(b"\n").split(b"\n"), self.number)


class BoundedLines:
    """Takes pieces in the order of the log; of too many it keeps the first and the last.

    Args:
        max_bytes: How much to keep.
    """

    def __init__(self, max_bytes: int) -> None:
        self._share = max_bytes // HEAD_SHARE
        self._tail_bytes = max_bytes - 2 * self._share
        self._head: list[Piece] = []
        self._between: list[Piece] = []
        self._tail: deque[Piece] = deque()
        self._sizes = {"head": 0, "between": 0, "tail": 0}
        self.dropped = 0
        """Lines that are lost."""

    def add(self, piece: Piece) -> None:
        """Keep a piece, perhaps only for a while."""
        size = len(piece.data)
        if self._sizes["head"] + size <= self._share:
            self._head.append(piece)
            self._sizes["head"] += size
            return
        # The head ends here: later pieces that would fit do not belong to it.
        self._sizes["head"] = self._share
        self._tail.append(piece)
        self._sizes["tail"] += size
        while self._sizes["tail"] > self._tail_bytes and len(self._tail) > 1:
            oldest = self._tail.popleft()
            self._sizes["tail"] -= len(oldest.data)
            self._thin_out(oldest)

    def pieces(self) -> Iterator[Piece]:
        """Yield what is kept; in order, except for the lines between head and tail."""
        yield from self._head
        yield from self._between
        yield from self._tail

    def _thin_out(self, piece: Piece) -> None:
        """Keep the lines with an error word, as long as there is room; count the others."""
        lines = piece.data.count(b"\n")
        if self._sizes["between"] < self._share:
            for start, end in _telling_lines(piece.data):
                number = piece.number + piece.data.count(b"\n", 0, start)
                self._between.append(Piece(number, piece.data[start:end]))
                self._sizes["between"] += end - start
                lines -= 1
        self.dropped += lines


def _telling_lines(data: bytes) -> list[tuple[int, int]]:
    found = set()
    for word in ERROR_WORDS:
        at = data.find(word) if may_hold(data, word) else -1
        while at >= 0:
            end = data.index(b"\n", at) + 1
            found.add((data.rfind(b"\n", 0, at) + 1, end))
            at = data.find(word, end)
    return sorted(found)
