"""The gate of an upgrade: a benchmark of a new group that must not be worse than one of before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raylaunch.bench.result import METRICS, Run
from raylaunch.bench.scenario import Scenario
from raylaunch.errors import RecipeError

LATENCIES = ("mean_ttft_ms", "mean_tpot_ms")
THROUGHPUT = "output_throughput"
_FORM = re.compile(r"(?P<scenario>[^:]+):\+(?P<percent>\d+(\.\d+)?)%?")


@dataclass(frozen=True)
class Gate:
    """`allowed`: how much worse a figure may be, as a fraction of what was measured before."""

    scenario: str
    allowed: float

    @property
    def percent(self) -> str:
        """The fraction for people: "5 %"."""
        return f"{100 * self.allowed:g} %"


def parse_gate(text: str) -> Gate:
    """Parse "SCENARIO:+PERCENT%".

    Raises:
        RecipeError: It has another form.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise RecipeError(
            f"--gate {text!r} is not SCENARIO:+PERCENT%", todo="write for example --gate small:+5%"
        )
    return Gate(match["scenario"], float(match["percent"]) / 100)


def find_base(
    runs: Iterable[Run], scenario: Scenario, created_at: Mapping[str, float]
) -> Run | None:
    """Return the newest run of a scenario on a group that serves now; None without one.

    Args:
        runs: Kept runs of the deployment.
        scenario: With its own flags and concurrency.
        created_at: When each group that serves was created, in seconds since the epoch. An earlier
            run measured another group of that name.
    """
    wanted = _without_seed(scenario.args)
    fitting = [
        run
        for run in runs
        if run.scenario == scenario.name
        and _without_seed(run.args) == wanted
        and run.at >= created_at.get(str(run.plan.get("group")), float("inf"))
    ]
    return max(fitting, key=lambda run: run.at, default=None)


def _without_seed(args: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in args.items() if name != "seed"}


def gate_problems(gate: Gate, base: Run, new: Run) -> list[str]:
    """Return what is worse in `new` than the gate allows, a sentence each."""
    before, after = base.figures(), new.figures()
    problems = []
    if failed := after["failed"]:
        problems.append(f"{failed:.0f} requests of the benchmark failed")
    for metric in METRICS:
        old, now = before[metric.key], after[metric.key]
        if metric.key not in (*LATENCIES, THROUGHPUT) or not old:
            continue
        if now is None or _is_worse(metric.key, old, now, gate.allowed):
            shown = f"{metric.title} {metric.text(now)} instead of {metric.text(old)}"
            problems.append(f"{shown}, and {gate.percent} are allowed")
    return problems


def _is_worse(key: str, old: float, now: float, allowed: float) -> bool:
    if key == THROUGHPUT:
        return now < old * (1 - allowed)
    return now > old * (1 + allowed)
