"""The newest run of each load beside its reference and the runs before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raylaunch.bench.result import METRICS, Metric, Run


@dataclass(frozen=True)
class Row:
    """One figure: now, as the reference has it, in the run before, and the median of all earlier runs."""

    metric: Metric
    newest: float | None
    reference: float | None
    previous: float | None
    median: float | None


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
        """The figures that anybody has."""
        now, then = self.newest.figures(), self.previous.figures() if self.previous else {}
        past = [run.figures() for run in self.earlier]
        rows = [
            Row(
                metric,
                now[metric.key],
                self.newest.reference.get(metric.key),
                then.get(metric.key),
                _median([one[metric.key] for one in past]),
            )
            for metric in METRICS
        ]
        return [
            row
            for row in rows
            if any(value is not None for value in (row.newest, row.reference, row.previous))
        ]

    def changes(self) -> list[str]:
        """What else is different from the run before: versions, flags and variables of the servers, the place."""
        if self.previous is None:
            return []
        before, after = _settings(self.previous), _settings(self.newest)
        names = dict.fromkeys((*before, *after))
        return [
            f"{name}: {before.get(name, 'nothing')} → {after.get(name, 'nothing')}"
            for name in names
            if before.get(name) != after.get(name)
        ]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "scenario": self.newest.scenario,
            "concurrency": self.newest.concurrency,
            "newest": self.newest.id,
            "earlier": [run.id for run in self.earlier],
            "reference": self.newest.reference.get("source"),
            "metrics": {
                row.metric.key: {
                    "newest": row.newest,
                    "reference": row.reference,
                    "previous": row.previous,
                    "median": row.median,
                    "to_reference": difference(row.newest, row.reference),
                    "to_previous": difference(row.newest, row.previous),
                    "to_median": difference(row.newest, row.median),
                }
                for row in self.rows()
            },
            "changes": self.changes(),
        }


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """One comparison per load, in the order in which the loads were run last."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.at):
        groups.setdefault(run.load, []).append(run)
    newest_last = sorted(groups.values(), key=lambda group: group[-1].at)
    return [Comparison(group[-1], tuple(group[:-1])) for group in newest_last]


def difference(now: float | None, then: float | None) -> float | None:
    """By how much `now` is more than `then`: 0.1 is 10 % more. None where it cannot be said."""
    return None if now is None or not then else now / then - 1.0


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _settings(run: Run) -> dict[str, str]:
    """What may explain a difference. Addresses and ports do not count as settings of a server, its node does."""
    primary = run.plan["servers"][0]
    flags = {
        flag["name"]: flag["value"] or "on"
        for flag in primary["flags"]
        if flag["name"] not in _PLACES
    }
    env = {
        name: str(value["value"]) for name, value in primary["env"].items() if name not in _PLACES
    }
    return {**dict(_versions(run.versions)), "node": run.node, "recipe": run.recipe, **flags, **env}


def _versions(versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, str(version)) for name, version in versions.items())


_PLACES = frozenset(
    {"", "--host", "--port", "--data-parallel-address", "--data-parallel-rpc-port", "PYTHONPATH"}
    | {"HCCL_IF_IP", "VLLM_HOST_IP", "HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"}
)
