"""Shell text as statements, as far as launch scripts need it. Reads any text, runs nothing, never raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from raylaunch.importer.expansion import Piece, Word

PLACEHOLDER = re.compile(r"<[A-Za-z_][\w./:-]*(?: [\w./:-]+)*>|\{\{ *\w+ *\}\}")
"""`<node0_ip>` and `{{ version }}` as tutorials write it; a shell would read a redirection, or several words."""

_OPERATORS = ("&&", "||", "|&", ";;", ";", "|", "&")
_REDIRECTION = re.compile(r"&>>?|[<>]&|>>|<<<|<<-?|>\||<>|[<>]")
_LONGEST_ARRAY = 20_000
"""Letters within which an array must close."""

_BLANK = " \t\r\v\f"
_OPENERS = {
    "for": "loop",
    "while": "loop",
    "until": "loop",
    "select": "loop",
    "if": "condition",
    "case": "condition",
}
_HOW = {
    "loop": "read once",
    "condition": "all branches are read, the first counts for what follows",
}
_CLOSERS = {"done": "loop", "fi": "condition", "esac": "condition", "}": "function"}
_WITHIN = ("then", "else", "elif", "do", "!", "{")


@dataclass(frozen=True)
class Statement:
    """One simple command: where it begins, its words, what joins it to the one before, and what it stands in."""

    line: int
    words: tuple[Word, ...]
    joined: str = ""
    """Operator before it: "", ";", "|", "&&", "||"."""
    background: bool = False
    redirections: tuple[str, ...] = ()
    inside: str = ""
    """ "loop", "condition", "function" or ""."""
    control: str = ""
    """ "if", "else" or "fi": no command, a branch begins or ends here."""
    array: str = ""
    """Name of the array that `words` are assigned to: no command."""


@dataclass(frozen=True)
class Oddity:
    """Something of the script that is no simple command, or that a shell would take otherwise than it was meant."""

    line: int
    what: str
    text: str = ""


@dataclass
class Parsed:
    """A script as statements, with all that is none."""

    statements: list[Statement] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)


def parse(text: str) -> Parsed:
    """Split a script into statements."""
    return _Reader(text.replace("\r\n", "\n").removeprefix("\ufeff")).read()


class _Reader:
    """One pass over the text, character by character."""

    def __init__(self, text: str, at: int = 0, line: int = 1, *, in_array: bool = False) -> None:
        self.text, self.at, self.line = text, at, line
        self.in_array = in_array
        self.out = Parsed()
        self.pieces: list[Piece] | None = None
        self.began = 0
        self.words: list[Word] = []
        self.start = 1
        self.joined = ""
        self.target: str | None = None
        """The redirection operator that waits for its file."""
        self.redirections: list[str] = []
        self.heredocs: list[tuple[str, int]] = []
        self.blocks: list[str] = []
        self._readers = {
            **dict.fromkeys(_BLANK, self._blank),
            **dict.fromkeys("$`", self._dollar),
            **dict.fromkeys("<>&|;", self._operator),
            "\\": self._backslash,
            "'": self._single,
            '"': self._double,
            "\n": self._newline,
            "#": self._comment,
        }

    def read(self) -> Parsed:
        while self.at < len(self.text):
            self.step(self.text[self.at])
        self._end_statement("")
        return self.out

    def step(self, char: str) -> None:
        at_word = self.pieces is None
        if char in self._readers and not (char == "#" and not at_word):
            self._readers[char]()
        elif char == "{" and (placeholder := PLACEHOLDER.match(self.text, self.at)):
            self._add(placeholder[0])
        elif char == "(" and not at_word and self._array():
            pass
        elif char in "()" and at_word:
            self._oddity("a subshell; its commands are read as they stand", char)
            self.at += 1
        else:
            self._add(char)

    def _blank(self) -> None:
        self.end_word()
        self.at += 1

    def _comment(self) -> None:
        self.at = self._find("\n", self.at)

    def _find(self, what: str, start: int) -> int:
        found = self.text.find(what, start)
        return len(self.text) if found < 0 else found

    def _add(
        self, text: str, *, expands: bool = False, splits: bool = False, length: int | None = None
    ) -> None:
        if self.pieces is None:
            self.pieces, self.began = [], self.at
            if not self.words and self.target is None:
                self.start = self.line
        last = self.pieces[-1] if self.pieces else None
        if last and not expands and not last.expands:
            self.pieces[-1] = Piece(last.text + text)
        else:
            self.pieces.append(Piece(text, expands, splits))
        taken = self.text[self.at : self.at + (len(text) if length is None else length)]
        self.line += taken.count("\n")
        self.at += len(taken)

    def _backslash(self) -> None:
        rest = re.compile(r"\\([ \t\r]*)(\n|\Z)").match(self.text, self.at)
        if rest is None:
            return self._add(self.text[self.at + 1], length=2)
        if rest[1].strip("\r") and rest[2]:
            self._oddity(
                "blanks behind a backslash: a shell would end the command here; read as continued"
            )
        if rest[1]:
            self.end_word()
        self.at = rest.end()
        self.line += 1
        return None

    def _single(self) -> None:
        start = self.at + (2 if self.text[self.at] == "$" else 1)
        end = self.text.find("'", start)
        if end < 0:
            self._oddity("a quote that never closes; read as a letter", self._rest_of_line())
            self._add("'", length=start - self.at)
        else:
            self._add(self.text[start:end], length=end + 1 - self.at)

    def _double(self) -> None:
        end = self._closing_quote(self.at + 1)
        if end is None:
            self._oddity("a quote that never closes; read as a letter", self._rest_of_line())
            return self._add('"')
        inner, start = self.text[self.at + 1 : end], self.at
        self._add("", length=0)  # an empty "" is a word too
        for part in re.findall(r"\\\n|\\[\"\\$`]|[^\\]+|\\", inner):
            if part != "\\\n":
                escaped = len(part) == 2 and part[0] == "\\"
                self._add(
                    part[1:] if escaped else part, expands=not escaped and "$" in part, length=0
                )
        self.line += self.text.count("\n", start, end)
        self.at = end + 1
        return None

    def _closing_quote(self, start: int) -> int | None:
        found = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL).match(self.text, start)
        return found.end() - 1 if found else None

    def _dollar(self) -> None:
        if self.text.startswith("$'", self.at):
            return self._single()
        found = re.compile(
            r"\$\{[^{}\n]*\}|\$\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|`[^`\n]*`|\$\w+"
        ).match(self.text, self.at)
        if found is None:
            return self._add(self.text[self.at])
        return self._add(found[0], expands=True, splits=True)

    def _newline(self) -> None:
        self._end_statement("")
        self.at += 1
        self.line += 1
        for delimiter, line in self.heredocs:
            self._skip_heredoc(delimiter, line)
        self.heredocs = []

    def _skip_heredoc(self, delimiter: str, line: int) -> None:
        found = re.compile(rf"^[ \t]*{re.escape(delimiter)}[ \t]*$", re.MULTILINE).search(
            self.text, self.at
        )
        end = found.end() if found else len(self.text)
        body = self.text[self.at : end]
        self.out.oddities.append(
            Oddity(line, f"a here-document (until {delimiter}) is not read", body)
        )
        self.line += body.count("\n")
        self.at = end

    def _operator(self) -> None:
        placeholder = PLACEHOLDER.match(self.text, self.at)
        redirection = _REDIRECTION.match(self.text, self.at)
        if placeholder:
            return self._add(placeholder[0])
        if redirection:
            fd = self._take_fd()
            self.target = fd + redirection[0]
            self.at = redirection.end()
            return None
        if (
            self.text[self.at] == "|"
            and (named := re.compile(r"\|\w+\|").match(self.text, self.at))
            and self.pieces is not None
        ):
            return self._add(named[0])  # a documentation's own `|version|`
        operator = next(each for each in _OPERATORS if self.text.startswith(each, self.at))
        self._end_statement(operator)
        self.at += len(operator)
        return None

    def _array(self) -> bool:
        """Read `NAME=( words )` as one statement; False when it is none."""
        name = re.fullmatch(r"(\w+)\+?=", self.text[self.began : self.at])
        inner = _Reader(self.text, self.at + 1, self.line, in_array=True)
        last = min(len(self.text), self.at + _LONGEST_ARRAY)
        while name and not self.in_array and inner.at < last and self.text[inner.at] != ")":
            if self.text[inner.at] == "\n":
                inner.line += 1
                inner.at += 1
                inner.end_word()
            else:
                inner.step(self.text[inner.at])
        if name is None or self.in_array or inner.at >= last:
            return False
        inner.end_word()
        self.out.statements.append(
            Statement(self.start, tuple(inner.words), array=self.text[self.began : self.at])
        )
        self.out.oddities += inner.out.oddities
        self.at, self.line, self.pieces = inner.at + 1, inner.line, None
        return True

    def _take_fd(self) -> str:
        digits = self.pieces is not None and len(self.pieces) == 1 and self.pieces[0].text.isdigit()
        if digits and self.pieces and not self.pieces[0].expands:
            fd, self.pieces = self.pieces[0].text, None
            return fd
        self.end_word()
        return ""

    def end_word(self) -> None:
        if self.pieces is None:
            return
        word = Word(tuple(self.pieces), self.text[self.began : self.at])
        self.pieces = None
        if self.target is None:
            self.words.append(word)
            return
        if self.target.endswith(("<<", "<<-")) and word.text:
            self.heredocs.append((word.text, self.line))
        self.redirections.append(f"{self.target}{word.raw}")
        self.target = None

    def _end_statement(self, operator: str) -> None:
        self.end_word()
        if self.target is not None:
            self.redirections.append(self.target)
            self.target = None
        words = list(self._strip_control())
        if words or self.redirections:
            inside = self.blocks[-1] if self.blocks else ""
            self.out.statements.append(
                Statement(
                    self.start,
                    tuple(words),
                    self.joined,
                    operator == "&",
                    tuple(self.redirections),
                    inside,
                )
            )
            self.joined = ""
        self.joined = (
            operator.rstrip("&")
            if operator in ("|&", "&")
            else operator or self.joined * bool(not words)
        )
        self.words, self.redirections = [], []

    def _strip_control(self) -> Iterator[Word]:
        """Take the shell's own words off the front, and remember what block we are in."""
        words = self.words
        while words:
            first = words[0].raw
            if first in _CLOSERS:
                if _CLOSERS[first] in self.blocks:
                    del self.blocks[
                        len(self.blocks) - 1 - self.blocks[::-1].index(_CLOSERS[first]) :
                    ]
                self._control(first)
            elif first in _OPENERS:
                self._control(first)
                self.blocks.append(_OPENERS[first])
                self._oddity(
                    f"a {_OPENERS[first]} ({first}); {_HOW[_OPENERS[first]]}",
                    " ".join(word.raw for word in words),
                    self.start,
                )
                if first in ("for", "case", "select"):
                    return
            elif first == "function" or re.fullmatch(r"\w+\(\)?", first):
                self.blocks.append("function")
                self._oddity("a function", " ".join(word.raw for word in words), self.start)
                return
            elif first not in _WITHIN:
                break
            elif first in ("else", "elif"):
                self._control("else")
            words = words[1:]
        yield from words

    def _control(self, word: str) -> None:
        if word in ("if", "else", "fi"):
            self.out.statements.append(Statement(self.start, (), control=word))

    def _rest_of_line(self) -> str:
        return self.text[self.at : self._find("\n", self.at)]

    def _oddity(self, what: str, text: str = "", line: int | None = None) -> None:
        self.out.oddities.append(Oddity(self.line if line is None else line, what, text))
