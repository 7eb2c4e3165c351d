"""The words of a script: their pieces, what their variables stand for, and what is still to be filled in."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Part of a word. `expands`: `$` means something in it; `splits`: what it expands to may become several words."""

    text: str
    expands: bool = False
    splits: bool = False


@dataclass(frozen=True)
class Word:
    """A word in pieces; `raw` is how it stands in the script."""

    pieces: tuple[Piece, ...]
    raw: str

    @property
    def text(self) -> str:
        """The word with quotes taken off and nothing expanded."""
        return "".join(piece.text for piece in self.pieces)


def expand(word: Word, variables: dict[str, str], used: set[str]) -> list[str]:
    """Expand a word's variables as far as they are known, into one or more words.

    An unknown `$NAME` stays as it is written. Names that were looked up are added to `used`.
    """
    array = _ARRAY.fullmatch(word.text)
    if array and any(piece.expands for piece in word.pieces) and array[1] in variables:
        used.add(array[1])
        return [each for each in variables[array[1]].split(BETWEEN) if each]
    done = ""
    for piece in word.pieces:
        text = _substitute(piece.text, variables, used) if piece.expands else piece.text
        if piece.splits and "$" in piece.text and text != piece.text and len(word.pieces) == 1:
            return text.split()
        done += text
    return [done]


def unknowns(text: str) -> list[str]:
    """What is to be filled in: `$NAME`, `{NAME}`, `<name>`, `|name|`, `xxxx`, `x.x.x.1`, `your_...`, `/path/to`."""
    if (
        text.startswith(("{", "["))
        and len(text) > 2
        and not re.match(r"\{\w+\}|\{\{ *\w+ *\}\}", text)
    ):
        return re.findall(r"\$\{?\w+\}?|/path/to\b", text)  # JSON: braces are its own
    found = re.findall(
        r"\$\([^)]*\)|`[^`]*`|\$\{[^}]*\}|\$\w+|\{\{ *\w+ *\}\}|\{[A-Za-z_]\w*\}|<[^<>\s][^<>]*>|\|\w+\|",
        text,
    )
    return found or re.findall(
        r"(?i)\b(?:x{2,}|(?:[\dx]+\.){1,3}x+(?:\.[\dx/]+)*|your_\w+)(?![\w])|/path/to\b", text
    )


BETWEEN = "\x1f"
"""Stands between the members of an array in its variable."""

_ARRAY = re.compile(r"\$\{(\w+\[[@*]\])\}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^{}]*))?\})")


def _substitute(text: str, variables: dict[str, str], used: set[str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        used.add(name)
        return variables.get(name, match[3] if match[3] is not None else match[0])

    return _VARIABLE.sub(value, text)
