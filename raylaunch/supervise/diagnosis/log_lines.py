"""A server's log as the diagnosis reads it: without colours and prefixes, with a time and a level for every line.

vLLM 0.32 writes `(EngineCore_DP0 pid=12) ERROR 11-23 10:16:41 [core.py:1510] text` in local time, without a year;
CANN writes `2026-11-23-10:16:41.070.463`; tracebacks and native code write no time at all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"^(?:\s*\([^()]*\bpid=\d+[^()]*\) ?|\[rank\d+\]: ?)+")
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
_QUIET = frozenset({"DEBUG", "INFO", "WARNING"})


@dataclass(frozen=True)
class Page:
    """Some of a log's lines as one text, so that a pattern is searched once and may span lines."""

    text: str
    starts: tuple[int, ...]
    """Where each line begins in `text`."""
    lines: tuple[int, ...]
    """Index in the log of each line."""

    def find(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """All matches, each with the index of the line it begins on."""
        for match in pattern.finditer(self.text):
            yield self.lines[bisect_right(self.starts, match.start()) - 1], match


@dataclass(frozen=True)
class Log:
    """Lines ready to be searched."""

    raw: tuple[str, ...]
    """The lines as written, without colours."""
    cleaned: tuple[str, ...]
    """The lines without process, level and time."""
    times: tuple[float | None, ...]
    """Per line, seconds since the epoch on the controller's clock; a line without a stamp has that of the last one."""
    everything: Page
    loud: Page
    """Without lines logged below ERROR: those report no failure, whatever they quote, and are nearly all of a log."""

    @property
    def last_time(self) -> float | None:
        """Time of the last stamped line."""
        return self.times[-1] if self.times else None


def read_log(lines: Sequence[str], *, reference: float | None = None, offset_s: float = 0.0) -> Log:
    """Clean and time the lines of one server.

    Args:
        lines: The log, or its tail.
        reference: A time near the end of the log (epoch); it gives stamps their year. None: any year will do.
        offset_s: What to take off a stamp, read as UTC, to get the controller's clock: zone plus clock error.
    """
    raw = tuple(_COLOUR.sub("", line).rstrip("\r\n") for line in lines)
    bare = [_PROCESS.sub("", line) for line in raw]
    cleaned = tuple(_VLLM.sub("", line) for line in bare)
    times = tuple(_carry(_time(line, reference, offset_s) for line in raw))
    loud = [number for number, line in enumerate(bare) if not _is_quiet(line)]
    return Log(raw, cleaned, times, _page(cleaned, range(len(raw))), _page(cleaned, loud))


def _page(cleaned: Sequence[str], numbers: Sequence[int]) -> Page:
    lines = [cleaned[number] for number in numbers]
    starts = tuple(accumulate((len(line) + 1 for line in lines), initial=0))[:-1]
    return Page("\n".join(lines), starts, tuple(numbers))


def _is_quiet(line: str) -> bool:
    found = _VLLM.match(line) or _OTHER_LEVEL.match(line)
    return found is not None and any(level in _QUIET for level in found.groups())


def _time(line: str, reference: float | None, offset_s: float) -> float | None:
    found = _STAMP.search(line, 0, _STAMP_WITHIN)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction = found.groups()
    # A stamp in whole seconds stands for any moment of its second: the middle errs least against exact exit times.
    part = float(f"0.{fraction}") if fraction else 0.5
    clock = (int(month), int(day), int(hour), int(minute), int(second))
    years = [int(year)] if year else _years(reference)
    moments = [timegm((candidate, *clock)) + part - offset_s for candidate in years]
    return min(moments, key=lambda moment: abs(moment - (reference or moments[0])))


def _years(reference: float | None) -> list[int]:
    """Years a stamp without one may belong to: around New Year it is not the reference's own."""
    if reference is None:
        return [2000]
    year = datetime.fromtimestamp(reference, UTC).year
    return [year, year - 1, year + 1]


def _carry(times: Iterable[float | None]) -> list[float | None]:
    """Give each line without a time that of the line before, and the first lines that of the first stamp."""
    carried: list[float | None] = []
    last: float | None = None
    for time in times:
        last = last if time is None else time
        carried.append(last)
    first = next((time for time in carried if time is not None), None)
    return [first if time is None else time for time in carried]
