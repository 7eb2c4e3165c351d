"""A server's log, prepared for the diagnosis: bounded, without colours and prefixes, timed.

vLLM 0.32 writes `(EngineCore_DP0 pid=12) ERROR 11-23 10:16:41 [core.py:1510] text` in local time,
without a year; CANN writes `2026-11-23-10:16:41.070.463`; tracebacks and native code write no time.

Log lines are foreign input: a request may put 100 kB of base64 into one. Every line is cut before
any pattern sees it, and every pattern here is linear in the length of a line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raylaunch.checks.findings import strip_control_characters

MAX_LINE_CHARS = 8192
"""Longest line that is searched: half of it from the head, half from the tail."""
_CUT_MARK = " [...] "

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Bounded repetitions: `[^()]*pid=[^()]*` is quadratic in "(pid=1 pid=1 pid=1 ...".
_PROCESS = re.compile(r"^(?:\s*\([^()]{0,64}\bpid=\d+[^()]{0,64}\) ?|\[rank\d+\]: ?)+")
_VLLM = re.compile(
    r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) +\d\d-\d\d \d\d:\d\d:\d\d +\[?[^\]\s]+:\d+\] ?"
)
_OTHER_LEVEL = re.compile(
    r"^(?:(DEBUG|INFO|WARNING):\s|\d{4}-\d\d-\d\d [\d:,.]+\s+(DEBUG|INFO|WARNING)\s)"
)
_STAMP = re.compile(
    r"(?<!\d)(?:(\d{4})-)?([01]\d)-([0-3]\d)[ T-]([0-2]\d):([0-5]\d):([0-6]\d)(?:[.,](\d{1,6}))?"
)
_STAMP_WITHIN = 120  # a time further to the right belongs to the message
_BELOW_ERROR = frozenset({"DEBUG", "INFO", "WARNING"})


@dataclass(frozen=True)
class LogText:
    """Some of a log's lines joined to one text: a pattern is searched once and may span lines."""

    text: str
    starts: tuple[int, ...]
    """Offset in `text` of each line."""
    lines: tuple[int, ...]
    """Index in the log of each line."""

    def find(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """Yield all matches, each with the index of the line it begins on."""
        for match in pattern.finditer(self.text):
            position = bisect_right(self.starts, match.start()) - 1
            yield self.lines[position], match


@dataclass(frozen=True)
class ServerLog:
    """Log of one server, ready to be searched."""

    raw: tuple[str, ...]
    """The lines as written, cut, without colours and control characters."""
    cleaned: tuple[str, ...]
    """The lines without process, level and time."""
    times: tuple[float | None, ...]
    """Per line, seconds since the epoch on the controller's wall clock.

    A line without a stamp has that of the last one.
    """
    everything: LogText
    errors: LogText
    """Without lines logged below ERROR: those report no failure, whatever they quote.

    They are nearly all of a log.
    """

    @property
    def last_time(self) -> float | None:
        """Time of the last stamped line."""
        return self.times[-1] if self.times else None


def cut_line(line: str) -> str:
    """Return `line` with its middle removed when it is longer than `MAX_LINE_CHARS`."""
    if len(line) <= MAX_LINE_CHARS:
        return line
    half = MAX_LINE_CHARS // 2
    return f"{line[:half]}{_CUT_MARK}{line[-half:]}"


def read_log(
    lines: Sequence[str], *, reference: float | None = None, offset_s: float = 0.0
) -> ServerLog:
    """Clean and time the lines of one server.

    Args:
        lines: The log, or its tail.
        reference: A time near the end of the log (epoch); it gives stamps their year.
            None: any year will do.
        offset_s: Seconds to subtract from a stamp, read as UTC, to get the controller's wall
            clock: time zone plus clock error.
    """
    raw = tuple(_clean_raw(line) for line in lines)
    without_process = [_PROCESS.sub("", line) for line in raw]
    cleaned = tuple(_VLLM.sub("", line) for line in without_process)
    stamps = [_parse_time(line, reference, offset_s) for line in raw]
    errors = [index for index, line in enumerate(without_process) if not _is_below_error(line)]
    return ServerLog(
        raw=raw,
        cleaned=cleaned,
        times=tuple(_fill_gaps(stamps)),
        everything=_join(cleaned, range(len(raw))),
        errors=_join(cleaned, errors),
    )


def _clean_raw(line: str) -> str:
    uncoloured = _COLOUR.sub("", cut_line(line)).rstrip("\r\n")
    return strip_control_characters(uncoloured)


def _join(cleaned: Sequence[str], indices: Sequence[int]) -> LogText:
    lines = [cleaned[index] for index in indices]
    starts = []
    position = 0
    for line in lines:
        starts.append(position)
        position += len(line) + 1  # the newline
    return LogText("\n".join(lines), tuple(starts), tuple(indices))


def _is_below_error(line: str) -> bool:
    found = _VLLM.match(line) or _OTHER_LEVEL.match(line)
    if found is None:
        return False
    # Each pattern has one group per notation of the level; only one of them took part.
    return not _BELOW_ERROR.isdisjoint(found.groups())


def _parse_time(line: str, reference: float | None, offset_s: float) -> float | None:
    found = _STAMP.search(line, 0, _STAMP_WITHIN)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction = found.groups()
    # A stamp in whole seconds stands for any moment of its second: its middle has the smallest
    # error against exact exit times.
    part_of_second = float(f"0.{fraction}") if fraction else 0.5
    clock = (int(month), int(day), int(hour), int(minute), int(second))
    years = [int(year)] if year else _possible_years(reference)
    moments = [timegm((one, *clock)) + part_of_second - offset_s for one in years]
    near = moments[0] if reference is None else reference
    return min(moments, key=lambda moment: abs(moment - near))


def _possible_years(reference: float | None) -> list[int]:
    """Return the years of a stamp without one; around New Year not only the reference's own."""
    if reference is None:
        return [2000]
    year = datetime.fromtimestamp(reference, UTC).year
    return [year, year - 1, year + 1]


def _fill_gaps(times: Iterable[float | None]) -> list[float | None]:
    """Give a line without a time that of the line before; the first lines get the first stamp."""
    filled: list[float | None] = []
    last: float | None = None
    for time in times:
        last = last if time is None else time
        filled.append(last)
    first = next((time for time in filled if time is not None), None)
    return [first if time is None else time for time in filled]
