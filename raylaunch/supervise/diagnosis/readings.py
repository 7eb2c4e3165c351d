"""What a rule reads in a log: one reason, the line it is on, and how strong it is.

Signatures know one message each. The rules below them know a class of messages: a CANN error
block, an exception by its type and place, a library that does not fit, memory with its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from raylaunch.supervise.diagnosis.exit_reasons import ExitReason
from raylaunch.supervise.diagnosis.signatures import Kind

QUOTE_CHARS = 320
"""Longest quotation of a log in a cause."""


class Rank(IntEnum):
    """Strength of a clue, best first."""

    CAUSE = 0
    HINT = 1
    """Points to a peer, or is an exception without a signature."""
    CODE = 2
    """A number of CANN: which kind of failure, not why."""
    WRAPPER = 3
    """Only reports that something else failed."""
    EXIT = 4
    """Exit status without a signal: it names no cause."""
    HANG = 5
    UNREAD = 6
    """Error lines that nothing explains."""
    QUALITY = 7
    NOTE = 8


@dataclass(frozen=True)
class Reading:
    """One failure that a rule has read in a log."""

    reason: ExitReason
    line: int
    """Index in the log."""
    covers: frozenset[int] = frozenset()
    """Lines that belong to it; other rules leave them alone."""
    rank: Rank = Rank.CAUSE
    symptom: bool = False
    """Reports that a peer is gone or late."""
    certain: bool = True
    """The cause follows from these lines alone."""


def reason(id_: str, cause: str, remedy: str, source: str, kind: Kind) -> ExitReason:
    """Return a reason whose cause and remedy are cut to a readable length."""
    return ExitReason(id_, kind, shorten(cause, 3 * QUOTE_CHARS), remedy, source)


def exception_reading(line: int, id_: str, cause: str, remedy: str) -> Reading:
    """Return what an exception means by its type and its place: each start meets it again."""
    return Reading(reason(id_, cause, remedy, "exception by type and place", "deterministic"), line)


def shorten(text: str, length: int = QUOTE_CHARS) -> str:
    """Return `text` on one line, cut to `length` characters.

    A log may break off after a mark that announces more: the mark is left out.
    """
    one_line = " ".join(text.split()).rstrip(" :,;(=")
    if len(one_line) <= length:
        return one_line
    return f"{one_line[: length - 4].rstrip()} ..."
