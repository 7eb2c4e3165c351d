r"""Lines as they were written, out of what carries them: JSON, quotations, lost newlines.

Docker keeps `{"log":"text\n","stream":"stderr","time":"..."}`, a report indents or quotes a log,
and a page that shows it may drop the newlines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile

_DOCKER = '{"log":'
# The prefix of a line: a line that has lost its newline goes on with that of the next one.
_PREFIX = re.compile(
    r"(?:\(\w{1,40}(?: [\w=.]{1,24})? pid=\d{1,9}[^()]{0,40}\) ?){0,3}"
    r"(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./-]{1,60}:\d{1,6}\]"
)
_TWO_LINES_CHARS = 60
"""A line that holds two has at least that many characters."""
# What begins a line of CANN, glog and argparse; a block of CANN may also follow `detail:`, and any
# line what a container runtime or a process writes before it.
_HEAD = re.compile(
    r"(?<=[a-z.!?]) {1,8}(?=(?:[A-Z]\w{3,60}\(E[A-Z0-9]\d{4}\)|E[A-Z0-9]\d{4}): |"
    r"[EWIF]\d{4,8} \d\d:\d\d:\d\d\.\d{1,6} {1,6}\d{1,9} \w{1,60}\.\w|"
    r"\[ERROR\] (?:\d{4}-|[A-Z]{2,10} )|vllm(?: serve)?: error: )"
)
_HEADER = "Traceback (most recent call last):"
_PLACE = '", line '
_FRAME = re.compile(r'(?<=\S) {1,8}(?=File "[^"\n]{1,300}", line \d{1,6}, in )')
_RAISED = re.compile(
    r"(?<=\S) {1,8}(?=(?:[a-z_]\w{0,40}\.){0,6}[A-Z]\w{1,60}(?:Error|Exception|Timeout): )"
)
_BLANKS = frozenset(" \t>")
# What others write before a line: `vllm-1  | ` (compose), `[RAW SERVER] `, a CRI or ISO time stamp
# with `stdout F`, `2024-03-22 02:41:50 | ERROR | stderr | `. Blanks that follow belong to the line.
_FOREIGN = re.compile(
    r"^(?:(?:\s{0,8}(?:[a-z][\w.-]{1,60} {1,40}\| ?"
    # Not a level, which is part of a line of CANN.
    r"|\[(?!ERROR|FATAL|CRIT|WARN|INFO|DEBUG|EVENT|TRACE)[A-Z][A-Z ]{2,30}\] "
    r"|\[(?:pod|Stage)[^\]\n]{1,120}\] |\d{4}-\d\d-\d\dT[\d:.+Z-]{8,30} (?:std(?:out|err) [FP] )?"
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| [A-Z]{4,8} \| \w{1,40} \| "
    r"|[A-Z]{3,7} {1,2}PyProcess [\w.-]{1,80}-std(?:out|err): "
    # journald and syslog: `Nov 03 10:00:00 node1 vllm[123]: `; after an ISO time the rest of it.
    r"|(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?[\w.-]{1,60} [\w@.:/-]{1,60}\[\d{1,9}\]: "
    # The place of vLLM's prefix, whose level and time were cut off.
    r"|\[[a-z_]{2,50}\.py:\d{1,5}\] )){1,3}"
    # The bars of an ExceptionGroup's traceback.
    r"|(?: {2,4}){1,4}\|(?: |$))"
)
_MARGIN_LINES = 3
"""Of fewer lines a common margin may be that of the text itself."""


def split_lines(text: str) -> tuple[list[str], list[int]]:
    """Return the lines of a text and their numbers, as an editor counts them.

    A progress bar rewrites its line with carriage returns: each state of it is a line of its own
    here, all with the same number.
    """
    lines = []
    numbers = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        for piece in split_line(line):
            lines.append(piece)
            numbers.append(number)
    return lines, numbers


def split_line(line: str) -> list[str]:
    """Return the lines that one line of a file holds: states of a progress bar, lost newlines."""
    text = _docker_text(line) if line.startswith(_DOCKER) else line
    pieces = text.removesuffix("\r").split("\r")
    return [part for piece in pieces for part in _split_glued(piece)]


def strip_foreign(line: str) -> str:
    """Return `line` without what a container runtime or a launcher writes before it."""
    return _FOREIGN.sub("", line)


def strip_margin(lines: Sequence[str]) -> Sequence[str]:
    """Return lines without what stands before all of them: blanks of a code block, or `> `.

    The first line of what was copied often lacks it.
    """
    used = [line for line in lines if line.strip()]
    margin = _margin(used) or (_margin(used[1:]) if len(used) > _MARGIN_LINES else "")
    if not margin:
        return lines
    return [line.removeprefix(margin).removeprefix(margin.rstrip()) for line in lines]


def _margin(lines: Sequence[str]) -> str:
    # What the first and the last of sorted lines share, all of them share.
    pairs = zip(min(lines, default=""), max(lines, default=""), strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1] and pair[0] in _BLANKS, pairs)
    return "".join(char for char, _ in same)


def _docker_text(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line  # cut in the middle
    text = entry.get("log")
    return text.rstrip("\n") if isinstance(text, str) else line


def _split_glued(line: str) -> list[str]:
    if len(line) < _TWO_LINES_CHARS:
        return [line]
    # What stands before the first prefix is a launcher's.
    starts = [found.start() for found in _PREFIX.finditer(line)][1:]
    starts += [found.start() for found in _HEAD.finditer(line)]
    pieces = _cut(line, sorted({*starts})) if starts else [line]
    return [part for piece in pieces for part in _split_traceback(piece)]


def _split_traceback(line: str) -> list[str]:
    """Return the frames and the exception of a traceback that stands on one line."""
    if _PLACE not in line:
        return [line]
    frames = [found.start() for found in _FRAME.finditer(line)]
    raised = [found.start() for found in _RAISED.finditer(line, line.rindex(_PLACE))]
    # Before the first frame of a line stands a prefix, unless it is the header of the traceback.
    starts = [*frames[0 if _HEADER in line else 1 :], *raised[:1]]
    return _cut(line, starts) if starts else [line]


def _cut(line: str, starts: Sequence[int]) -> list[str]:
    ends = [*starts, len(line)]
    return [line[start:end].rstrip() for start, end in zip([0, *starts], ends, strict=True)]
