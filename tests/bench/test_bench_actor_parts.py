"""How the bench actor reads processes, logs and counters; without Ray."""

from __future__ import annotations

import json

import pytest

from raylaunch.node.process.server_process import ProcessState
from raylaunch.runtime.bench.bench_actor import (
    TAIL_BYTES,
    CacheCounters,
    _exit_problem,
    _hit_rate,
    _read_end,
    _take_result,
)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (ProcessState(exit_code=0), ""),
        (ProcessState(exit_code=2), "exit code 2"),
        (ProcessState(exit_signal=9), "signal 9"),
        (ProcessState(guard_lost=True), "its guard died"),
        (ProcessState(error="no such file"), "no such file"),
    ],
)
def test_why_it_measured_nothing(state, problem):
    assert _exit_problem(state) == problem


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        (CacheCounters(100, 50), CacheCounters(300, 200), 0.75),
        (CacheCounters(0, 0), CacheCounters(0, 0), None),
        (None, CacheCounters(300, 200), None),
        (CacheCounters(100, 50), None, None),
        (CacheCounters(300, 200), CacheCounters(10, 5), None),
    ],
)
def test_the_hit_rate_covers_only_the_time_of_the_run(before, after, rate):
    assert _hit_rate(before, after) == rate


def test_the_end_of_a_long_output_is_read_with_its_unfinished_line(tmp_path):
    log = tmp_path / "bench-1.log"
    assert _read_end(log) == ""
    log.write_text("x" * 3 * TAIL_BYTES + "\r 50%|##   | 8/16 [00:01<00:01")
    assert _read_end(log).endswith("8/16 [00:01<00:01")
    assert len(_read_end(log)) == TAIL_BYTES


def test_a_result_is_taken_once(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"completed": 3}))
    assert _take_result(path) == {"completed": 3}
    assert not path.exists()
    assert _take_result(path) is None
    path.write_text("[half")
    assert _take_result(path) is None
