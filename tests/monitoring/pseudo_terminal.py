"""A terminal for `raylaunch top`: a real pseudo-terminal with the view in it, and what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_S = 60
HERE = Path(__file__).parent
SGR = r"\x1b\[[0-9;]*m"
"""A sequence that sets a colour."""
HOME = "\x1b[H"
REST_OF_SCREEN = "\x1b[J"
_PIECE = re.compile(r"(?P<sequence>\x1b\[[0-?]*[ -/]*[@-~])|(?P<character>[\s\S])")

# The terminal becomes the controlling one, so that the kernel itself sends SIGWINCH.
SCRIPT = """
import os, sys
os.login_tty(0)
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from deployments import NOW, make_status
from raylaunch.cli.commands.deployments.top import _View
from raylaunch.cli.output import style_of
from raylaunch.cli.terminal import full_screen
from raylaunch.supervise.deployment_status import Event

servers, text = int(sys.argv[2]), sys.argv[3]
EVENTS = tuple(Event(number, NOW, 1, "note", text) for number in range(100))

class Fake:
    def status(self): return replace(make_status(servers), events=EVENTS)
    def usage(self): return {}
    def events(self): return list(EVENTS)
    def logs(self, server, lines): return f"line of server {server} {text}\\n" * lines

style = style_of(sys.stdout, os.environ)
with full_screen(style) as screen:
    _View(Fake(), lambda: None).run(screen, 3600.0, 0)
print("gone")
"""


@dataclass(frozen=True)
class Frame:
    """What a frame leaves on a screen."""

    text: str
    rows: list[str]
    problems: list[str]
    """Lines that wrap, and whether the screen scrolls."""

    @staticmethod
    def width_of(row: str) -> int:
        """Return the columns of a row."""
        return sum(cells_of(character) for character in row)


def cells_of(character: str) -> int:
    """Return the columns that a terminal gives to a character."""
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


class Terminal:
    """A pseudo-terminal of 80 columns and 24 lines with the view in it.

    The view itself draws again after an hour: a frame in between has another reason.
    """

    def __init__(self, servers: int = 2, event: str = "an event", **env: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.slave)
        self.text = ""
        self.all_text = ""
        inherited = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(HERE), str(servers), event],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**inherited, "PYTHONIOENCODING": "utf-8", "TERM": "xterm", **env},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, as a window does; what was drawn before is dropped."""
        self.text = ""
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read_until(self, wanted: str) -> None:
        """Read until a text has been written."""
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            ready, _, _ = select.select([self.master], [], [], 1.0)
            if ready:
                written = os.read(self.master, 65536).decode(errors="replace")
                self.text += written
                self.all_text += written

    def read_frame(self) -> Frame:
        """Read one whole frame."""
        self.read_until(REST_OF_SCREEN)
        begun, _, self.text = self.text.partition(REST_OF_SCREEN)
        return self.show(HOME + begun.rpartition(HOME)[2] + REST_OF_SCREEN)

    def show(self, text: str) -> Frame:
        """Return what a text leaves on a screen of this size."""
        rows = [""]
        problems = []
        for piece in _PIECE.finditer(text):
            character = piece["character"]
            if piece["sequence"]:
                known = piece[0] in (HOME, REST_OF_SCREEN, "\x1b[K") or re.fullmatch(SGR, piece[0])
                problems += [] if known else [f"unknown sequence {piece[0]!r}"]
            elif character == "\n":
                rows.append("")
            elif character != "\r":
                rows[-1] += character
        for number, row in enumerate(rows, 1):
            problems += [f"line {number} wraps"] if Frame.width_of(row) > self.columns else []
        problems += ["it scrolls"] if len(rows) > self.lines else []
        return Frame(text, [row.rstrip() for row in rows], problems)

    def type(self, key: str) -> None:
        """Type a key."""
        self.text = ""
        os.write(self.master, key.encode())


_SETTINGS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
"""What decides about size and colour, and must come from the test."""
