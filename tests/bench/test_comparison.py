"""Comparison of runs: which are comparable, by how much they differ, and what else changed."""

from __future__ import annotations

import json

import pytest
from sample_runs import run_of

from raylaunch.bench.comparison import compare, difference
from raylaunch.bench.result import run_from_dict, run_to_dict
from raylaunch.plan.plan_json import plan_from_dict


def by_key(comparison):
    return {row.metric.key: row for row in comparison.rows()}


def test_a_run_round_trips_through_its_file():
    run = run_of(5.0)
    written = json.loads(json.dumps(run_to_dict(run)))
    assert run_from_dict(written) == run
    assert written["figures"]["output_throughput"] == 35.0
    assert plan_from_dict(written["plan"]).deployment == "a2-dual"
    with pytest.raises(ValueError, match="schema 2"):
        run_from_dict({**written, "schema": 2})


def test_the_newest_beside_reference_previous_and_median():
    runs = [
        run_of(at, mean_ttft_ms=value)
        for at, value in ((3, 3000.0), (1, 1000.0), (2, 2000.0), (4, 4000.0))
    ]
    (one,) = compare(runs)
    row = by_key(one)["mean_ttft_ms"]
    assert (row.newest, row.reference, row.previous, row.median) == (
        4000.0,
        3305.25,
        3000.0,
        2000.0,
    )
    written = one.as_dict()
    assert written["newest"] == "run-4"
    assert written["earlier"] == ["run-1", "run-2", "run-3"]
    assert written["metrics"]["mean_ttft_ms"]["to_previous"] == pytest.approx(1 / 3)
    assert by_key(one)["prefix_hit_rate"].reference == 0.85


def test_other_loads_are_not_compared():
    runs = [
        run_of(1),
        run_of(2, concurrency=8),
        run_of(3, changes={"num-prompts": 32}),
        run_of(4, scenario="short"),
    ]
    assert [one.earlier for one in compare(runs)] == [(), (), (), ()]
    seeded = run_of(5)
    assert len(compare([run_of(1), seeded])) == 1, "another seed is the same load"


def test_what_else_changed_is_named():
    before, after = run_of(1), run_of(2, sets=("args.max-num-seqs=64", "env.HCCL_BUFFSIZE=512"))
    (one,) = compare([before, after])
    assert one.changes() == ["--max-num-seqs: 128 → 64", "HCCL_BUFFSIZE: 1024 → 512"]
    assert compare([before, run_of(2)])[0].changes() == []
    assert compare([before])[0].changes() == []


def test_other_ports_are_not_listed_as_a_change():
    moved = run_of(2, sets=("network.http_port=1234", "network.rpc_port=1235"))
    assert compare([run_of(1), moved])[0].changes() == []


def test_an_older_vllm_does_not_count_failures():
    old = run_of(1)
    result = {name: value for name, value in old.result.items() if name != "failed"} | {
        "completed": 14
    }
    assert run_from_dict({**run_to_dict(old), "result": result}).figures()["failed"] == 2


@pytest.mark.parametrize(
    ("now", "then", "change"), [(110, 100, 0.1), (1, 0, None), (None, 1, None), (1, None, None)]
)
def test_a_difference_is_relative_to_the_earlier_value(now, then, change):
    assert difference(now, then) == (None if change is None else pytest.approx(change))
