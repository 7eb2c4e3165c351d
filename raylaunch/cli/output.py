"""The only writer of the command line: results to stdout, notes and errors to stderr.

Colour, width, -q, -v and JSON are decided here, and here foreign text loses its control characters.
Text is laid out without rich: loading rich costs more than everything else that `plan` and `list`
do, and a table cut to a terminal's width cannot be read back from a pipe.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TextIO

from raylaunch.errors import RaylaunchError

CODES = {"title": "1", "dim": "2", "bad": "1;31", "good": "32", "warn": "33", "name": "36"}
"""Kind of text -> SGR code."""

COLOUR_ON = {kind: chr(0xFDD0 + number) for number, kind in enumerate(CODES)}
"""Kind of text -> the mark that stands for its SGR code until the text is written.

Marks are Unicode noncharacters (U+FDD0 to U+FDEF, reserved for use inside a program). So no escape
character reaches a terminal unless this module writes it: foreign text that contains a mark can at
worst change the colour.
"""
COLOUR_OFF = "\ufddf"
_SGR = {
    **{ord(mark): f"\x1b[{CODES[kind]}m" for kind, mark in COLOUR_ON.items()},
    ord(COLOUR_OFF): "\x1b[0m",
}
_NO_SGR = dict.fromkeys(_SGR, "")

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement, erasing
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # OSC, DCS and the like with their terminator
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\ufdd0-\ufddf]")

WIDEST_CELL = 48
"""A cell longer than this (a JSON flag) does not widen its column."""

NARROWEST_WRAP = 24
"""With fewer columns than this the last cell is left to the terminal's own wrapping."""


def printable(text: str) -> str:
    r"""Remove escape sequences and control characters (C0 and C1) except tab and newline.

    A log line, a recipe's name or a model's output may hold them, and a terminal obeys them: OSC 52
    writes the clipboard, others move the cursor or change the keyboard.
    """
    return _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text))


@dataclass(frozen=True)
class Style:
    """How text may look on one stream. `width` None: a pipe or file, where nothing is wrapped."""

    colour: bool = False
    width: int | None = None

    def paint(self, text: str, kind: str) -> str:
        """Colour `text`; unchanged where colour is off or `kind` is empty."""
        if not (self.colour and kind and text):
            return text
        return f"{COLOUR_ON[kind]}{text}{COLOUR_OFF}"

    def finish(self, text: str) -> str:
        """Make `text` safe to write: no control characters but those of its own colours."""
        return printable(text).translate(_SGR if self.colour else _NO_SGR)


def style_of(stream: IO[str], environ: Mapping[str, str]) -> Style:
    """Return the style of a stream. https://no-color.org and FORCE_COLOR are honoured."""
    terminal = stream.isatty()
    colour = terminal and environ.get("TERM") != "dumb"
    if environ.get("FORCE_COLOR"):
        colour = True
    if environ.get("NO_COLOR"):
        colour = False
    width = shutil.get_terminal_size().columns if terminal else None
    return Style(colour=colour, width=width)


@dataclass
class Output:
    """The values of the global options, and the functions that write."""

    quiet: bool = False
    verbose: int = 0
    """How often -v was given."""
    json_errors: bool = False
    """With `-o json` an error is one JSON object on stderr."""

    @property
    def style(self) -> Style:
        """Style of stdout."""
        return style_of(sys.stdout, os.environ)

    @property
    def error_style(self) -> Style:
        """Style of stderr."""
        return style_of(sys.stderr, os.environ)

    def line(self, text: str = "") -> None:
        """Write one line of the result and flush it, so that a pipe can follow."""
        self.lines([text])

    def lines(self, lines: Iterable[str]) -> None:
        """Write many lines of the result."""
        _write(sys.stdout, self.style, lines)

    def json(self, value: object) -> None:
        """Write a value as indented JSON."""
        self.line(to_json(value, indent=2))

    def note(self, text: str) -> None:
        """Write what is not the result to stderr; nothing with -q."""
        if not self.quiet:
            self.to_stderr([text])

    def error(self, error: RaylaunchError) -> None:
        """Write an error: a block for people, one JSON object with `-o json`."""
        if self.json_errors:
            parts = {**error.as_dict(), "exit_code": error.exit_code}
            self.to_stderr([to_json(parts)])
        else:
            self.to_stderr(error_lines(error, self.error_style))

    def to_stderr(self, lines: Iterable[str]) -> None:
        """Write lines to stderr, with -q too."""
        _write(sys.stderr, self.error_style, lines)

    def redraw(self, lines: Sequence[str], above: int) -> None:
        """Draw `lines` on stderr over the last `above` lines, each cut to the terminal's width."""
        style = self.error_style
        width = style.width or 80
        up = f"\x1b[{above}A" if above else ""
        sys.stderr.write(up)
        for line in lines:
            fitting = style.finish(line).replace("\n", " ")[: width - 1]
            sys.stderr.write(f"\r\x1b[K{fitting}\n")
        sys.stderr.flush()


def _write(stream: TextIO, style: Style, lines: Iterable[str]) -> None:
    text = "".join(f"{style.finish(line)}\n" for line in lines)
    # A path or an argument that is no UTF-8, or a stream that is not, must not end in a traceback.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def to_json(value: object, indent: int | None = None) -> str:
    """Encode as JSON. Letters of every script stay readable, control characters are escaped."""
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # The json module escapes C0 only. Outside of strings JSON has none of these characters.
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def error_lines(error: RaylaunchError, style: Style) -> Iterator[str]:
    """Lay out an error: what happened, why, the evidence, what to do next."""
    first, *rest = error.what.splitlines() or [""]
    yield f"{style.paint('error:', 'bad')} {first}"
    for line in rest:
        yield f"       {line}"
    yield from _part("why", error.why, style)
    bar = style.paint("|", "dim")
    for line in error.evidence.rstrip().splitlines():
        yield f"  {bar} {line}"
    yield from _part("next", error.todo, style)


def _part(label: str, text: str, style: Style) -> Iterator[str]:
    heading = style.paint(label.ljust(6), "title")
    for line in text.splitlines():
        for piece in wrap(line, style.width, 8):
            yield f"  {heading}{piece}"
            heading = " " * 6


def wrap(text: str, width: int | None, used: int) -> list[str]:
    """Break `text` for the room right of column `used`; one piece if there is no width or room."""
    if width is None or width - used < NARROWEST_WRAP:
        return [text]
    pieces = textwrap.wrap(text, width - used, break_on_hyphens=False, break_long_words=False)
    return pieces or [""]


def table(
    rows: Sequence[Sequence[str]],
    style: Style,
    *,
    header: Sequence[str] = (),
    indent: int = 0,
    kinds: Sequence[str] = (),
) -> Iterator[str]:
    """Lay out rows in columns; the last column wraps in a terminal. Nothing is cut off.

    Args:
        rows: The cells, all rows of one length.
        style: Style of the stream that the lines are for.
        header: Headings of the columns.
        indent: Spaces before each row.
        kinds: Kind of text per column ("dim", "name", ...); missing ones are plain.
    """
    # Cleaned before the widths are measured: a removed escape sequence would shift the columns.
    clean_rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = _widths([header, *clean_rows] if header else clean_rows)
    if header:
        yield from _row(header, widths, style, indent, ["dim"] * len(header))
    for row in clean_rows:
        yield from _row(row, widths, style, indent, kinds)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    widths = []
    for column in zip(*rows, strict=True):
        lengths = [len(cell) for cell in column]
        widths.append(max((length for length in lengths if length <= WIDEST_CELL), default=0))
    return widths


def _row(
    cells: Sequence[str],
    widths: list[int],
    style: Style,
    indent: int,
    kinds: Sequence[str],
) -> Iterator[str]:
    padded = [cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=False)]
    kind_of = [*kinds, *[""] * len(cells)]
    head = " " * indent
    used = indent
    hang = indent
    for number, cell in enumerate(padded):
        head += f"{style.paint(cell, kind_of[number])}  "
        used += len(cell) + 2
        hang += widths[number] + 2
    last_kind = kind_of[len(cells) - 1]
    for piece in wrap(cells[-1], style.width, used):
        yield f"{head}{style.paint(piece, last_kind)}".rstrip()
        head = " " * hang
