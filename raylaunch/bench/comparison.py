"""Compares the newest run of each load with its reference and with earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raylaunch.bench.result import METRICS, Metric, Run


@dataclass(frozen=True)
class Row:
    """One metric: the newest value, the reference, the previous run, the median of earlier runs."""

    metric: Metric
    newest: float | None
    reference: float | None
    previous: float | None
    median: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return the values and the relative differences as JSON values."""
        return {
            "newest": self.newest,
            "reference": self.reference,
            "previous": self.previous,
            "median": self.median,
            "to_reference": difference(self.newest, self.reference),
            "to_previous": difference(self.newest, self.previous),
            "to_median": difference(self.newest, self.median),
        }


@dataclass(frozen=True)
class Comparison:
    """All runs of one load, at one concurrency."""

    newest: Run
    earlier: tuple[Run, ...]
    """Oldest first."""

    @property
    def previous(self) -> Run | None:
        """The run before the newest."""
        return self.earlier[-1] if self.earlier else None

    def rows(self) -> list[Row]:
        """Return the metrics that the newest run, the previous run or the reference has."""
        newest = self.newest.figures()
        earlier = [run.figures() for run in self.earlier]
        rows = []
        for metric in METRICS:
            key = metric.key
            past = [figures[key] for figures in earlier]
            row = Row(
                metric=metric,
                newest=newest[key],
                reference=self.newest.reference.get(key),
                previous=past[-1] if past else None,
                median=_median(past),
            )
            if (row.newest, row.reference, row.previous) != (None, None, None):
                rows.append(row)
        return rows

    def changes(self) -> list[str]:
        """List other differences from the previous run: versions, node, server flags, variables."""
        if self.previous is None:
            return []
        before = _settings(self.previous)
        after = _settings(self.newest)
        changes = []
        for name in dict.fromkeys((*before, *after)):
            old = before.get(name, "nothing")
            new = after.get(name, "nothing")
            if old != new:
                changes.append(f"{name}: {old} → {new}")
        return changes

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "scenario": self.newest.scenario,
            "concurrency": self.newest.concurrency,
            "newest": self.newest.id,
            "earlier": [run.id for run in self.earlier],
            "reference": self.newest.reference.get("source"),
            "metrics": {row.metric.key: row.as_dict() for row in self.rows()},
            "changes": self.changes(),
        }


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Return one comparison per load; the load that was run last comes last."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.at):
        groups.setdefault(run.load, []).append(run)
    comparisons = []
    for *earlier, newest in groups.values():
        comparisons.append(Comparison(newest, tuple(earlier)))
    return sorted(comparisons, key=lambda comparison: comparison.newest.at)


def difference(now: float | None, then: float | None) -> float | None:
    """Return the relative difference of `now` from `then`: 0.1 is 10 % more.

    None if a value is missing or `then` is 0.
    """
    if now is None or not then:
        return None
    return now / then - 1.0


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return median(known)


def _settings(run: Run) -> dict[str, str]:
    """Return what may explain a difference: versions, node, recipe, the primary's flags and env."""
    primary = run.plan["servers"][0]
    settings = {name: str(version) for name, version in run.versions.items()}
    settings["node"] = run.node
    settings["recipe"] = run.recipe
    for flag in primary["flags"]:
        if flag["name"] not in _ADDRESSES:
            settings[flag["name"]] = flag["value"] or "on"
    for name, value in primary["env"].items():
        if name not in _ADDRESSES:
            settings[name] = str(value["value"])
    return settings


_ADDRESSES = frozenset(
    {
        "",
        "--host",
        "--port",
        "--data-parallel-address",
        "--data-parallel-rpc-port",
        "PYTHONPATH",
        "HCCL_IF_IP",
        "VLLM_HOST_IP",
        "HCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "TP_SOCKET_IFNAME",
    }
)
"""Flags and variables that name a place: paths, addresses, ports, interfaces. "" is the model path.

They change with every launch and explain no difference; the node is compared instead.
"""
