"""The gate of an upgrade: which run it compares with, and what counts as worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.bench.gate import Gate, find_base, gate_problems, parse_gate
from raylaunch.bench.result import Run
from raylaunch.bench.scenario import choose
from raylaunch.errors import RecipeError

SCENARIO = choose("small", ())
FIGURES = {
    "completed": 32,
    "failed": 0,
    "mean_ttft_ms": 100.0,
    "mean_tpot_ms": 10.0,
    "output_throughput": 200.0,
}


def run_of(group: str = "serve-0", at: float = 100.0, **figures: float) -> Run:
    return Run(
        id=f"run-{at:g}",
        deployment="prod",
        recipe="a2-replicas",
        scenario=SCENARIO.name,
        description="",
        args=dict(SCENARIO.args),
        seed=1,
        concurrency=SCENARIO.concurrency,
        at=at,
        seconds=9.0,
        attempt=1,
        node="192.0.2.10",
        niceness=0,
        command=(),
        versions={},
        plan={"group": group},
        result={**FIGURES, **figures},
    )


@pytest.mark.parametrize("text", ["small:+5%", "small:+5", " small:+5.0% "])
def test_a_gate_is_a_scenario_and_a_percentage(text):
    assert parse_gate(text) == Gate("small", 0.05)


@pytest.mark.parametrize("text", ["small", "small:5%", ":+5%", "small:+x%", "small:-5%"])
def test_another_form_is_refused(text):
    with pytest.raises(RecipeError, match="SCENARIO"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("figures", "worse"),
    [
        ({}, []),
        ({"mean_ttft_ms": 104.9, "mean_tpot_ms": 10.4, "output_throughput": 191.0}, []),
        ({"mean_ttft_ms": 50.0, "output_throughput": 900.0}, []),
        ({"mean_ttft_ms": 105.1}, ["TTFT mean 105.1 ms instead of 100.0 ms"]),
        ({"mean_tpot_ms": 11.0}, ["TPOT mean 11.00 ms instead of 10.00 ms"]),
        ({"output_throughput": 189.0}, ["output tokens/s 189.00 instead of 200.00"]),
        ({"failed": 2}, ["2 requests of the benchmark failed"]),
    ],
)
def test_latencies_may_rise_and_throughput_may_fall_by_the_percentage(figures, worse):
    found = gate_problems(parse_gate("small:+5%"), run_of(), run_of("serve-0.g2", **figures))
    assert [problem.partition(",")[0] for problem in found] == worse


def test_the_base_is_the_newest_run_of_a_group_that_serves_now():
    runs = [run_of(at=100), run_of(at=200), run_of("serve-0.g2", at=300), run_of(at=50)]
    base = find_base(runs, SCENARIO, {"serve-0": 60.0, "serve-1": 60.0})
    assert base is not None
    assert base.at == 200


def test_runs_of_an_earlier_group_or_of_another_load_are_no_base():
    other = replace(run_of(at=300), args={**SCENARIO.args, "num-prompts": 8})
    assert find_base([run_of(at=100), other], SCENARIO, {"serve-0": 150.0}) is None
