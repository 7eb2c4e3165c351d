"""The record of one benchmark run, as it is stored in a file, and the figures in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylaunch.bench.scenario import Scenario

SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """A figure of a result. `key` is vLLM's name for it."""

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    scale: float = 1.0
    """Factor from the stored value to the displayed one."""
    counts: bool = False
    """A number of requests: a percentage of change would mean nothing."""

    def text(self, value: float | None) -> str:
        """Format the value with its unit; "-" for None."""
        if value is None:
            return "-"
        scaled = value * self.scale
        number = f"{scaled:.{self.digits}f}"
        return f"{number} {self.unit}".rstrip()


METRICS = (
    Metric("completed", "requests answered", digits=0, counts=True),
    Metric("failed", "requests failed", digits=0, counts=True),
    Metric("mean_ttft_ms", "TTFT mean", "ms"),
    Metric("median_ttft_ms", "TTFT median", "ms"),
    Metric("p99_ttft_ms", "TTFT p99", "ms"),
    Metric("mean_tpot_ms", "TPOT mean", "ms", digits=2),
    Metric("p99_tpot_ms", "TPOT p99", "ms", digits=2),
    Metric("mean_itl_ms", "ITL mean", "ms", digits=2),
    Metric("request_throughput", "requests/s", digits=2),
    Metric("output_throughput", "output tokens/s", digits=2),
    Metric("total_token_throughput", "all tokens/s", digits=2),
    Metric("prefix_hit_rate", "prefix hits", "%", digits=0, scale=100.0),
)
"""In the order of the tables. All but the last are fields of vLLM's result file (0.23 to 0.32)."""

_REQUEST_COUNTS = frozenset({"seed", "max-concurrency", "num-prompts"})
"""Flags that change how many requests are sent, but not what one request looks like."""
_SEED_ONLY = frozenset({"seed"})


@dataclass(frozen=True)
class Run:
    """A benchmark run with everything that its figures depend on."""

    id: str
    deployment: str
    recipe: str
    scenario: str
    description: str
    args: Mapping[str, Any]
    """Flags of the scenario as used in this run, except the seed."""
    seed: int
    """Incremented with each run on the same servers: their prefix cache keeps earlier prompts."""
    concurrency: int | None
    at: float
    """Start, in seconds since the epoch, by the clock of the machine that ran the command."""
    seconds: float
    """Duration."""
    attempt: int
    """Launch attempt of the deployment that served the requests."""
    node: str
    niceness: int | None
    """Niceness of the client process; Ray starts its workers at 15."""
    command: tuple[str, ...]
    versions: Mapping[str, str]
    plan: Mapping[str, Any]
    """`plan_to_dict` of the plan that was running."""
    result: Mapping[str, Any]
    """vLLM's result file, unchanged."""
    prefix_hit_rate: float | None = None
    """Prefix cache hits divided by queries, in tokens, over all ranks (`/metrics`)."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def shape(self) -> tuple[Any, ...]:
        """The key of runs that share one curve: everything but the number of requests."""
        return (self.scenario, *self._sorted_args(_REQUEST_COUNTS))

    @property
    def load(self) -> tuple[Any, ...]:
        """The key of runs that are comparable: the same scenario, concurrency and flags."""
        args = self._sorted_args(_SEED_ONLY)
        return (self.scenario, self.concurrency, tuple(args))

    def figures(self) -> dict[str, float | None]:
        """Return the figures by metric; None where this version of vLLM does not report one."""
        return {metric.key: self._figure(metric.key) for metric in METRICS}

    def _sorted_args(self, excluded: frozenset[str]) -> list[tuple[str, str]]:
        # As text: values may be lists or mappings, which have no hash and no order.
        names = sorted(self.args.keys() - excluded)
        return [(name, str(self.args[name])) for name in names]

    def _figure(self, key: str) -> float | None:
        if key == "prefix_hit_rate":
            return self.prefix_hit_rate
        # Older versions of vLLM do not count failures.
        if key == "failed" and "failed" not in self.result:
            sent = float(self.result.get("num_prompts", 0))
            completed = float(self.result.get("completed", 0))
            return sent - completed
        value = self.result.get(key)
        if isinstance(value, int | float):
            return float(value)
        return None


def run_id(at: str, scenario: Scenario) -> str:
    """Return the name of a run and of its file: time, scenario, concurrency."""
    concurrency = scenario.concurrency or "max"
    return f"{at}-{scenario.name}-c{concurrency}"


def run_to_dict(run: Run) -> dict[str, Any]:
    """Return the run as JSON values, with its figures beside the raw result."""
    return {**dataclasses.asdict(run), "figures": run.figures()}


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """Rebuild a run from its JSON values.

    Raises:
        ValueError: it was written with another schema.
        KeyError: it has no command line.
        TypeError: another field is missing.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')} is not {SCHEMA}")
    # "figures" is derived: it and unknown fields are dropped.
    known = {each.name for each in dataclasses.fields(Run)}
    values = {name: data[name] for name in known & data.keys()}
    # JSON has no tuples.
    values["command"] = tuple(values["command"])
    return Run(**values)
