"""A log of any size reduced to the lines that a diagnosis can use: one pass, bounded memory.

Nearly all of a serving log was logged below WARNING: requests, throughput, debug output. Such a
line matters only when it holds one of a few texts (an ordered stop, a hang notice) or is the last
sign of life. One pattern skips runs of them without a line of Python. What it leaves, with the
lines around it, goes to the same layers as a small log, and the result is the same
(tests/supervise/test_log_reduction.py).

Of more error lines than `MAX_BYTES` the first and the last are kept, and those between that hold an
error word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raylaunch.supervise.diagnosis.inputs.bounded_lines import BoundedLines, Piece, may_hold
from raylaunch.supervise.diagnosis.inputs.carried_lines import split_line
from raylaunch.supervise.diagnosis.inputs.log_blocks import split_blocks
from raylaunch.supervise.diagnosis.log_lines import LEFT_OUT, clean_line, has_time
from raylaunch.supervise.diagnosis.survival import ANSWERED, PROGRESSED, SERVED, STOPPED, Sign

MAX_BYTES = 5 << 20
"""Bytes of error lines, with the lines around them, that are kept of a log."""
WARNING_SHARE = 4
"""Warnings and other single lines get this part of that."""
LINES_BEFORE = 41
"""Of an error: `survival` searches 40 lines before it for the module that logged it."""
LINES_AFTER = 60
"""Of an error: the lines of a block of CANN may stand so far apart (`rules/cann_blocks`)."""
_LOOK_BACK = 500
"""Lines that are searched for the time of a line without one."""
_FIRST_TIME_BYTES = 4 << 20

# The beginnings of a line that `log_lines` reads as a level, in printable ASCII. What is written
# otherwise is kept, and `log_lines` decides. The plain form comes first: it is the usual one.
_PLAIN = rb"(?:\(\w{1,40} pid=\d[ !-'*-~]{0,60}\) ?)?"
_COLOUR = rb"(?:(?:\x1b|\\u001b)\[[0-9;]{0,12}m)?"
_FOREIGN = (
    rb"(?:[a-z][\w.-]{1,60} {1,40}\| ?|"
    # journald and syslog, a container's time stamp, Docker's JSON.
    rb"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.+Z-]{8,30}) [\w.-]{1,60} "
    rb"[\w@.:/-]{1,60}\[\d{1,9}\]: |"
    rb"\d{4}-\d\d-\d\dT[\d:.+Z-]{8,30} (?:std(?:out|err) [FP] )?|\{\"log\":\")?"
)
_PROCESS = rb"(?:\((?:[\w. -]{0,40} )?pid=\d{1,9}[ !-'*-~]{0,60}\)" + _COLOUR + rb" ?)?"
_DECORATED = _COLOUR + _FOREIGN + _COLOUR + _PROCESS + _COLOUR
_LEVEL = (
    rb"(?:(?:%(names)s)(?:: | +(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})? "
    rb"+\[?[\w./-]{1,200}:\d{1,6}\])|"
    rb"\[(?:%(names)s|%(cann)s)\] ?[A-Z]\w{0,30}\(|"
    rb"\[\d{4}-\d\d-\d\d [\d:,.]{8,16}\] (?:%(names)s) [\w./-]{1,80}:\d{1,6}|"
    rb"\d{4}-\d\d-\d\d [\d:,.]{8,16} (?:- [\w.]{1,80} - )?(?:%(names)s) )"
)
# The cheapest test first: most lines without a level begin in another way.
_MAY_HAVE_LEVEL = (
    rb"[DIW[(\x1b\d]|[a-z][\w.-]{1,60} {1,40}\||[A-Z][a-z]{2} [ \d]\d \d\d:|\{\"log\":"
)


class _Skip:
    """Skips runs of lines that were logged with some levels."""

    def __init__(self, names: bytes, cann: bytes) -> None:
        words = {*names.split(b"|"), *cann.split(b"|")}
        # A word that begins with another one of them needs no search of its own.
        self._names = [one for one in words if not any(one[:n] in words for n in range(len(one)))]
        level = _LEVEL % {b"names": names, b"cann": cann}
        line = rb"(?:%b|%b)" % (_PLAIN + level, _DECORATED + level)
        self._plain = self._compile(line + rb"[^\n]*\n")
        # A carriage return begins a line of its own, which may be an error.
        self._with_returns = self._compile(line + rb"[^\r\n]*\r?\n")

    @staticmethod
    def _compile(line: bytes) -> re.Pattern[bytes]:
        """Return a pattern: lines of these levels, then (the group) the others."""
        other = rb"(?:(?!%b)|(?!%b))[^\n]*\n" % (_MAY_HAVE_LEVEL, line)
        return re.compile(rb"(?:%b)*((?:%b)*)" % (line, other))

    def other_lines(self, data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of lines in `data[start:end]` that were not logged with these levels."""
        # Searching for the names is several times as fast as the pattern.
        held = (name for name in self._names if may_hold(data, name))
        if start < end and not any(data.find(name, start, end) >= 0 for name in held):
            yield start, end
            return
        has_returns = data.find(b"\r", start, end) >= 0
        pattern = self._with_returns if has_returns else self._plain
        while start < end:
            found = pattern.match(data, start, end)
            if found is None or found.end() == start:
                return
            if found[1]:
                yield found.span(1)
            start = found.end()


_BELOW_WARNING = _Skip(rb"INFO|DEBUG", rb"EVENT|TRACE")
_WARNINGS = _Skip(rb"WARNING", rb"WARN")


@dataclass(frozen=True)
class ReducedLog:
    """What is left of a log."""

    lines: Sequence[str]
    numbers: Sequence[int]
    """Number in the file of each line."""
    total: int
    """Lines of the whole log."""
    unread: int
    """Error lines that were dropped because there were too many."""


class _Span(NamedTuple):
    """A part of a buffer, whole lines."""

    start: int
    end: int
    is_error: bool


class _Buffer(NamedTuple):
    """A block with the last lines of the one before."""

    data: bytes
    fresh: int
    """Where the new block begins."""
    offset: int
    """Of the buffer in the log."""
    line: int
    """Number of the buffer's first line."""
    lines: int

    def number_at(self, start: int) -> int:
        """Return the number of the line that begins at `start`, near the end of the buffer."""
        return self.line + self.lines - self.data.count(b"\n", start)


def reduce_log(
    chunks: Iterable[bytes], *, anchors: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> ReducedLog:
    """Return the lines of a log that a diagnosis can use.

    Args:
        chunks: The log, in pieces of any length.
        anchors: Texts that matter in a line of any level.
        max_bytes: Bytes of error lines to keep.
    """
    reduction = _Reduction(anchors, max_bytes)
    for block in split_blocks(chunks):
        reduction.add(block)
    return reduction.finish()


class _Reduction:
    def __init__(self, anchors: Sequence[str], max_bytes: int) -> None:
        self._anchors = tuple(anchor.encode() for anchor in anchors)
        self._errors = BoundedLines(max_bytes)
        self._others = BoundedLines(max_bytes // WARNING_SHARE)
        self._signs: dict[Sign, Piece] = {}
        self._buffer = _Buffer(b"", 0, 0, 1, 0)
        self._kept_to = 0
        """Offset in the log up to which lines were kept or passed over."""
        self._after = 0
        """Lines still to keep after the last error."""
        self._time: Piece | None = None
        """The last line with a time in the blocks before this one."""
        self._has_first_time = False

    def add(self, block: bytes) -> None:
        """Take the next block, whole lines."""
        self._buffer = buffer = _next_buffer(self._buffer, block)
        if not self._has_first_time:
            self._keep_first_time(buffer)
        spans = list(self._errors_of(buffer))
        if not _cover(spans, buffer):
            spans += self._anchored(buffer)
        self._keep(buffer, sorted(spans))
        self._read_signs(buffer)
        self._time = self._time_before(buffer, len(buffer.data), buffer.fresh) or self._time

    def finish(self) -> ReducedLog:
        """Return what was kept, in order."""
        buffer = self._buffer
        # The end of a log is of interest even without an error: the time of its last line.
        last = _lines_back(buffer.data, len(buffer.data), LINES_AFTER, 0)
        if last < len(buffer.data):
            self._keep(buffer, [_Span(last, len(buffer.data), is_error=False)])
        total = buffer.line + buffer.lines - 1
        times = [self._time] if self._time else []
        pieces = [*self._errors.pieces(), *self._others.pieces(), *self._signs.values(), *times]
        kept = {number: line for piece in pieces for number, line in piece.numbered()}
        lines: list[str] = []
        numbers: list[int] = []
        before = 0
        for number in sorted(kept):
            if number > before + 1:
                lines.append(LEFT_OUT)
                numbers.append(number - 1)
            before = number
            for text in split_line(kept[number].decode("utf-8", "replace")):
                lines.append(text)
                numbers.append(number)
        return ReducedLog(lines, numbers, total, self._errors.dropped)

    def _errors_of(self, buffer: _Buffer) -> Iterator[_Span]:
        """Yield the lines that may report an error, with those around them, and the warnings."""
        data = buffer.data
        if self._after:
            end, self._after = _lines_on(data, buffer.fresh, self._after)
            yield _Span(buffer.fresh, end, is_error=True)
        for start, end in _BELOW_WARNING.other_lines(data, buffer.fresh, len(data)):
            warnings_from = start
            for first, behind in _WARNINGS.other_lines(data, start, end):
                yield _Span(warnings_from, first, is_error=False)
                begin = _lines_back(data, first, LINES_BEFORE, 0)
                until, self._after = _lines_on(data, behind, LINES_AFTER)
                yield _Span(begin, until, is_error=True)
                warnings_from = behind
            yield _Span(warnings_from, end, is_error=False)

    def _anchored(self, buffer: _Buffer) -> Iterator[_Span]:
        """Yield the lines of any level that hold an anchor."""
        data = buffer.data
        for anchor in self._anchors:
            at = data.find(anchor, buffer.fresh) if may_hold(data, anchor) else -1
            while at >= 0:
                end = data.index(b"\n", at) + 1
                yield _Span(data.rfind(b"\n", 0, at) + 1, end, is_error=False)
                at = data.find(anchor, end)

    def _keep(self, buffer: _Buffer, spans: Iterable[_Span]) -> None:
        counted_to = 0
        number = buffer.line
        for span in spans:
            start = max(span.start, self._kept_to - buffer.offset)
            if start >= span.end:
                continue
            number += buffer.data.count(b"\n", counted_to, start)
            counted_to = start
            store = self._errors if span.is_error else self._others
            if buffer.offset + start > self._kept_to and not _line_has_time(buffer.data, start):
                gap = max(0, self._kept_to - buffer.offset)
                timed = self._time_before(buffer, start, gap) or self._time
                if timed:
                    self._others.add(timed)
            store.add(Piece(number, buffer.data[start : span.end]))
            self._kept_to = buffer.offset + span.end

    def _time_before(self, buffer: _Buffer, end: int, stop: int) -> Piece | None:
        """Return the last line with a time in `data[stop:end]`."""
        data = buffer.data
        # One search of all these lines costs less than one of each, and in most logs without a
        # time it is the only one.
        first = _lines_back(data, end, _LOOK_BACK, stop)
        found = [match.start() for match in _CLOCK.finditer(data, first, end)]
        for at in reversed(found):
            start = data.rfind(b"\n", first, at) + 1 or first
            if _line_has_time(data, start):
                return Piece(buffer.number_at(start), data[start : data.index(b"\n", at) + 1])
        return None

    def _keep_first_time(self, buffer: _Buffer) -> None:
        """Keep the first line with a time: lines before it get that one."""
        for found in _CLOCK.finditer(buffer.data, buffer.fresh):
            start = buffer.data.rfind(b"\n", 0, found.start()) + 1
            if _line_has_time(buffer.data, start):
                end = buffer.data.index(b"\n", start) + 1
                number = buffer.line + buffer.data.count(b"\n", 0, start)
                self._others.add(Piece(number, buffer.data[start:end]))
                self._has_first_time = True
                return
        self._has_first_time = buffer.offset > _FIRST_TIME_BYTES

    def _read_signs(self, buffer: _Buffer) -> None:
        """Keep the last line of each sign of life, and the first of an ordered stop."""
        data = buffer.data
        after = buffer.fresh
        for sign in (SERVED, PROGRESSED, ANSWERED):
            at = _last_line(sign, data, after)
            if at is None:
                continue
            self._signs[sign] = self._piece_at(buffer, at)
            # What comes before a sign of work is no longer asked for.
            after = max(after, at) if sign is SERVED else after
        if STOPPED not in self._signs:
            at = _first_line(STOPPED, data, buffer.fresh)
            if at is not None:
                self._signs[STOPPED] = self._piece_at(buffer, at)

    def _piece_at(self, buffer: _Buffer, start: int) -> Piece:
        end = buffer.data.index(b"\n", start) + 1
        return Piece(buffer.number_at(start), buffer.data[start:end])


def _cover(spans: Sequence[_Span], buffer: _Buffer) -> bool:
    """Whether one of the spans holds all fresh lines, so that nothing else of them can be kept."""
    end = len(buffer.data)
    return any(span.start <= buffer.fresh and span.end >= end for span in spans)


def _next_buffer(last: _Buffer, block: bytes) -> _Buffer:
    lead_at = _lines_back(last.data, len(last.data), LINES_BEFORE, 0)
    lead = last.data[lead_at:]
    lead_lines = lead.count(b"\n")
    return _Buffer(
        data=lead + block,
        fresh=len(lead),
        offset=last.offset + lead_at,
        line=last.line + last.lines - lead_lines,
        lines=lead_lines + block.count(b"\n"),
    )


def _lines_back(data: bytes, start: int, count: int, stop: int) -> int:
    """Return where the line begins that is `count` lines before the one at `start`."""
    for _ in range(count):
        if start <= stop:
            return stop
        start = data.rfind(b"\n", stop, start - 1) + 1 or stop
    return start


def _lines_on(data: bytes, start: int, count: int) -> tuple[int, int]:
    """Return where `count` lines from `start` end, and how many of them are not there yet."""
    for done in range(count):
        if start >= len(data):
            return start, count - done
        start = data.index(b"\n", start) + 1
    return start, 0


def _line_has_time(data: bytes, start: int) -> bool:
    line = data[start : start + _STAMP_WITHIN].partition(b"\n")[0]
    return _CLOCK.search(line) is not None and has_time(_decode(line))


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _holds(sign: Sign, line: bytes) -> bool:
    return any(sign.pattern.search(clean_line(piece)) for piece in _decode(line).split("\r"))


def _last_line(sign: Sign, data: bytes, after: int) -> int | None:
    """Return where the last line with the sign begins."""
    best = None
    for word, companion in sign.byte_words:
        at = data.rfind(word, after) if may_hold(data, word) else -1
        while at >= 0:
            start = data.rfind(b"\n", 0, at) + 1
            line = data[start : data.index(b"\n", at)]
            if companion in line and _holds(sign, line):
                best = after = start
                break
            at = data.rfind(word, after, start)
    return best


def _first_line(sign: Sign, data: bytes, start: int) -> int | None:
    """Return where the first line with the sign begins."""
    best = None
    end = len(data)
    for word, companion in sign.byte_words:
        at = data.find(word, start, end) if may_hold(data, word) else -1
        while at >= 0:
            begin = data.rfind(b"\n", 0, at) + 1
            behind = data.index(b"\n", at)
            line = data[begin:behind]
            if companion in line and _holds(sign, line):
                best = begin
                end = behind
                break
            at = data.find(word, behind, end)
    return best


_CLOCK = re.compile(rb"[01]\d-[0-3]\d[ T-][0-2]\d:[0-5]\d:[0-6]\d")
_STAMP_WITHIN = 600
"""Bytes in which a time is searched: 120 characters, colours not counted."""
