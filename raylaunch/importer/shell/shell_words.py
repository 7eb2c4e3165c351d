"""Reads the words of a script: quotes, escapes, and where an expansion ends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylaunch.importer.shell.expansion import Piece, Word, end_of_expansion

_DOUBLE_QUOTED = re.compile(r'["\\$`]')

MAX_UNCLOSED = 500
"""Expansions that never close, per script: after so many each `$` is a letter. Keeps it linear."""


@dataclass(frozen=True)
class Oddity:
    """Something that a shell would take in another way than it was meant."""

    line: int
    what: str
    text: str = ""


class WordReader:
    """A position in a text, and the word that is being read there."""

    def __init__(self, text: str, at: int, line: int) -> None:
        self.text = text
        self.at = at
        self.line = line
        self.oddities: list[Oddity] = []
        self.pieces: list[Piece] | None = None
        self.began = 0
        self.words: list[Word] = []
        self.start = 1
        self.target: str | None = None
        """The redirection operator that waits for its file."""
        self.unclosed = 0
        """Expansions that were searched in vain for their end."""

    def end_word(self) -> None:
        """End the word that is being read."""
        raise NotImplementedError

    def _find(self, what: str, start: int) -> int:
        found = self.text.find(what, start)
        return len(self.text) if found < 0 else found

    def _open_word(self) -> list[Piece]:
        if self.pieces is None:
            self.pieces = []
            self.began = self.at
            if not self.words and self.target is None:
                self.start = self.line
        return self.pieces

    def _add(
        self,
        text: str,
        *,
        expands: bool = False,
        splits: bool = False,
        quoted: bool = False,
        length: int | None = None,
    ) -> None:
        pieces = self._open_word()
        last = pieces[-1] if pieces else None
        if last and not expands and not last.expands and last.quoted == quoted:
            pieces[-1] = Piece(last.text + text, quoted=quoted)
        else:
            pieces.append(Piece(text, expands, splits, quoted))
        consumed = self.text[self.at : self.at + (len(text) if length is None else length)]
        self.line += consumed.count("\n")
        self.at += len(consumed)

    def read_backslash(self) -> None:
        """Read an escaped character, or a line that goes on."""
        rest = re.compile(r"\\([ \t\r]*)(\n|\Z)").match(self.text, self.at)
        if rest is None:
            return self._add(self.text[self.at + 1], quoted=True, length=2)
        if rest[1].strip("\r") and rest[2]:
            self._oddity(
                "blanks behind a backslash: a shell would end the command here; read as continued"
            )
        if rest[1]:
            self.end_word()
        self.at = rest.end()
        self.line += 1
        return None

    def read_single(self) -> None:
        """Read a single-quoted string."""
        start = self.at + (2 if self.text[self.at] == "$" else 1)
        end = self.text.find("'", start)
        if end < 0:
            self._oddity("a quote that never closes; read as a letter", self._rest_of_line())
            self._add("'", length=start - self.at)
        else:
            self._add(self.text[start:end], quoted=True, length=end + 1 - self.at)

    def read_double(self) -> None:
        """Read a double-quoted string; each `$` in it is a piece of its own."""
        end = self._closing_quote(self.at + 1)
        if end is None:
            self._oddity("a quote that never closes; read as a letter", self._rest_of_line())
            return self._add('"')
        start = self.at
        # An empty "" is a word too.
        self._add("", quoted=True, length=0)
        at = start + 1
        while at < end:
            at = self._within_quotes(at, end)
        self.line += self.text.count("\n", start, end)
        self.at = end + 1
        return None

    def _within_quotes(self, at: int, end: int) -> int:
        """Add one part of a double-quoted string; return where the next begins."""
        found = _DOUBLE_QUOTED.search(self.text, at, end)
        stop = found.start() if found else end
        if stop > at:
            self._add(self.text[at:stop], quoted=True, length=0)
            return stop
        if self.text[at] == "\\":
            escaped = self.text[at + 1 : at + 2]
            if escaped != "\n":
                kept = escaped if escaped in ('"', "\\", "$", "`") else f"\\{escaped}"
                self._add(kept, quoted=True, length=0)
            return at + 2
        expansion = self._expansion(at)
        if expansion is None or expansion > end:
            self._add(self.text[at], quoted=True, length=0)
            return at + 1
        self._add(self.text[at:expansion], expands=True, quoted=True, length=0)
        return expansion

    def _closing_quote(self, start: int) -> int | None:
        at = start
        while found := _DOUBLE_QUOTED.search(self.text, at):
            if found[0] == '"':
                return found.start()
            # A `$(...)` has quotes of its own.
            escaped = found[0] == "\\"
            end = found.start() + 2 if escaped else self._expansion(found.start())
            at = end or found.end()
        return None

    def _expansion(self, at: int) -> int | None:
        """Return the end of the expansion at `at`; after many that never close, None."""
        if self.unclosed >= MAX_UNCLOSED:
            return None
        end = end_of_expansion(self.text, at)
        self.unclosed += end is None
        return end

    def read_dollar(self) -> None:
        """Read an expansion outside of quotes."""
        if self.text.startswith("$'", self.at):
            return self.read_single()
        end = self._expansion(self.at)
        if end is None:
            return self._add(self.text[self.at])
        return self._add(self.text[self.at : end], expands=True, splits=True)

    def _rest_of_line(self) -> str:
        return self.text[self.at : self._find("\n", self.at)]

    def _oddity(self, what: str, text: str = "", line: int | None = None) -> None:
        self.oddities.append(Oddity(self.line if line is None else line, what, text))
