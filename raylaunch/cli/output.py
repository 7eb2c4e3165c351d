"""Where words go: results to stdout, notes and errors to stderr; colour, width, -q, -v and JSON decided in one place.

Text is laid out here without rich: loading rich costs more than everything else that `plan` and `list` do,
and a table cut to a terminal's width cannot be read back from a pipe.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from raylaunch.errors import RaylaunchError

CODES = {"title": "1", "dim": "2", "bad": "1;31", "good": "32", "warn": "33", "name": "36"}
"""Kind of text -> SGR code."""

WIDEST_CELL = 48
"""A cell longer than this (a JSON flag) does not push the whole column to the right."""

NARROWEST_WRAP = 24
"""With less room than this the last column is left to the terminal's own wrapping."""


@dataclass(frozen=True)
class Style:
    """How text may look on one stream. `width` None: a pipe or file, where lines are never wrapped."""

    colour: bool = False
    width: int | None = None

    def paint(self, text: str, kind: str) -> str:
        """Colour `text`; unchanged where colour is off or `kind` is empty."""
        return f"\x1b[{CODES[kind]}m{text}\x1b[0m" if self.colour and kind and text else text


def style_of(stream: IO[str], environ: Mapping[str, str]) -> Style:
    """The style a stream bears: https://no-color.org and FORCE_COLOR are honoured, pipes stay plain."""
    terminal = stream.isatty()
    wanted = bool(environ.get("FORCE_COLOR")) or (terminal and environ.get("TERM") != "dumb")
    width = shutil.get_terminal_size().columns if terminal else None
    return Style(colour=wanted and not environ.get("NO_COLOR"), width=width)


@dataclass
class Output:
    """What the global options ask for, and the only writer of the command line."""

    quiet: bool = False
    verbose: bool = False
    json_errors: bool = False
    """With `-o json` an error is one JSON object on stderr."""

    @property
    def style(self) -> Style:
        """Style of stdout."""
        return style_of(sys.stdout, os.environ)

    def line(self, text: str = "") -> None:
        """Write one line of result, at once, so that a pipe follows along."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def lines(self, lines: Iterable[str]) -> None:
        """Write many lines of result."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()

    def json(self, value: Any) -> None:  # noqa: ANN401 - JSON holds anything
        """Write a value as indented JSON."""
        self.line(to_json(value, indent=2))

    def note(self, text: str) -> None:
        """Say something that is not the result: stderr, silent with -q."""
        if not self.quiet:
            self.to_stderr([text])

    def error(self, error: RaylaunchError) -> None:
        """Write an error: a block for people, one JSON object with `-o json`."""
        if self.json_errors:
            self.to_stderr([to_json({**error.as_dict(), "exit_code": error.exit_code})])
        else:
            self.to_stderr(error_lines(error, style_of(sys.stderr, os.environ)))

    def to_stderr(self, lines: Iterable[str]) -> None:
        """Write lines beside the result, -q or not."""
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()

    @property
    def error_style(self) -> Style:
        """Style of stderr."""
        return style_of(sys.stderr, os.environ)


def to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - JSON holds anything
    """JSON that keeps every script's characters as they are."""
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False)


def error_lines(error: RaylaunchError, style: Style) -> Iterator[str]:
    """What happened, why, what shows it, what to do next."""
    first, *rest = error.what.splitlines() or [""]
    yield f"{style.paint('error:', 'bad')} {first}"
    yield from (f"       {line}" for line in rest)
    yield from _part("why", error.why, style)
    if error.evidence:
        yield from (
            f"  {style.paint('|', 'dim')} {line}" for line in error.evidence.rstrip().splitlines()
        )
    yield from _part("next", error.todo, style)


def _part(label: str, text: str, style: Style) -> Iterator[str]:
    for number, line in enumerate(text.splitlines()):
        for piece in wrap(line, style.width, 8):
            yield (
                f"  {style.paint(label.ljust(6), 'title')}{piece}"
                if number == 0 and label
                else f"        {piece}"
            )
            label = ""


def wrap(text: str, width: int | None, used: int) -> list[str]:
    """Break `text` for the room right of column `used`; in one piece where there is no width or too little room."""
    if width is None or width - used < NARROWEST_WRAP:
        return [text]
    return textwrap.wrap(text, width - used, break_on_hyphens=False, break_long_words=False) or [""]


def table(
    rows: Sequence[Sequence[str]],
    style: Style,
    *,
    header: Sequence[str] = (),
    indent: int = 0,
    kinds: Sequence[str] = (),
) -> Iterator[str]:
    """Lay out rows in columns; the last column wraps in a terminal. Nothing is ever cut off.

    Args:
        rows: The cells, all rows of one length.
        style: Where the lines go.
        header: Headings of the columns.
        indent: Spaces before each row.
        kinds: Kind of text per column ("dim", "name", ...); missing ones are plain.
    """
    widths = _widths([header, *rows] if header else rows)
    if header:
        yield from _row(header, widths, style, indent, ["dim"] * len(header))
    for row in rows:
        yield from _row(row, widths, style, indent, kinds)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        max((len(cell) for cell in column if len(cell) <= WIDEST_CELL), default=0)
        for column in zip(*rows, strict=True)
    ]


def _row(
    cells: Sequence[str], widths: list[int], style: Style, indent: int, kinds: Sequence[str]
) -> Iterator[str]:
    padded = [cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=False)]
    used = indent + sum(len(cell) + 2 for cell in padded)
    hang = indent + sum(width + 2 for width in widths[: len(padded)])
    kind = [*kinds, *[""] * len(cells)]
    head = "".join(f"{style.paint(cell, kind[number])}  " for number, cell in enumerate(padded))
    for number, piece in enumerate(wrap(cells[-1], style.width, used)):
        lead = " " * indent + head if number == 0 else " " * hang
        yield f"{lead}{style.paint(piece, kind[len(cells) - 1])}".rstrip()
