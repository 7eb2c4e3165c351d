"""TTFT, TPOT and throughput of one scenario, over concurrency or over runs: what to draw, and drawing it.

Drawing needs matplotlib, which raylaunch does not install: it is loaded here, when a picture is asked for.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from raylaunch.bench.result import METRICS, Run
from raylaunch.errors import RaylaunchError

SUFFIXES = (".png", ".svg", ".html")
KEYS = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
_NEWEST, _EARLIER, _REFERENCE = "#1f77b4", "#9db8cc", "#c0504d"


@dataclass(frozen=True)
class Panel:
    """One metric: the newest value at each place of the axis, the earlier ones there, and the reference."""

    title: str
    newest: tuple[tuple[float, float], ...]
    earlier: tuple[tuple[float, float], ...]
    reference: tuple[float, float] | None


@dataclass(frozen=True)
class Figure:
    """What to draw. The axis is concurrency as soon as there are two different ones, else the runs in their order."""

    title: str
    axis: str
    ticks: tuple[tuple[float, str], ...]
    panels: tuple[Panel, ...]
    source: str = ""
    """Of the reference."""


def require_drawing(path: str) -> None:
    """Refuse a picture before the work is done rather than after.

    Raises:
        RaylaunchError: the name says no known form, or matplotlib is missing.
    """
    if not path.lower().endswith(SUFFIXES):
        raise RaylaunchError(
            f"no picture can be written to {path}",
            todo=f"let its name end in {', '.join(SUFFIXES)}",
        )
    if find_spec("matplotlib") is None:
        raise RaylaunchError(
            "a picture needs matplotlib, which is not installed",
            todo="pip install 'raylaunch[pictures]' where this command runs; nodes do not need it",
        )


def make_figure(runs: Sequence[Run]) -> Figure:
    """Lay out the runs of the newest one's scenario, as far as its flags are the same.

    Raises:
        RaylaunchError: there are no runs.
    """
    if not runs:
        raise RaylaunchError("there is no run to draw", todo="`raylaunch bench NAME` makes one")
    ordered = sorted(runs, key=lambda run: run.at)
    shown = [run for run in ordered if run.shape == ordered[-1].shape]
    title = f"{shown[-1].deployment}, scenario {shown[-1].scenario}"
    counts = sorted({run.concurrency or 0 for run in shown})
    source = next(
        (str(run.reference["source"]) for run in reversed(shown) if "source" in run.reference), ""
    )
    if len(counts) > 1:
        ticks = tuple((float(count), str(count or "all")) for count in counts)
        panels = tuple(_over_concurrency(shown, key) for key in KEYS)
        return Figure(title, "concurrency", ticks, panels, source)
    ticks = tuple((float(number), _tick(run)) for number, run in enumerate(shown, 1))
    title = f"{title}, concurrency {counts[0] or 'all'}"
    return Figure(title, "run (UTC)", ticks, tuple(_over_runs(shown, key) for key in KEYS), source)


def draw(figure: Figure, form: str) -> bytes:
    """The picture as PNG or SVG (`form`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    canvas: Any = Canvas(figsize=(11, 3.8), layout="constrained")
    canvas.suptitle(figure.title)
    for axes, panel in zip(
        canvas.subplots(1, len(figure.panels), squeeze=False)[0], figure.panels, strict=True
    ):
        _draw_panel(axes, figure, panel)
    if figure.source:
        canvas.supxlabel(f"reference: {figure.source}", fontsize=8, color=_REFERENCE)
    data = io.BytesIO()
    (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(canvas)
    canvas.savefig(data, format=form)
    return data.getvalue()


def page(figure: Figure, svg: str, runs: Sequence[Run]) -> str:
    """An HTML page with the picture and the figures, which needs nothing from anywhere."""
    drawing = svg[svg.index("<svg") :]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(figure.title)}</title>
<style>
body {{ font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
.scroll {{ overflow-x: auto; }}
</style></head><body>
<h1>{html.escape(figure.title)}</h1>
{drawing}
<div class="scroll"><table>
{chr(10).join(_table(runs))}
</table></div>
</body></html>
"""


def _table(runs: Sequence[Run]) -> Iterator[str]:
    metrics = [
        metric for metric in METRICS if any(run.figures()[metric.key] is not None for run in runs)
    ]
    yield _line("th", ["run", "concurrency", *(metric.title for metric in metrics), "vllm"])
    for run in sorted(runs, key=lambda run: run.at, reverse=True):
        figures = run.figures()
        cells = [metric.text(figures[metric.key]) for metric in metrics]
        yield _line(
            "td",
            [run.id, str(run.concurrency or "all"), *cells, str(run.versions.get("vllm", "-"))],
        )
    reference = next((run.reference for run in reversed(runs) if run.reference), None)
    if reference:
        cells = [metric.text(reference.get(metric.key)) for metric in metrics]
        concurrency = next(run.concurrency for run in reversed(runs) if run.reference)
        yield _line("td", [f"reference: {reference['source']}", str(concurrency), *cells, "-"])


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _over_concurrency(runs: Sequence[Run], key: str) -> Panel:
    newest: dict[float, float] = {}
    earlier = []
    reference = None
    for run in runs:
        place, value = float(run.concurrency or 0), run.figures()[key]
        if value is not None:
            if place in newest:
                earlier.append((place, newest[place]))
            newest[place] = value
        if key in run.reference:
            reference = (place, float(run.reference[key]))
    return Panel(_title(key), tuple(sorted(newest.items())), tuple(earlier), reference)


def _over_runs(runs: Sequence[Run], key: str) -> Panel:
    values = [(float(number), run.figures()[key]) for number, run in enumerate(runs, 1)]
    points = tuple((place, value) for place, value in values if value is not None)
    known = [float(run.reference[key]) for run in runs if key in run.reference]
    return Panel(_title(key), points, (), (float(len(runs)), known[-1]) if known else None)


def _title(key: str) -> str:
    metric = next(metric for metric in METRICS if metric.key == key)
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def _tick(run: Run) -> str:
    return datetime.fromtimestamp(run.at, UTC).strftime("%m-%d\n%H:%M")


def _draw_panel(axes: Any, figure: Figure, panel: Panel) -> None:  # noqa: ANN401 - matplotlib's
    axes.set_title(panel.title, fontsize=10)
    axes.plot(*_columns(panel.newest), marker="o", color=_NEWEST)
    if panel.earlier:
        axes.plot(
            *_columns(panel.earlier), marker="o", linestyle="", color=_EARLIER, label="earlier runs"
        )
    if panel.reference and figure.axis == "concurrency":
        place, value = panel.reference
        axes.plot([place], [value], marker="D", linestyle="", color=_REFERENCE, label="reference")
    elif panel.reference:
        axes.axhline(panel.reference[1], linestyle="--", color=_REFERENCE, label="reference")
    if panel.earlier or panel.reference:
        axes.legend(fontsize=8)
    axes.set_xticks(
        [place for place, _ in figure.ticks], [label for _, label in figure.ticks], fontsize=8
    )
    axes.set_xlabel(figure.axis, fontsize=9)
    values = [
        value
        for _, value in (
            *panel.newest,
            *panel.earlier,
            *([panel.reference] if panel.reference else []),
        )
    ]
    axes.set_ylim(0, 1.15 * max([*values, 0.0]) or 1.0)
    axes.grid(visible=True, alpha=0.3)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [place for place, _ in points], [value for _, value in points]
