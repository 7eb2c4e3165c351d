"""Splits shell text into statements, as far as launch scripts need it.

Reads any text, runs nothing, never raises. bashlex and tree-sitter fail on the text of real
tutorials (`<node0_ip>`, `{{ version }}`, lost backslashes), so this reader accepts all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raylaunch.importer.shell.expansion import Piece, Word
from raylaunch.importer.shell.shell_words import MAX_UNCLOSED, Oddity, WordReader

PLACEHOLDER = re.compile(
    r"<[A-Za-z_][\w./:-]*(?: [\w./:-]+)*>|\{\{[ \t]*\.?[A-Za-z_][^{}\n]{0,200}\}\}"
)
"""`<node0_ip>` and `{{ version }}` as tutorials write it; a shell would read a redirection, or
several words.
"""

_OPERATORS = ("&&", "||", "|&", ";;", ";", "|", "&")
_REDIRECTION = re.compile(r"&>>?|[<>]&|>>|<<<|<<-?|>\||<>|[<>]")
_LONGEST_ARRAY = 20_000
"""Characters within which an array must close."""

_LOOKAHEAD = 60_000
"""Characters that may be read in vain for arrays that never close, per script."""

_BLANK = " \t\r\v\f"
_SINGLE_CONTROLS = ("then", "do", "!", "{", "else", "done", "fi", "esac", "}")
_OPENERS = ("if", "elif", "while", "until")
_LISTS = ("for", "select", "case")
_ARITHMETIC = re.compile(r"\(\(([^\n]{0,500}?)\)\)(?=\s|;|&|\||\)|\Z)")
_PATTERN = re.compile(r"\(?([^()\n]{1,200})\)")


@dataclass(frozen=True)
class Heredoc:
    """The text behind `<<WORD`. `expands`: its variables count, because the word is unquoted."""

    text: str
    line: int
    expands: bool


@dataclass(frozen=True)
class Statement:
    """One simple command: its line, its words, and the operator that joins it to the one before."""

    line: int
    words: tuple[Word, ...]
    joined: str = ""
    """Operator before it: "", ";", "|", "&&", "||"."""
    background: bool = False
    redirections: tuple[str, ...] = ()
    control: str = ""
    """A reserved word ("if", "do", "{", "(", "function", "pattern"): no command."""
    array: str = ""
    """Name of the array that `words` are assigned to: no command."""
    heredocs: tuple[Heredoc, ...] = ()
    negated: bool = False
    """Behind `!`: its status is inverted."""


@dataclass
class Parsed:
    """A script as statements, and what of it is none."""

    statements: list[Statement] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)


def parse(text: str) -> Parsed:
    """Split a script into statements."""
    return _Reader(text.replace("\r\n", "\n").removeprefix("\ufeff")).read()


class _Reader(WordReader):
    """One pass over the text, character by character."""

    def __init__(self, text: str, at: int = 0, line: int = 1, *, in_array: bool = False) -> None:
        super().__init__(text, at, line)
        self.in_array = in_array
        self.lookahead = _LOOKAHEAD
        self.out = Parsed()
        self.joined = ""
        self.redirections: list[str] = []
        self.heredocs: list[tuple[str, bool, int]] = []
        self.in_test = False
        """Within `[[ ]]`, where `&&` and `<` are no operators."""
        self.cases = 0
        self.expects_pattern = False
        self.negated = False

    def read(self) -> Parsed:
        while self.at < len(self.text):
            self.step(self.text[self.at])
        self._end_statement("")
        self._read_heredocs()
        self.out.oddities = self.oddities
        return self.out

    def step(self, char: str) -> None:
        at_word = self.pieces is None
        if self.expects_pattern and at_word and not char.isspace() and char != "#":
            self._pattern()
        elif self.in_test and char in "<>&|()":
            self._add(char)
        elif char in _READERS and not (char == "#" and not at_word):
            _READERS[char](self)
        elif char == "{" and (placeholder := PLACEHOLDER.match(self.text, self.at)):
            self._add(placeholder[0])
        elif char in "()":
            self._parenthesis(char)
        else:
            self._add(char)

    def _parenthesis(self, char: str) -> None:
        at_word = self.pieces is None
        doubled = at_word and self.text.startswith("((", self.at) and self.unclosed < MAX_UNCLOSED
        computed = _ARITHMETIC.match(self.text, self.at) if doubled else None
        self.unclosed += doubled and computed is None
        if computed:
            self._add(computed[0])
        elif char == "(" and not at_word and (self._array() or self._function()):
            pass
        elif at_word or char == ")":
            self._end_statement("")
            self._control(char)
            self.at += 1
        else:
            self._add(char)

    def read_blank(self) -> None:
        self.end_word()
        self.at += 1

    def read_comment(self) -> None:
        self.at = self._find("\n", self.at)

    def read_newline(self) -> None:
        self._end_statement("")
        self.at += 1
        self.line += 1
        self._read_heredocs()

    def _read_heredocs(self) -> None:
        """Attach the texts that follow this line to the statement that asked for them."""
        heredocs = self.heredocs
        self.heredocs = []
        for delimiter, expands, line in heredocs:
            read = self._heredoc(delimiter, expands, line)
            if self.out.statements:
                last = self.out.statements[-1]
                self.out.statements[-1] = replace(last, heredocs=(*last.heredocs, read))

    def _heredoc(self, delimiter: str, expands: bool, line: int) -> Heredoc:
        closing = rf"^[ \t]*{re.escape(delimiter)}[ \t]*$"
        found = re.compile(closing, re.MULTILINE).search(self.text, self.at)
        end = found.end() if found else len(self.text)
        body = self.text[self.at : found.start() if found else end]
        if found is None:
            what = f"a here-document that never ends (until {delimiter}) is read to the end"
            self._oddity(what, "", line)
        begins = self.line
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return Heredoc(body, begins, expands)

    def read_operator(self) -> None:
        placeholder = PLACEHOLDER.match(self.text, self.at)
        redirection = _REDIRECTION.match(self.text, self.at)
        if placeholder:
            return self._add(placeholder[0])
        if redirection:
            fd = self._take_fd()
            self.target = fd + redirection[0]
            self.at = redirection.end()
            return None
        named = re.compile(r"\|\w+\|").match(self.text, self.at)
        if named and self.pieces is not None:
            # A documentation's own `|version|`.
            return self._add(named[0])
        operator = next(each for each in _OPERATORS if self.text.startswith(each, self.at))
        self._end_statement(operator)
        self.at += len(operator)
        if operator == ";;" and self.cases:
            self.expects_pattern = True
        return None

    def _pattern(self) -> None:
        """Read the `a|b)` of a case."""
        self.expects_pattern = False
        found = _PATTERN.match(self.text, self.at)
        if self.text.startswith("esac", self.at) or found is None:
            return
        pattern = found[1].strip()
        word = Word((Piece(pattern),), pattern)
        self._end_statement("")
        self.out.statements.append(Statement(self.line, (word,), control="pattern"))
        self.at = found.end()

    def _function(self) -> bool:
        """Read the `NAME()` of a function; False when it is none."""
        found = re.compile(r"\(\s{0,20}\)").match(self.text, self.at)
        name = self.text[self.began : self.at]
        if found is None or not re.fullmatch(r"[\w.:-]+", name) or self.target is not None:
            return False
        self.pieces = None
        self._end_statement("")
        self._open_function(name)
        self.at = found.end()
        return True

    def _open_function(self, name: str) -> None:
        word = Word((Piece(name),), name)
        statement = Statement(self.line, (word,), self.joined, control="function")
        self.out.statements.append(statement)
        self.joined = ""

    def _array(self) -> bool:
        """Read `NAME=( words )` as one statement; False when it is none."""
        name = re.fullmatch(r"(\w+)\+?=", self.text[self.began : self.at])
        last = min(len(self.text), self.at + _LONGEST_ARRAY)
        if name is None or self.in_array or self.lookahead <= 0:
            return False
        inner = _Reader(self.text, self.at + 1, self.line, in_array=True)
        while inner.at < last and self.text[inner.at] != ")":
            if self.text[inner.at] == "\n":
                inner.line += 1
                inner.at += 1
                inner.end_word()
            else:
                inner.step(self.text[inner.at])
        if inner.at >= last:
            self.lookahead -= last - self.at
            return False
        inner.end_word()
        assignment = self.text[self.began : self.at]
        # `declare -A NAME=(...)`, `local NAME=(...)`: the words before add nothing.
        self.words = []
        self.out.statements.append(
            Statement(self.start, tuple(inner.words), self.joined, array=assignment)
        )
        self.oddities += inner.oddities
        self.at = inner.at + 1
        self.line = inner.line
        self.pieces = None
        self.joined = ""
        return True

    def _take_fd(self) -> str:
        digits = self.pieces is not None and len(self.pieces) == 1 and self.pieces[0].text.isdigit()
        if digits and self.pieces and not self.pieces[0].expands:
            fd = self.pieces[0].text
            self.pieces = None
            return fd
        self.end_word()
        return ""

    def end_word(self) -> None:
        if self.pieces is None:
            return
        word = Word(tuple(self.pieces), self.text[self.began : self.at])
        self.pieces = None
        if self.target is not None:
            self._end_redirection(word)
            return
        self.words.append(word)
        if word.raw == "[[":
            self.in_test = True
        elif word.raw == "]]":
            self.in_test = False
        elif word.raw == "in" and len(self.words) >= 3 and self._opens_case():
            self._end_statement("")
            self.expects_pattern = True

    def _opens_case(self) -> bool:
        first = next((word.raw for word in self.words if word.raw not in _SINGLE_CONTROLS), "")
        return first == "case"

    def _end_redirection(self, word: Word) -> None:
        target = self.target or ""
        if target.endswith(("<<", "<<-")) and word.text:
            quoted = word.raw != word.text or any(piece.quoted for piece in word.pieces)
            self.heredocs.append((word.text, not quoted, self.line))
        self.redirections.append(f"{target}{word.raw}")
        self.target = None

    def _end_statement(self, operator: str) -> None:
        self.end_word()
        self.in_test = False
        if self.target is not None:
            self.redirections.append(self.target)
            self.target = None
        words = self._strip_control()
        if words or self.redirections:
            self.out.statements.append(
                Statement(
                    self.start,
                    tuple(words),
                    self.joined,
                    operator == "&",
                    tuple(self.redirections),
                    negated=self.negated,
                )
            )
            self.joined = ""
            self.negated = False
        if operator in ("|&", "&"):
            self.joined = operator.rstrip("&")
        elif operator or words:
            self.joined = operator
        self.words = []
        self.redirections = []

    def _strip_control(self) -> list[Word]:
        """Split the shell's reserved words off the front, each a statement of its own."""
        words = self.words
        at = 0
        while at < len(words):
            first = words[at].raw
            if first in _LISTS:
                self._open_list(first, words[at:])
                return []
            if first == "function" and at + 1 < len(words):
                self._open_function(words[at + 1].raw)
                at += 2
                continue
            if first not in _SINGLE_CONTROLS and first not in _OPENERS:
                break
            if first == "esac":
                self.cases = max(0, self.cases - 1)
            if first == "!":
                self.negated = not self.negated
            else:
                self._control(first)
            at += 1
        return words[at:]

    def _open_list(self, first: str, words: list[Word]) -> None:
        self.cases += first == "case"
        statement = Statement(self.start, tuple(words[1:]), self.joined, control=first)
        self.out.statements.append(statement)
        self.joined = ""

    def _control(self, word: str) -> None:
        self.out.statements.append(Statement(self.start, (), self.joined, control=word))
        self.joined = ""


_READERS: dict[str, Callable[[_Reader], None]] = {
    **dict.fromkeys(_BLANK, _Reader.read_blank),
    **dict.fromkeys("$`", _Reader.read_dollar),
    **dict.fromkeys("<>&|;", _Reader.read_operator),
    "\\": _Reader.read_backslash,
    "'": _Reader.read_single,
    '"': _Reader.read_double,
    "\n": _Reader.read_newline,
    "#": _Reader.read_comment,
}
