"""Log lines are foreign input: no line, however long, keeps the diagnosis busy."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import time
from collections import deque
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType

import pytest

from raylaunch.checks import join_checks
from raylaunch.supervise.diagnosis import (
    clues,
    last_exception,
    log_lines,
    plog_lines,
    root_cause,
    rules,
    survival,
    tracebacks,
)
from raylaunch.supervise.diagnosis.inputs import log_reduction
from raylaunch.supervise.diagnosis.log_lines import MAX_LINE_CHARS, cut_line, read_log
from raylaunch.supervise.diagnosis.root_cause import diagnose_text
from raylaunch.supervise.diagnosis.signatures import load_signatures

RULES = tuple(
    import_module(found.name) for found in walk_packages(rules.__path__, f"{rules.__name__}.")
)
DIAGNOSIS_MODULES = (
    *(*RULES, clues, last_exception, log_lines, log_reduction, plog_lines, root_cause),
    *(survival, tracebacks),
)
LENGTH = 65_536
LIMIT_S = 0.2
"""CPU seconds of one pattern on one line of 64 kB. Quadratic ones took 1 to 500 s."""

NOISE = random.Random(1).randbytes(LENGTH)
COMMON = (
    base64.b64encode(NOISE)[:LENGTH].decode(),
    json.dumps([{"id": number, "text": "x 'y' \"z\""} for number in range(4000)])[:LENGTH],
    *(unit * (LENGTH // len(unit)) for unit in (" ", "a", "1", "'", "(", "[", "=", "/", "\t")),
    *(unit * (LENGTH // len(unit)) for unit in ("A1_", "Aa.", "[rank1]:", "(pid=1", "(pid=1 x")),
    *(unit * (LENGTH // len(unit)) for unit in ("11-23 10:16:41 ", "\x1b[1;", "上海", "vllm: ")),
)


Pattern = re.Pattern[str] | re.Pattern[bytes]


def find_patterns() -> Iterator[tuple[str, Pattern]]:
    for meaning in last_exception.MEANINGS:
        yield f"last_exception.{meaning.name}", re.compile(meaning.words or "x{9}")
    for skip in (log_reduction._BELOW_WARNING, log_reduction._WARNINGS):
        for name, value in vars(skip).items():
            if isinstance(value, re.Pattern):
                yield f"log_reduction.{name}", value
    for signature in load_signatures():
        yield signature.id, signature.pattern
    for module in (*DIAGNOSIS_MODULES, join_checks):
        yield from module_patterns(module)


def module_patterns(module: ModuleType) -> Iterator[tuple[str, Pattern]]:
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            yield f"{module.__name__.rpartition('.')[2]}.{name}", value


PATTERNS = list(find_patterns())


def repeated_literals(pattern: Pattern) -> Iterator[str]:
    """Yield long lines of the pattern's own literal parts: each begins a match that then fails."""
    operators = r"\\[sSdDwWbn]|\{\d+,?\d*\}|\(\?[:!=<i]+\)?|[()\[\]|?*+^$]"
    source = pattern.pattern
    written = source if isinstance(source, str) else source.decode("latin-1")
    plain = re.sub(operators, "\0", written).replace("\\", "")
    parts = list(dict.fromkeys(part for part in plain.split("\0") if len(part) > 1))
    units = [*parts, *(f"{part} " for part in parts)]
    for first, second in itertools.pairwise(parts):
        units += [f"{first}1{second}", f"{first} x {second} "]
    for unit in units:
        yield (unit * (LENGTH // len(unit) + 1))[:LENGTH]
    for part in parts:  # a beginning once, followed by one long run
        for filler in (" ", "1", "x", "/", "."):
            yield part + filler * (LENGTH - len(part))


def search(pattern: Pattern, line: str) -> None:
    """Find all matches: in the text, or in the bytes of a whole line as the reduction does."""
    if isinstance(pattern.pattern, str):
        deque(pattern.finditer(line), 0)
    else:
        deque(pattern.finditer(line.encode() + b"\n"), 0)


def cpu_seconds(pattern: Pattern, line: str) -> float:
    """Return the least of three measurements: the machine may be busy with something else."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        search(pattern, line)
        best = min(best, time.process_time() - started)
        if best < LIMIT_S:
            break
    return best


@pytest.mark.parametrize(("name", "pattern"), PATTERNS, ids=[name for name, _ in PATTERNS])
def test_every_pattern_is_quick_on_long_hostile_lines(name: str, pattern: Pattern) -> None:
    for line in (*COMMON, *repeated_literals(pattern)):
        seconds = cpu_seconds(pattern, line)
        assert seconds < LIMIT_S, f"{name} took {seconds:.2f} s on {line[:40]!r}..."


def test_a_line_is_cut_before_it_is_searched_and_keeps_head_and_tail() -> None:
    line = "head " + "x" * 1_000_000 + " tail"
    cut = cut_line(line)
    assert len(cut) < MAX_LINE_CHARS + 10
    assert cut.startswith("head x")
    assert cut.endswith("x tail")
    assert cut_line("short") == "short"
    assert len(read_log([line]).raw[0]) < MAX_LINE_CHARS + 10


@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_failure_at_either_end_of_a_huge_line_is_found(side: str) -> None:
    error = "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB"
    filler = "x " * 5_000_000
    found = diagnose_text(f"{error} {filler}" if side == "head" else f"{filler} {error}")
    assert found is not None
    assert found.id == "npu-oom"
    assert len(found.line) <= 500


def test_a_whole_log_of_hostile_lines_is_diagnosed_in_time() -> None:
    started = time.process_time()
    diagnose_text("\n".join(COMMON))
    assert time.process_time() - started < 4


def test_a_diagnosis_has_no_control_characters_of_the_log() -> None:
    found = diagnose_text(
        "\x1b]52;c;cm0=\x07 PermissionError: [Errno 13] Permission denied: '/\x9bx'"
    )
    assert found is not None
    assert "\x1b" not in found.line + found.cause
    assert "\x9b" not in found.line + found.cause
