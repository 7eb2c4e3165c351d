"""A server's log, prepared for the diagnosis: bounded, without colours and prefixes, timed.

vLLM 0.32 writes `(EngineCore_DP0 pid=12) ERROR 11-23 10:16:41 [core.py:1510] text` in local time,
without a year; CANN writes `2026-11-23-10:16:41.070.463`; tracebacks and native code write no time.

Log lines are foreign input: a request may put 100 kB of base64 into one. Every line is cut before
any pattern sees it, and every pattern here is linear in the length of a line.

A log of gigabytes comes here reduced to the lines that matter (`inputs/log_reduction.py`), each
with its number in the file.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raylaunch.checks.findings import strip_control_characters
from raylaunch.supervise.diagnosis.inputs.bounded_lines import cut_line
from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry
from raylaunch.supervise.diagnosis.inputs.carried_lines import strip_foreign, strip_margin
from raylaunch.supervise.diagnosis.inputs.log_text import LogText
from raylaunch.supervise.diagnosis.inputs.wrapped_lines import join_wrapped

# Syslog and JSON write the escape character as text; a web page drops it (`[0;36m`, `[1;36m`).
_COLOUR = re.compile(
    r"(?:\x1b|#033|\\(?:x1b|033|u001b|e))\[[0-9;?]*[A-Za-z]"
    r"|\[(?:\d{1,2}(?:;\d{1,3}){1,4}|0|[39][0-7])m(?!\])"
)
# Bounded repetitions: `[^()]*pid=[^()]*` is quadratic in "(pid=1 pid=1 pid=1 ...".
_PROCESS = re.compile(r"^(?:\s*\([^()]{0,64}\bpid=\d+[^()]{0,64}\) ?|\[rank\d+\]: ?)+")
_VLLM = re.compile(
    r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) +(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})? "
    r"+\[?[^\]\s]+:\d+\] ?"
)
# vllm-ascend 0.15 and Ray: `[2026-03-09 09:13:30] INFO modelslim_config.py:296: `.
_BRACKETED = re.compile(
    r"^\[\d{4}-\d\d-\d\d [\d:,.]{8,16}\] ?(DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"[\w./-]{1,80}:\d{1,6}:? ?"
)
# The rest of vLLM's prefix, where level and time were cut off: `[core.py:720] text`.
_BARE_PLACE = re.compile(r"^\[[\w.-]{1,60}\.py:\d{1,6}\] ?")
_OTHER_LEVEL = re.compile(
    r"^(?:(DEBUG|INFO|WARNING):\s|\d{4}-\d\d-\d\d [\d:,.]+(?:\+\d\d:\d\d)? (?:- [\w.]{1,80} - )?"
    r"\s*(DEBUG|INFO|WARNING)\s|\[(?:[ \d-]{0,11})[\d:,. -]{8,30}\] [\w.: ]{0,40}\b(INFO|"
    r"WARNING)\b|\[(DEBUG|INFO|EVENT|TRACE|WARNING|WARN)\] ?[A-Z]\w{0,30}\()"
)
# The statement that raised, as a traceback shows it: its text may hold `{placeholders}`.
_RAISE = re.compile(r"^\s*raise (?:[A-Za-z_][\w.]{0,80}(?:\(|$)|\w{1,40} from )")
_STAMP = re.compile(
    r"(?<!\d)(?:(\d{4})-)?([01]\d)-([0-3]\d)[ T-]([0-2]\d):([0-5]\d):([0-6]\d)(?:[.,](\d{1,6}))?"
)
_STAMP_WITHIN = 120  # a time further to the right belongs to the message
# EVENT and TRACE are levels of CANN: `[EVENT] HCCL(159,python3):2026-11-23-10:16:41.070.463`.
_NOISE = "NOISE"
# The guard's note of output that a full disk lost (node/process/guard.py): the server has failed
# for another reason, for it does not write the log itself.
_OWN_NOTE = "[raylaunch] "
_BELOW_WARNING = frozenset({"DEBUG", "INFO", "EVENT", "TRACE", _NOISE})
_BELOW_ERROR = _BELOW_WARNING | {"WARNING", "WARN"}
# CANN's compiler processes write this as an error when their parent has ended, in order or not.
_ORPHANED = "main process disappeared"
LEFT_OUT = "INFO: lines left out"
"""Stands where lines of a reduced log are missing, so that no pattern spans the gap."""


@dataclass(frozen=True)
class ServerLog:
    """Log of one server, ready to be searched."""

    raw: tuple[str, ...]
    """The lines as written, cut, without colours and control characters."""
    cleaned: tuple[str, ...]
    """The lines without process, level and time."""
    processes: tuple[str, ...]
    """Per line, the prefix that names its process; "" when it has none."""
    times: tuple[float | None, ...]
    """Per line, seconds since the epoch on the controller's wall clock.

    A line without a stamp has that of the last one.
    """
    numbers: Sequence[int]
    """Per line, its number in the file."""
    everything: LogText
    warnings: LogText
    """Without lines logged below WARNING."""
    errors: LogText
    """Without lines logged below ERROR: those report no failure, whatever they quote.

    They are nearly all of a log.
    """
    codes: Mapping[str, CannEntry]
    """What the node's own CANN says about its error codes."""

    @property
    def last_time(self) -> float | None:
        """Time of the last stamped line."""
        return self.times[-1] if self.times else None


def read_log(
    lines: Sequence[str],
    *,
    reference: float | None = None,
    offset_s: float = 0.0,
    numbers: Sequence[int] = (),
    noise: Sequence[re.Pattern[str]] = (),
    codes: Mapping[str, CannEntry] | None = None,
    once: bool = False,
) -> ServerLog:
    """Clean and time the lines of one server.

    Args:
        lines: The log, its tail, or what a reduction left of it.
        reference: A time near the end of the log (epoch); it gives stamps their year.
            None: any year will do.
        offset_s: Seconds to subtract from a stamp, read as UTC, to get the controller's wall
            clock: time zone plus clock error.
        numbers: Number in the file of each line; by default counted from 1.
        noise: What the lines match that report no failure, whatever their level.
        codes: What the node's own CANN says about its error codes.
        once: Join also what a terminal may have broken in a single place.
    """
    clean = strip_margin([clean_raw(line) for line in lines])
    whole = list(enumerate(clean)) if LEFT_OUT in clean else join_wrapped(clean, once=once)
    raw = tuple(line for _, line in whole)
    numbers = numbers or range(1, len(clean) + 1)
    parts = [_split_prefix(line) for line in raw]
    cleaned = tuple(_without_place(rest) for _, rest in parts)
    levels = [_level(rest) for _, rest in parts]
    for index, line in enumerate(cleaned):
        raised = "raise " in line and _RAISE.match(line) and "MLIR" not in line
        if raised or _ORPHANED in line:
            levels[index] = _NOISE
    for index, line in enumerate(raw if noise else ()):
        if any(pattern.search(line) for pattern in noise):
            levels[index] = _NOISE
    stamps = [_parse_time(line, reference, offset_s) for line in raw]
    warnings = [index for index, level in enumerate(levels) if level not in _BELOW_WARNING]
    errors = [index for index in warnings if levels[index] not in _BELOW_ERROR]
    return ServerLog(
        raw=raw,
        cleaned=cleaned,
        processes=tuple(process for process, _ in parts),
        times=tuple(_fill_gaps(stamps)),
        numbers=numbers if len(raw) == len(clean) else [numbers[index] for index, _ in whole],
        everything=_join(cleaned, range(len(raw))),
        warnings=_join(cleaned, warnings),
        errors=_join(cleaned, errors),
        codes=codes or {},
    )


def clean_line(line: str) -> str:
    """Return one line without colours, process, level and time."""
    _, rest = _split_prefix(clean_raw(line))
    return _without_place(rest)


def _without_place(rest: str) -> str:
    """Return a line without level, time and the place that logged it."""
    text = _BRACKETED.sub("", _VLLM.sub("", rest))
    return _BARE_PLACE.sub("", text) if text.startswith("[") else text


def has_time(line: str) -> bool:
    """Whether a line carries a time stamp of its own."""
    return _STAMP.search(clean_raw(line), 0, _STAMP_WITHIN) is not None


def last_full_time(lines: Iterable[str]) -> float | None:
    """Return the latest time in lines whose stamps carry a year."""
    moments = []
    for line in lines:
        found = _STAMP.search(clean_raw(line), 0, _STAMP_WITHIN)
        if found and found[1] and (moment := _parse_time(found[0], None, 0.0)) is not None:
            moments.append(moment)
    return max(moments, default=None)


def _split_prefix(line: str) -> tuple[str, str]:
    """Return the process that a clean line names ("" when none), and what follows."""
    process = ""
    rest = strip_foreign(line)
    # What a launcher writes may stand before, between and behind the names of processes.
    while (prefix := _PROCESS.match(rest)) is not None:
        process += f" {prefix[0].strip()}"
        rest = strip_foreign(rest[prefix.end() :])
    return process.lstrip(), rest


def clean_raw(line: str) -> str:
    """Return a line cut, without colours and control characters."""
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


def _level(line: str) -> str:
    """Return the level that a line was logged with; "" when it names none."""
    if line.startswith(_OWN_NOTE):
        return _NOISE
    found = _VLLM.match(line) or _BRACKETED.match(line) or _OTHER_LEVEL.match(line)
    if found is None:
        return ""
    # Each pattern has one group per notation of the level; only one of them took part.
    return next((group for group in found.groups() if group), "")


def _parse_time(line: str, reference: float | None, offset_s: float) -> float | None:
    if line.count(":", 0, _STAMP_WITHIN) < 2:
        return None  # nearly all lines without a time, and much faster than the pattern
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
