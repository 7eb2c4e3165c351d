"""A full-screen view on a terminal without a library: frames out, single keys in."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raylaunch.cli.output import COLOUR_OFF, COLOUR_ON, Style

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_OF_LINE = "\x1b[K"
_REST_OF_SCREEN = "\x1b[J"
_MARKS = frozenset([*COLOUR_ON.values(), COLOUR_OFF])


class Screen:
    """The terminal while a view owns it. Its size is read for each frame, so it may be resized."""

    def __init__(self, style: Style) -> None:
        self.style = style

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        size = shutil.get_terminal_size()
        return size.columns, size.lines

    def draw(self, lines: Sequence[str]) -> None:
        """Show a frame; what does not fit is cut."""
        width, height = self.size
        shown = [self.style.finish(fit(line, width)) for line in lines[:height]]
        text = _HOME + f"{_END_OF_LINE}\r\n".join(shown) + _END_OF_LINE + _REST_OF_SCREEN
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()

    def read_key(self, timeout_s: float) -> str:
        """Return the next key, or "" after `timeout_s`."""
        ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
        if not ready:
            return ""
        # An arrow is several bytes: they count as one key, which nothing is bound to.
        typed = os.read(sys.stdin.fileno(), 16).decode(errors="ignore")
        return typed if len(typed) == 1 else ""


@contextmanager
def full_screen(style: Style) -> Iterator[Screen]:
    """Take the terminal, and give it back as it was, whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin.fileno())
    try:
        tty.setcbreak(sys.stdin.fileno())
        sys.stdout.write(_ENTER)
        yield Screen(style)
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def fit(line: str, width: int) -> str:
    """Cut a line to a width; the marks of colours take no room, and none stays open."""
    room = width
    kept = []
    for character in line.replace("\t", " ").replace("\n", " "):
        if character not in _MARKS:
            if room == 0:
                continue
            room -= 1
        kept.append(character)
    return "".join(kept)
