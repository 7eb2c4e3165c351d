"""Benchmark results for people: the list of runs, and one load compared with earlier runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from raylaunch.bench.comparison import Comparison, Row, difference
from raylaunch.bench.result import METRICS, Run
from raylaunch.cli.output import Style, table

LISTED = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput", "prefix_hit_rate")
"""Keys of the figures in the list of runs."""

LIST_HEADER = (
    "RUN",
    "AT (UTC)",
    "CONCURRENCY",
    "ANSWERED",
    "TTFT",
    "TPOT",
    "OUT TOKENS/S",
    "PREFIX HITS",
    "VLLM",
)

Column = tuple[str, Callable[[Row], float | None]]
"""Heading, and the function that reads the column's value from a row."""


def list_row(run: Run) -> tuple[str, ...]:
    """Return one row of the list of runs."""
    figures = run.figures()
    texts = {metric.key: metric.text(figures[metric.key]) for metric in METRICS}
    requests = run.args.get("num-prompts", "?")
    return (
        run.id,
        _at(run),
        str(run.concurrency or "all"),
        f"{texts['completed']} of {requests}",
        *(texts[key] for key in LISTED),
        run.versions.get("vllm", "-"),
    )


def comparison_lines(comparison: Comparison, style: Style) -> Iterator[str]:
    """Lay out a load's figures side by side, and what else changed since the run before."""
    run = comparison.newest
    load = f"{run.scenario} at concurrency {run.concurrency or 'all'}"
    yield f"{run.deployment}, {load}, {_at(run)} UTC: {run.description}"
    columns = _columns(comparison)
    rows = []
    for row in comparison.rows():
        beside = [_beside(row, value_of(row)) for _, value_of in columns]
        rows.append((row.metric.title, row.metric.text(row.newest), *beside))
    header = ("METRIC", "NOW", *(title for title, _ in columns))
    yield from table(rows, style, header=header, kinds=("name",))
    if run.reference:
        yield f"reference: {run.reference['source']}"
    if comparison.previous and (changes := comparison.changes()):
        yield f"since the run before ({comparison.previous.id}):"
        yield from (f"  {change}" for change in changes)


def _columns(comparison: Comparison) -> list[Column]:
    columns: list[Column] = []
    if comparison.newest.reference:
        columns.append(("REFERENCE", lambda row: row.reference))
    if comparison.previous:
        columns.append(("RUN BEFORE", lambda row: row.previous))
    if len(comparison.earlier) > 1:
        columns.append((f"MEDIAN OF {len(comparison.earlier)}", lambda row: row.median))
    return columns


def _beside(row: Row, value: float | None) -> str:
    """Write another value of the same figure, and by how much the newest differs from it."""
    change = difference(row.newest, value)
    text = row.metric.text(value)
    # A count (requests, tokens) depends on the load, so a percentage would mean nothing.
    if change is None or row.metric.counts:
        return text
    return f"{text}  ({round(change * 100):+d} %)"


def _at(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.at))
