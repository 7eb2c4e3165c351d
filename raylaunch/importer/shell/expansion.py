"""The words of a script: their pieces, what their variables expand to, and what is left open.

Nothing is executed: what only a run could tell (`$(hostname)`) stays as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from raylaunch.importer.shell.arithmetic import compute
from raylaunch.importer.shell.placeholders import is_open
from raylaunch.importer.shell.texts import expand_braces, output_of, trim

MAX_WORD = 131_072
"""Characters of one word: Linux's MAX_ARG_STRLEN (32 pages); execve refuses a longer one."""

MAX_TOTAL = 8_000_000
"""Characters that all expansions of one import may yield together."""

_MAX_EXPANSION = 4096
"""Characters within which `$(...)` or `${...}` must close."""

_MAX_NESTING = 20
BETWEEN = "\x1f"
"""Separates the members of an array in its variable."""


@dataclass(frozen=True)
class Piece:
    """Part of a word: literal text, or one `$` expansion.

    `splits`: unquoted, so that its value may become several words.
    """

    text: str
    expands: bool = False
    splits: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class Word:
    """A word in pieces; `raw` is its spelling in the script."""

    pieces: tuple[Piece, ...]
    raw: str

    @property
    def text(self) -> str:
        """The word without its quotes, nothing expanded."""
        return "".join(piece.text for piece in self.pieces)


def end_of_expansion(text: str, at: int) -> int | None:
    """Return the end of the `$...` or backtick expansion that starts at `at`, None if it has none.

    The search is bounded in length and depth, so a script of `$(` only takes linear time.
    """
    if text[at] == "`":
        end = text.find("`", at + 1, at + _MAX_EXPANSION)
        return end + 1 if end > 0 else None
    simple = _NAMED.match(text, at)
    if simple:
        return simple.end()
    if text[at + 1 : at + 2] not in ("(", "{"):
        return None
    return _closing(text, at + 1, min(len(text), at + _MAX_EXPANSION))


_NAMED = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?!$-])")
_CLOSING_MARKS = re.compile(r"[(){}'\"\\`]")
_PAIRS = {"(": ")", "{": "}"}


def _closing(text: str, at: int, limit: int) -> int | None:  # noqa: C901 - one state, one loop
    """Return the position behind the bracket that closes the one at `at`."""
    # One loop over the marks: a function per mark would hide the state they share.
    expected: list[str] = []
    quoted = False
    while True:
        found = _CLOSING_MARKS.search(text, at, limit)
        if found is None:
            return None
        mark = found[0]
        at = found.end()
        if mark == "\\":
            at += 1
        elif mark == '"':
            quoted = not quoted
        elif mark == "'" and not quoted:
            at = text.find("'", at, limit) + 1
            if at == 0:
                return None
        elif mark in _PAIRS and not (quoted and text[found.start() - 1] != "$"):
            expected.append(_PAIRS[mark])
            if len(expected) > _MAX_NESTING:
                return None
        elif expected and mark == expected[-1] and not (quoted and len(expected) == 1):
            expected.pop()
            if not expected:
                return at


@dataclass
class Limits:
    """How much all expansions of one import may still yield, and whether one was cut short."""

    left: int = MAX_TOTAL
    exceeded: bool = False

    def allow(self, length: int) -> bool:
        """Return whether a word of `length` characters may be made, and account for it."""
        if length > MAX_WORD or length > self.left:
            self.exceeded = True
            return False
        self.left -= length
        return True


@dataclass
class Expander:
    """Expands words with the variables of one shell. Names that were read are added to `used`."""

    variables: dict[str, str]
    used: set[str] = field(default_factory=set)
    limits: Limits = field(default_factory=Limits)
    depth: int = 0

    def expand(self, word: Word) -> list[str]:
        """Expand a word into zero or more words. An unknown `$NAME` stays as it is written."""
        members = self._members(word)
        if members is not None:
            return members
        fields = [""]
        # An unquoted expansion to nothing gives no word, an empty "" gives an empty one.
        present = False
        for piece in word.pieces:
            value = self.value(piece.text) if piece.expands else piece.text
            if not self.limits.allow(len(fields[-1]) + len(value)):
                return [word.raw[:MAX_WORD]]
            known = value != piece.text
            if piece.expands and piece.splits and known:
                present = self._split_into(fields, value) or present
            else:
                fields[-1] += value
                present = present or bool(value) or piece.quoted or not piece.expands
        if not present:
            return []
        if any("{" in piece.text and not piece.quoted for piece in word.pieces):
            return [each for one in fields for each in expand_braces(one)]
        return fields

    def text(self, word: Word) -> str:
        """Expand a word into one, as an assignment does."""
        return " ".join(self.expand(Word(_unsplit(word.pieces), word.raw)))

    def _members(self, word: Word) -> list[str] | None:
        """Return the members of `"${ARRAY[@]}"` or `"$@"` as words of their own."""
        if len([piece for piece in word.pieces if piece.text]) != 1:
            return None
        text = word.text
        if text in ("$@", "$*", "${@}", "${*}"):
            text = "${@[@]}"
        found = _ARRAY.fullmatch(text)
        if not found or not any(piece.expands for piece in word.pieces):
            return None
        key = f"{found[1]}[@]"
        if key not in self.variables:
            return None
        self.used.add(key)
        members = _members_of(self.variables[key])
        if found[2]:
            start = int(found[2])
            end = None if found[3] is None else start + int(found[3])
            members = members[start:end]
        if not self.limits.allow(sum(map(len, members))):
            return [word.raw[:MAX_WORD]]
        return members

    def _split_into(self, fields: list[str], value: str) -> bool:
        """Split an unquoted value at blanks, but not within `{{ a placeholder }}`."""
        parts = _SPLIT.findall(value)
        if not parts:
            if value:
                fields.append("")
            return False
        if value[0].isspace() and fields[-1]:
            fields.append("")
        fields[-1] += parts[0]
        fields.extend(parts[1:])
        return True

    def substitute(self, text: str) -> str:
        """Expand all `$` forms in a text, as within double quotes."""
        if "$" not in text and "`" not in text:
            return text
        done: list[str] = []
        length = 0
        at = 0
        for found in _DOLLAR.finditer(text):
            if found.start() < at:
                continue
            end = end_of_expansion(text, found.start())
            if end is None:
                continue
            value = self.value(text[found.start() : end])
            done += [text[at : found.start()], value]
            length += found.start() - at + len(value)
            if not self.limits.allow(length):
                return text[:MAX_WORD]
            at = end
        return "".join([*done, text[at:]])

    def value(self, text: str) -> str:
        """Return the value of one expansion, or its own text if it is unknown."""
        if self.depth > _MAX_NESTING:
            return text
        self.depth += 1
        try:
            value = self._value(text)
        finally:
            self.depth -= 1
        if value is None or not self.limits.allow(len(value)):
            return text
        return value

    def _value(self, text: str) -> str | None:
        if text.startswith("`"):
            return self._command(text[1:-1])
        if text.startswith("$((") and text.endswith("))"):
            number = self.number(text[3:-2])
            return None if number is None else str(number)
        if text.startswith("$("):
            return self._command(text[2:-1])
        if text.startswith("${"):
            return self._parameter(text[2:-1])
        return self.lookup(text[1:])

    def number(self, expression: str) -> int | None:
        """Return the value of an arithmetic expression, None if it is unknown."""
        return compute(self.substitute(expression), self.lookup, self.variables.__setitem__)

    def lookup(self, name: str) -> str | None:
        """Return the value of a variable, None if the script does not set it."""
        if name == "#" and "@[@]" in self.variables:
            return str(len(_members_of(self.variables["@[@]"])))
        if name in ("@", "*") or name + "[@]" in self.variables:
            self.used.add(name + "[@]")
            members = self.variables.get("@[@]" if name in ("@", "*") else name + "[@]")
            if members is None:
                return None
            listed = _members_of(members)
            return " ".join(listed) if name in ("@", "*") else "".join(listed[:1])
        self.used.add(name)
        return self.variables.get(name)

    def _command(self, command: str) -> str | None:
        """Return the output of the few commands that only work on their words."""
        found = re.fullmatch(
            r"\s*(seq|echo|which|command -v|basename|dirname)\s+([^;&|<>]*)", command
        )
        if not found:
            return None
        words = [self.substitute(word.strip("\"'")) for word in found[2].split()]
        if is_open(" ".join(words)) or re.search(r"[*?\[{]", found[2]):
            return None
        return output_of(found[1], words)

    def _parameter(self, text: str) -> str | None:
        if text.startswith("#"):
            return self._length(text[1:])
        if text.startswith("!"):
            name = self.lookup(text[1:])
            return self.lookup(name) if name and re.fullmatch(r"\w+", name) else None
        found = _PARAMETER.match(text)
        if not found:
            return None
        value = self._element(found["name"], found["index"])
        rest = text[found.end() :]
        if not rest:
            return value
        operator = next((each for each in _OPERATORS if rest.startswith(each)), None)
        if operator is None:
            return None
        return self._operate(found["name"], value, operator, rest[len(operator) :])

    def _length(self, name: str) -> str | None:
        array = name.removesuffix("[@]").removesuffix("[*]")
        if array != name:
            members = self.variables.get(f"{array}[@]")
            return None if members is None else str(len(_members_of(members)))
        value = self.lookup(name) if name else None
        return None if value is None or is_open(value) else str(len(value))

    def _element(self, name: str, index: str | None) -> str | None:
        if index is None:
            return self.lookup(name)
        key = self.substitute(index)
        members = self.variables.get(f"{name}[@]")
        self.used.add(f"{name}[@]")
        if key in ("@", "*"):
            return None if members is None else " ".join(_members_of(members))
        if f"{name}[{key}]" in self.variables:
            return self.variables[f"{name}[{key}]"]
        number = self.number(key)
        if members is None or number is None:
            return None
        listed = _members_of(members)
        return listed[number] if -len(listed) <= number < len(listed) else ""

    def _operate(self, name: str, value: str | None, operator: str, word: str) -> str | None:
        if operator in (":-", "-", ":=", "="):
            return self._default(name, value, operator, word)
        if operator in (":+", "+"):
            return _unquoted(self.substitute(word)) if value else ""
        if operator in (":?", "?"):
            return value
        if value is None or is_open(value):
            return None
        if operator in _CASES:
            return _CASES[operator](value)
        if operator == ":":
            return self._slice(value, word)
        pattern = _unquoted(self.substitute(word))
        if operator in ("/", "//"):
            old, _, new = pattern.partition("/")
            if not old or re.search(r"[*?\[]", old):
                return None
            return value.replace(old, new, -1 if operator == "//" else 1)
        return trim(value, operator, pattern)

    def _default(self, name: str, value: str | None, operator: str, word: str) -> str:
        if value or (value == "" and not operator.startswith(":")):
            return value
        default = _unquoted(self.substitute(word))
        if operator.endswith("="):
            self.variables[name] = default
        return default

    def _slice(self, value: str, word: str) -> str | None:
        start_text, colon, length_text = word.partition(":")
        start = self.number(start_text)
        length = self.number(length_text) if colon else None
        if start is None or (colon and length is None):
            return None
        start = max(0, start + len(value)) if start < 0 else start
        if length is None:
            return value[start:]
        return value[start : start + length] if length >= 0 else value[start:length]


_SPLIT = re.compile(r"(?:\{\{[^{}]{1,200}\}\}|\S)+")
_DOLLAR = re.compile(r"[$`]")
_ARRAY = re.compile(r"\$\{([\w@]+)\[[@*]\](?::(\d{1,6})(?::(\d{1,6}))?)?\}")
_PARAMETER = re.compile(r"(?P<name>[A-Za-z_]\w*|\d+|[@*#])(?:\[(?P<index>[^\]]*)\])?")
_OPERATORS = (
    *(":-", ":=", ":+", ":?", "##", "#", "%%", "%", "//", "/"),
    *("^^", "^", ",,", ",", ":", "-", "=", "+", "?"),
)
_CASES: dict[str, Callable[[str], str]] = {
    "^^": str.upper,
    ",,": str.lower,
    "^": lambda value: value[:1].upper() + value[1:],
    ",": lambda value: value[:1].lower() + value[1:],
}


def expand(word: Word, variables: dict[str, str], used: set[str]) -> list[str]:
    """Expand a word's variables as far as they are known, into zero or more words."""
    return Expander(variables, used).expand(word)


def _unsplit(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return tuple(Piece(each.text, each.expands, quoted=True) for each in pieces)


def _members_of(value: str) -> list[str]:
    return [each for each in value.split(BETWEEN) if each]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
