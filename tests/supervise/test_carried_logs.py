"""A log says the same whatever has carried it: a container, journald, a terminal, a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
import yaml

from raylaunch.supervise.diagnosis.inputs.carried_lines import (
    split_line,
    strip_foreign,
    strip_margin,
)
from raylaunch.supervise.diagnosis.inputs.wrapped_lines import join_wrapped
from raylaunch.supervise.diagnosis.root_cause import diagnose_text

FOLDER = Path(__file__).parent.parent / "data" / "diagnose"
PARTS = 12
LOGS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["log"]
    for path in sorted(FOLDER.glob("*.yaml"))
    if crc32(path.stem.encode()) % PARTS == 0  # a new case moves no other one
}


def is_as_written(log: str) -> bool:
    """Whether no report has already broken the lines, or shows the times of a container."""
    lines = log.splitlines()
    return len(join_wrapped(lines)) == len(lines) and strip_foreign(lines[0]) == lines[0]


SAMPLE = {name: log for name, log in LOGS.items() if is_as_written(log)}

Carrier = Callable[[str], str]


def each_line(carry: Carrier) -> Carrier:
    return lambda log: "".join(f"{carry(line)}\n" for line in log.splitlines())


def in_docker_json(line: str) -> str:
    entry = {"log": f"{line}\n", "stream": "stderr", "time": "2025-11-03T10:00:00.1Z"}
    return json.dumps(entry, separators=(",", ":"))


def wrapped_at(width: int) -> Carrier:
    def wrap(line: str) -> str:
        return "\n".join(line[at : at + width] for at in range(0, len(line), width))

    return each_line(wrap)


CARRIERS: dict[str, Carrier] = {
    "compose": each_line(lambda line: f"vllm-1  | {line}"),
    "cri": each_line(lambda line: f"2025-11-03T10:00:00.123456789Z stderr F {line}"),
    "journald": each_line(lambda line: f"Nov 03 10:00:00 node1 vllm[123]: {line}"),
    "docker": each_line(in_docker_json),
    "ray": each_line(lambda line: f"(RayWorkerWrapper pid=4711, ip=192.0.2.9) {line}"),
    "rank": each_line(lambda line: f"[rank3]: {line}"),
    "colour": each_line(lambda line: f"\x1b[36m{line[:12]}\x1b[0m{line[12:]}"),
    "crlf": lambda log: log.replace("\n", "\r\n"),
    "indented": each_line(lambda line: f"    {line}"),
    "quoted": each_line(lambda line: f"> {line}"),
}
BROKEN: dict[str, tuple[Carrier, float]] = {
    "terminal of 80": (wrapped_at(80), 0.92),
    "terminal of 120": (wrapped_at(120), 0.95),
    "lost newlines": (lambda log: " ".join(log.splitlines()) + "\n", 0.85),
}
"""What breaks lines, and the share of the answers that must stay."""


def diagnosed(log: str) -> str:
    found = diagnose_text(log)
    return "" if found is None or found.kind == "harmless" else found.id


BARE = {name: diagnosed(log) for name, log in SAMPLE.items()}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_stands_before_each_line_changes_no_diagnosis(carrier: str) -> None:
    carry = CARRIERS[carrier]
    other = {name: diagnosed(carry(log)) for name, log in SAMPLE.items()}
    assert {name: found for name, found in other.items() if found != BARE[name]} == {}


@pytest.mark.parametrize("carrier", BROKEN)
def test_broken_lines_change_few_diagnoses(carrier: str) -> None:
    carry, floor = BROKEN[carrier]
    same = [name for name, log in SAMPLE.items() if diagnosed(carry(log)) == BARE[name]]
    print(f"{carrier}: {len(same)} of {len(SAMPLE)}")
    assert len(same) >= floor * len(SAMPLE)


def test_the_sample_is_of_failures_and_of_healthy_logs() -> None:
    assert len(SAMPLE) > 100
    assert sum(found == "" for found in BARE.values()) > 10


def test_a_line_that_only_looks_like_that_of_docker_is_kept() -> None:
    for line in ('{"log":"cut in the mid', '{"log":5}', '{"logs":"x"}'):
        assert split_line(line) == [line]


def test_a_margin_that_not_all_lines_share_belongs_to_the_text() -> None:
    lines = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "ValueError: no"]
    assert strip_margin(lines) == lines
    assert strip_margin([]) == []


def test_a_process_that_dies_below_the_longest_line_is_not_joined_to_it() -> None:
    longest = f"(EngineCore_DP0 pid=7) INFO 11-03 10:00:00 [core.py:1] {'config ' * 12}end"
    found = diagnose_text(f"{longest}\nterminate called after throwing an instance of 'x::Error'\n")
    assert found is not None
    assert found.id == "aborted"
    assert found.line_number == 2


def test_a_joined_line_has_the_number_of_its_first_piece() -> None:
    width = 80
    line = f"ERROR 11-03 10:00:00 [core.py:1] {'x' * 40} ValueError: {'y' * 140} end of it"
    pieces = [line[at : at + width] for at in range(0, len(line), width)]
    joined = join_wrapped(["first", *pieces, "last one"])
    assert joined == [(0, "first"), (1, line), (1 + len(pieces), "last one")]
