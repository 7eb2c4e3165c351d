"""Charts of one scenario: TTFT, TPOT and throughput over concurrency or over runs.

Drawing needs matplotlib, which raylaunch does not install. It is imported only to draw.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

from raylaunch.bench.result import METRICS, Metric, Run
from raylaunch.errors import RaylaunchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".html")
KEYS = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")

_NEWEST_COLOUR = "#1f77b4"
_EARLIER_COLOUR = "#9db8cc"
_REFERENCE_COLOUR = "#c0504d"
_WIDTH_INCHES = 11
_HEIGHT_INCHES = 3.8
_HEADROOM = 1.15
"""Upper end of the y axis, as a multiple of the highest value."""

Point = tuple[float, float]
"""Position on the x axis, and value."""


@dataclass(frozen=True)
class Panel:
    """The chart of one metric.

    `newest` has the newest value of each position, `earlier` the older ones at the same positions.
    """

    title: str
    newest: tuple[Point, ...]
    earlier: tuple[Point, ...]
    reference: Point | None


@dataclass(frozen=True)
class Figure:
    """A row of panels with one x axis.

    The axis is the concurrency if the runs have at least two different ones, else the runs in
    order.
    """

    title: str
    axis: str
    ticks: tuple[tuple[float, str], ...]
    panels: tuple[Panel, ...]
    source: str = ""
    """Source of the reference values."""


def require_drawing(path: str) -> None:
    """Refuse a chart that could not be drawn, before the benchmark runs.

    Raises:
        RaylaunchError: the file name has an unknown suffix, or matplotlib is not installed.
    """
    if not path.lower().endswith(SUFFIXES):
        raise RaylaunchError(
            f"no picture can be written to {path}: unknown format",
            todo=f"use a file name that ends in one of {', '.join(SUFFIXES)}",
        )
    if find_spec("matplotlib") is None:
        raise RaylaunchError(
            "a picture needs matplotlib, which is not installed",
            todo="pip install 'raylaunch[pictures]' where this command runs; nodes do not need it",
        )


def make_figure(runs: Sequence[Run]) -> Figure:
    """Lay out the runs that have the scenario and flags of the newest one.

    Raises:
        RaylaunchError: there are no runs.
    """
    if not runs:
        raise RaylaunchError("there is no run to draw", todo="`raylaunch bench NAME` makes one")
    ordered = sorted(runs, key=lambda run: run.at)
    newest = ordered[-1]
    shown = [run for run in ordered if run.shape == newest.shape]
    title = f"{newest.deployment}, scenario {newest.scenario}"
    source = _newest_source(shown)
    # 0 stands for "all requests at once".
    concurrencies = sorted({run.concurrency or 0 for run in shown})
    if len(concurrencies) > 1:
        return Figure(
            title=title,
            axis="concurrency",
            ticks=tuple(_concurrency_tick(count) for count in concurrencies),
            panels=tuple(_over_concurrency(shown, key) for key in KEYS),
            source=source,
        )
    return Figure(
        title=f"{title}, concurrency {concurrencies[0] or 'all'}",
        axis="run (UTC)",
        ticks=tuple(_run_tick(number, run) for number, run in enumerate(shown, 1)),
        panels=tuple(_over_runs(shown, key) for key in KEYS),
        source=source,
    )


def draw(figure: Figure, form: str) -> bytes:
    """Draw the figure as "png" or "svg" (`form`) and return the file's content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as MatplotlibFigure

    picture = MatplotlibFigure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), layout="constrained")
    picture.suptitle(figure.title)
    axes_row = picture.subplots(1, len(figure.panels), squeeze=False)[0]
    for axes, panel in zip(axes_row, figure.panels, strict=True):
        _draw_panel(axes, figure, panel)
    if figure.source:
        picture.supxlabel(f"reference: {figure.source}", fontsize=8, color=_REFERENCE_COLOUR)
    # An explicit canvas: pyplot would keep global state and choose its backend by the environment.
    canvas = FigureCanvasSVG if form == "svg" else FigureCanvasAgg
    canvas(picture)
    data = io.BytesIO()
    picture.savefig(data, format=form)
    return data.getvalue()


def page(figure: Figure, svg: str, runs: Sequence[Run]) -> str:
    """Return an HTML page with the chart and a table of all figures; it loads nothing else."""
    # The XML declaration and doctype before <svg> are not valid inside HTML.
    drawing = svg[svg.index("<svg") :]
    title = html.escape(figure.title)
    table = "\n".join(_table(runs))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>{_CSS}</style></head><body>
<h1>{title}</h1>
{drawing}
<div class="scroll"><table>
{table}
</table></div>
</body></html>
"""


_CSS = """
body {
  font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222;
}
svg { width: 100%; height: auto; }
table { border-collapse: collapse; }
th, td {
  padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap;
}
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
"""


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the rows of the HTML table, newest run first and the reference last."""
    metrics = [metric for metric in METRICS if _is_measured(metric, runs)]
    titles = [metric.title for metric in metrics]
    yield _table_row("th", ["run", "concurrency", *titles, "vllm"])
    for run in sorted(runs, key=lambda run: run.at, reverse=True):
        figures = run.figures()
        values = [metric.text(figures[metric.key]) for metric in metrics]
        concurrency = str(run.concurrency or "all")
        version = str(run.versions.get("vllm", "-"))
        yield _table_row("td", [run.id, concurrency, *values, version])
    with_reference = [run for run in runs if run.reference]
    if with_reference:
        newest = with_reference[-1]
        reference = newest.reference
        source = f"reference: {reference['source']}"
        values = [metric.text(reference.get(metric.key)) for metric in metrics]
        concurrency = str(newest.concurrency)
        yield _table_row("td", [source, concurrency, *values, "-"])


def _is_measured(metric: Metric, runs: Sequence[Run]) -> bool:
    return any(run.figures()[metric.key] is not None for run in runs)


def _table_row(tag: str, cells: Sequence[str]) -> str:
    row = ""
    for cell in cells:
        text = html.escape(cell)
        row += f"<{tag}>{text}</{tag}>"
    return f"<tr>{row}</tr>"


def _newest_source(runs: Sequence[Run]) -> str:
    for run in reversed(runs):
        if "source" in run.reference:
            return str(run.reference["source"])
    return ""


def _over_concurrency(runs: Sequence[Run], key: str) -> Panel:
    """Lay out one metric over concurrency; `runs` are ordered by time."""
    newest: dict[float, float] = {}
    earlier: list[Point] = []
    reference: Point | None = None
    for run in runs:
        position = float(run.concurrency or 0)
        value = run.figures()[key]
        if value is not None:
            if position in newest:
                earlier.append((position, newest[position]))
            newest[position] = value
        if key in run.reference:
            reference = (position, float(run.reference[key]))
    return Panel(
        title=_title(key),
        newest=tuple(sorted(newest.items())),
        earlier=tuple(earlier),
        reference=reference,
    )


def _over_runs(runs: Sequence[Run], key: str) -> Panel:
    """Lay out one metric over the runs, which are ordered by time."""
    points: list[Point] = []
    reference: Point | None = None
    last_position = float(len(runs))
    for number, run in enumerate(runs, 1):
        value = run.figures()[key]
        if value is not None:
            points.append((float(number), value))
        if key in run.reference:
            reference = (last_position, float(run.reference[key]))
    return Panel(title=_title(key), newest=tuple(points), earlier=(), reference=reference)


def _title(key: str) -> str:
    metric = next(metric for metric in METRICS if metric.key == key)
    if not metric.unit:
        return metric.title
    return f"{metric.title}, {metric.unit}"


def _concurrency_tick(count: int) -> tuple[float, str]:
    return float(count), str(count or "all")


def _run_tick(number: int, run: Run) -> tuple[float, str]:
    started = datetime.fromtimestamp(run.at, UTC)
    return float(number), started.strftime("%m-%d\n%H:%M")


def _draw_panel(axes: Axes, figure: Figure, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.plot(*_columns(panel.newest), marker="o", color=_NEWEST_COLOUR)
    if panel.earlier:
        axes.plot(
            *_columns(panel.earlier),
            marker="o",
            linestyle="",
            color=_EARLIER_COLOUR,
            label="earlier runs",
        )
    if panel.reference:
        _draw_reference(axes, panel.reference, as_point=figure.axis == "concurrency")
    if panel.earlier or panel.reference:
        axes.legend(fontsize=8)
    positions = [position for position, _ in figure.ticks]
    labels = [label for _, label in figure.ticks]
    axes.set_xticks(positions, labels, fontsize=8)
    axes.set_xlabel(figure.axis, fontsize=9)
    axes.set_ylim(0, _upper_limit(panel))
    axes.grid(visible=True, alpha=0.3)


def _draw_reference(axes: Axes, reference: Point, *, as_point: bool) -> None:
    """Draw a point at its concurrency, or a line across all runs."""
    position, value = reference
    if as_point:
        axes.plot(
            [position],
            [value],
            marker="D",
            linestyle="",
            color=_REFERENCE_COLOUR,
            label="reference",
        )
    else:
        axes.axhline(value, linestyle="--", color=_REFERENCE_COLOUR, label="reference")


def _upper_limit(panel: Panel) -> float:
    points = [*panel.newest, *panel.earlier]
    if panel.reference:
        points.append(panel.reference)
    highest = max((value for _, value in points), default=0.0)
    # An axis from 0 to 0 makes matplotlib warn and choose limits of its own.
    return _HEADROOM * highest if highest > 0 else 1.0


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    positions = [position for position, _ in points]
    values = [value for _, value in points]
    return positions, values
