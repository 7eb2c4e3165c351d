"""A full-screen view on a terminal without a library: frames out, single keys in."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raylaunch.cli.output import COLOUR_OFF, COLOUR_ON, Style

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_OF_LINE = "\x1b[K"
_REST_OF_SCREEN = "\x1b[J"
_PIPE_BYTES = 1 << 16
_MARKS = frozenset([*COLOUR_ON.values(), COLOUR_OFF])


class Screen:
    """The terminal while a view owns it. Its size is read for each frame, so it may be resized.

    Args:
        style: How text may look on it.
        resized: A file descriptor that is readable after it was resized.
    """

    def __init__(self, style: Style, resized: int) -> None:
        self.style = style
        self._resized = resized

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
        """Return the next key; "" after `timeout_s`, or when the terminal was resized."""
        ready, _, _ = select.select([sys.stdin, self._resized], [], [], timeout_s)
        if self._resized in ready:
            os.read(self._resized, _PIPE_BYTES)
        if sys.stdin not in ready:
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
        with resizes() as resized:
            yield Screen(style, resized)
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


@contextmanager
def resizes() -> Iterator[int]:
    """Yield a file descriptor that is readable after the terminal was resized (SIGWINCH).

    The interpreter writes to it at once. A handler in Python runs only after the system call that
    waits: a signal that comes just before that call would be noticed when it ends.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    # With a full pipe enough is known.
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)


def fit(line: str, width: int) -> str:
    """Cut a line to a width; the marks of colours take no room, and none stays open."""
    room = width
    is_full = False
    kept = []
    for character in line.replace("\t", " ").replace("\n", " "):
        if character not in _MARKS:
            cells = _cells(character)
            is_full = is_full or cells > room
            if is_full:
                continue
            room -= cells
        kept.append(character)
    return "".join(kept)


def _cells(character: str) -> int:
    """Return the columns of a character: two for a wide one, none for one on top of another."""
    if character.isascii():
        return 1
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
