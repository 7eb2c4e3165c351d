"""Computes the arithmetic of `$(( ))` and `(( ))`, in bounded time."""

from __future__ import annotations

import re
from collections.abc import Callable

Lookup = Callable[[str], str | None]
Assign = Callable[[str, str], None]

_MAX_LENGTH = 1000
_MAX_DEPTH = 40
_TOKEN = re.compile(
    r"\s*(0[xX][0-9a-fA-F]+|\d+|[A-Za-z_]\w*"
    r"|\*\*|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%]=|[-+*/%<>=!~&|^?:(),])"
)
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
    ("**",),
)
"""Binary operators, the weakest first (bash, ARITHMETIC EVALUATION)."""

_STEPS = {"++": 1, "--": -1}
_OPENING = ("(",)
_LARGEST = 2**63 - 1


class _UnknownError(Exception):
    """The expression holds a name without a value, or is none."""


def compute(text: str, lookup: Lookup, assign: Assign) -> int | None:
    """Return the value of an expression; None if a name in it is unknown or it cannot be read."""
    if len(text) > _MAX_LENGTH:
        return None
    try:
        return _Expression(text, lookup, assign).value()
    except _UnknownError:
        return None


class _Expression:
    """A recursive-descent parser that evaluates while it reads."""

    def __init__(self, text: str, lookup: Lookup, assign: Assign) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.lookup = lookup
        self.assign = assign
        self.depth = 0

    def value(self) -> int:
        if not self.tokens:
            return 0
        result = self._comma()
        if self.at < len(self.tokens):
            raise _UnknownError
        return result

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.at += 1
        return token

    def _comma(self) -> int:
        result = self._ternary()
        while self._peek() == ",":
            self.at += 1
            result = self._ternary()
        return result

    def _ternary(self) -> int:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _UnknownError
        condition = self._binary(0)
        if self._peek() == "?":
            self.at += 1
            first = self._ternary()
            if self._next() != ":":
                raise _UnknownError
            second = self._ternary()
            condition = first if condition else second
        self.depth -= 1
        return condition

    def _binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self._peek() in _LEVELS[level]:
            operator = self._next()
            left = _apply(operator, left, self._binary(level + 1))
        return left

    def _unary(self) -> int:
        token = self._next()
        if token in ("++", "--"):
            name = self._next()
            return self._store(name, self._number(name) + _STEPS[token])
        if token in ("-", "+", "!", "~"):
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _UnknownError
            value = self._unary()
            self.depth -= 1
            return {"-": -value, "+": value, "!": int(not value), "~": ~value}[token]
        if token in _OPENING:
            value = self._comma()
            if self._next() != ")":
                raise _UnknownError
            return value
        if re.match(r"[A-Za-z_]", token):
            return self._name(token)
        if token[:1].isdigit():
            return _integer(token)
        raise _UnknownError

    def _name(self, name: str) -> int:
        operator = self._peek()
        if operator == "=":
            self.at += 1
            return self._store(name, self._ternary())
        if operator in ("+=", "-=", "*=", "/=", "%="):
            self.at += 1
            before = self._number(name)
            return self._store(name, _apply(operator[0], before, self._ternary()))
        value = self._number(name)
        if operator in ("++", "--"):
            self.at += 1
            self._store(name, value + _STEPS[operator])
        return value

    def _number(self, name: str) -> int:
        text = self.lookup(name) if re.fullmatch(r"[A-Za-z_]\w*", name) else None
        if text is None:
            raise _UnknownError
        return _integer(text.strip() or "0")

    def _store(self, name: str, value: int) -> int:
        self.assign(name, str(value))
        return value


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _UnknownError
        found.append(token[1])
        at = token.end()
    return found


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,20}|[1-9]\d{0,18})", text):
        raise _UnknownError
    sign = -1 if text.startswith("-") else 1
    digits = text.removeprefix("-").lower()
    if digits.startswith("0x"):
        return sign * int(digits, 16)
    return sign * int(digits, 8 if digits.startswith("0") else 10)


def _apply(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%") and right == 0:
        raise _UnknownError
    if operator in ("**", "<<", ">>") and not 0 <= right <= 63:
        raise _UnknownError
    result = _OPERATIONS[operator](left, right)
    # bash wraps at 64 bits; no size of a deployment comes near.
    if abs(result) > _LARGEST:
        raise _UnknownError
    return result


def _quotient(left: int, right: int) -> int:
    """Divide as C does, towards zero."""
    size = abs(left) // abs(right)
    return size if (left < 0) == (right < 0) else -size


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "||": lambda left, right: int(bool(left) or bool(right)),
    "&&": lambda left, right: int(bool(left) and bool(right)),
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "&": lambda left, right: left & right,
    "==": lambda left, right: int(left == right),
    "!=": lambda left, right: int(left != right),
    "<": lambda left, right: int(left < right),
    "<=": lambda left, right: int(left <= right),
    ">": lambda left, right: int(left > right),
    ">=": lambda left, right: int(left >= right),
    "<<": lambda left, right: left << right,
    ">>": lambda left, right: left >> right,
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _quotient,
    "%": lambda left, right: left - right * _quotient(left, right),
    "**": lambda left, right: left**right,
}
