"""One benchmark that was run, as it is kept in a file, and the figures in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylaunch.bench.scenario import Scenario

SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """A figure of a result, by vLLM's name for it."""

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    scale: float = 1.0
    """From the kept value to the shown one."""
    counts: bool = False
    """A number of requests: nothing to be faster or slower by."""

    def text(self, value: float | None) -> str:
        """The value with its unit."""
        if value is None:
            return "-"
        shown = f"{value * self.scale:.{self.digits}f}"
        return f"{shown} {self.unit}".rstrip()


METRICS = (
    Metric("completed", "requests answered", digits=0, counts=True),
    Metric("failed", "requests failed", digits=0, counts=True),
    Metric("mean_ttft_ms", "TTFT mean", "ms"),
    Metric("median_ttft_ms", "TTFT median", "ms"),
    Metric("p99_ttft_ms", "TTFT p99", "ms"),
    Metric("mean_tpot_ms", "TPOT mean", "ms", 2),
    Metric("p99_tpot_ms", "TPOT p99", "ms", 2),
    Metric("mean_itl_ms", "ITL mean", "ms", 2),
    Metric("request_throughput", "requests/s", digits=2),
    Metric("output_throughput", "output tokens/s", digits=2),
    Metric("total_token_throughput", "all tokens/s", digits=2),
    Metric("prefix_hit_rate", "prefix hits", "%", 0, 100.0),
)
"""In the order of the tables. All but the last are fields of vLLM's result file (0.23 to 0.32)."""


@dataclass(frozen=True)
class Run:
    """A benchmark with everything that it depended on. `at`: seconds since the epoch on the machine of the command."""

    id: str
    deployment: str
    recipe: str
    scenario: str
    description: str
    args: Mapping[str, Any]
    """Flags of the scenario as they were run, but for the seed."""
    seed: int
    """Counted up from the scenario's for every run on the same servers, for the prefix cache remembers prompts."""
    concurrency: int | None
    at: float
    seconds: float
    attempt: int
    node: str
    niceness: int | None
    command: tuple[str, ...]
    versions: Mapping[str, str]
    plan: Mapping[str, Any]
    """`plan_to_dict` of what was running."""
    result: Mapping[str, Any]
    """vLLM's own, unchanged."""
    prefix_hit_rate: float | None = None
    """Prefix cache hits by queries, in tokens, over all ranks while it ran (`/metrics`)."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be equal for two runs to be drawn on one line: all but how many requests, and how many at once."""
        counts = ("seed", "max-concurrency", "num-prompts")
        return (
            self.scenario,
            *sorted((name, str(value)) for name, value in self.args.items() if name not in counts),
        )

    @property
    def load(self) -> tuple[Any, ...]:
        """What must be equal for two runs to be comparable."""
        ordered = sorted((name, str(value)) for name, value in self.args.items() if name != "seed")
        return (self.scenario, self.concurrency, tuple(ordered))

    def figures(self) -> dict[str, float | None]:
        """The figures by metric; None for what this version of vLLM does not tell."""
        return {metric.key: self._figure(metric.key) for metric in METRICS}

    def _figure(self, key: str) -> float | None:
        if key == "prefix_hit_rate":
            return self.prefix_hit_rate
        if key == "failed" and "failed" not in self.result:  # not in older versions
            return float(self.result.get("num_prompts", 0)) - float(self.result.get("completed", 0))
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) else None


def run_id(at: str, scenario: Scenario) -> str:
    """Name of a run, and of its file: time, scenario, concurrency."""
    return f"{at}-{scenario.name}-c{scenario.concurrency or 'max'}"


def run_to_dict(run: Run) -> dict[str, Any]:
    """The run as JSON values, with its figures beside the raw result they are taken from."""
    return {**dataclasses.asdict(run), "figures": run.figures()}


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """Rebuild a run.

    Raises:
        ValueError: it was written by another schema.
        TypeError: a part is missing.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')} is not {SCHEMA}")
    known = {each.name for each in dataclasses.fields(Run)}
    parts = {name: value for name, value in data.items() if name in known}
    return Run(**{**parts, "command": tuple(parts["command"])})
