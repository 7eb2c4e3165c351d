"""Text of other programs, made safe for messages: control characters are removed where it enters.

A message ends up in a terminal. There an escape sequence of a tool, a log line or a model's answer
moves the cursor, or writes the clipboard (OSC 52).
"""

from __future__ import annotations

import re

_MESSAGE_CHARS = 200

# An OSC string ends with BEL or ST. Runs stop at the next ESC: no text takes quadratic time.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Remove escape sequences and the control characters C0, DEL and C1, except tab and newline.

    A carriage return starts a new line: progress bars and Windows line ends stay readable.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", lines))


def one_line(text: str) -> str:
    """Clean a text that has to fit on one line: tabs and newlines become blanks."""
    return re.sub(r"[\t\n]+", " ", clean(text)).strip()


def first_line(text: str) -> str:
    """Return the first line that is not blank, cut to what fits a message."""
    for line in text.splitlines():
        if line.strip():
            return line.strip()[:_MESSAGE_CHARS]
    return "no output"
