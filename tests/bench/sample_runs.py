"""Builds plans and runs for the tests of the benchmark's pure part."""

from __future__ import annotations

from raylaunch.bench.result import Run
from raylaunch.bench.scenario import choose
from raylaunch.plan.facts import Facts
from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.plan.planner import plan_group
from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups

REAL = {
    "backend": "vllm",
    "num_prompts": 16,
    "completed": 16,
    "failed": 0,
    "duration": 463.2,
    "mean_ttft_ms": 3400.0,
    "median_ttft_ms": 3300.0,
    "p99_ttft_ms": 9000.0,
    "mean_tpot_ms": 110.0,
    "p99_tpot_ms": 120.0,
    "mean_itl_ms": 110.0,
    "request_throughput": 0.03,
    "output_throughput": 35.0,
    "total_token_throughput": 6800.0,
}
"""Keys as vLLM 0.32 writes them."""


def plan_of(recipe: str = "a2-dual", *sets: str):
    loaded = read(recipe, sets)
    nodes = [
        Facts(f"192.0.2.{10 + number}", interface="enp67s0f0np0")
        for number in range(loaded.recipe.parallel.servers)
    ]
    return loaded, plan_group(expand_groups(loaded)[0], nodes)


def run_of(
    at: float = 0.0,
    *,
    recipe="a2-dual",
    scenario=None,
    concurrency=None,
    sets=(),
    changes=(),
    **more,
) -> Run:
    """A run as it is stored; `more` replaces vLLM's figures."""
    loaded, plan = plan_of(recipe, *sets)
    load = choose(scenario, loaded.recipe.bench).changed(dict(changes))
    load = load.at(concurrency) if concurrency else load
    return Run(
        id=f"run-{at:g}",
        deployment=loaded.name,
        recipe=loaded.name,
        scenario=load.name,
        description=load.description,
        args=dict(load.args),
        seed=load.seed,
        concurrency=load.concurrency,
        at=at,
        seconds=60.0,
        attempt=1,
        node="192.0.2.10",
        niceness=0,
        command=("vllm", "bench", "serve"),
        versions={"vllm": "0.23.0"},
        plan=plan_to_dict(plan),
        result={**REAL, **more},
        prefix_hit_rate=0.8,
        reference=dict(load.reference),
    )
