"""The verb that measures a deployment with vLLM's own client, and shows what it gave before: bench."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.cli.command import Address, DeploymentName, Format, JsonOutput, command
from raylaunch.cli.output import Output, table
from raylaunch.errors import LaunchError

if TYPE_CHECKING:
    from raylaunch.bench.bench_output import BenchProgress
    from raylaunch.bench.comparison import Comparison, Row
    from raylaunch.bench.result import Run
    from raylaunch.bench.scenario import Scenario

    OnProgress = Callable[[Scenario, BenchProgress], None]

INTERRUPTED = 130
STEPS = 4
"""So many lines tell of the requests of one run where there is no terminal."""
LISTED = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput", "prefix_hit_rate")
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


def add_commands(app: typer.Typer) -> None:
    """Register the verb of this module."""
    command(
        app,
        examples="""
        raylaunch bench local-dual
        raylaunch bench a2-dual --scenario a2-190k --picture a2.html
        raylaunch bench a2-dual --concurrency 1 --concurrency 2 --concurrency 4 --picture curve.png
        raylaunch bench a2-dual --set num-prompts=32
        raylaunch bench a2-dual --compare
        raylaunch bench a2-dual --list -o json | jq '.[-1].figures'
        """,
    )(bench)


def complete_scenario(incomplete: str) -> Iterator[str]:
    """Names of scenarios, for the shell's Tab key."""
    from raylaunch.bench.scenario import shipped

    return (name for name in shipped() if name.startswith(incomplete))


def bench(
    out: Output,
    name: DeploymentName,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            metavar="S",
            help="The load; by default the recipe's.",
            autocompletion=complete_scenario,
        ),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            help="Instead of the scenario's; repeated: one run each.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FLAG=VALUE",
            help="Change one `vllm bench serve` flag; may be repeated.",
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Run nothing; list the kept runs.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Run nothing; the newest runs beside reference and earlier ones."
        ),
    ] = False,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Draw the kept runs: .png, .svg or .html; may be repeated.",
        ),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Measure a deployment with vLLM's own client.

    `vllm bench serve` runs on the node of the primary. Every result is kept as JSON below RAYLAUNCH_HOME, with plan
    and versions, and shown beside the recipe's reference and the runs before. Ctrl-C ends the benchmark and leaves the
    servers alone.
    Exit codes: 0 measured, 7 it failed or requests did, 10 not ready or measured by somebody else.
    """
    from raylaunch.bench.charts import require_drawing

    if listing and compare:
        raise typer.BadParameter("--list and --compare are two views of the same runs: choose one")
    if (listing or compare) and (concurrency or sets):
        raise typer.BadParameter(
            "--list and --compare run nothing: leave out --concurrency and --set"
        )
    for path in picture or []:
        require_drawing(str(path))
    if listing or compare:
        _show_kept(out, name, scenario, output, listing=listing)
        return _draw(out, name, scenario, picture or [])
    runs = _run(out, name, scenario, concurrency or [], sets or [], address)
    _show_new(out, name, runs, output)
    _draw(out, name, runs[-1].scenario, picture or [])
    return _refuse_failed(runs)


def _run(
    out: Output,
    name: str,
    scenario: str | None,
    concurrency: Sequence[int],
    sets: Sequence[str],
    address: str | None,
) -> list[Run]:
    from raylaunch import api
    from raylaunch.bench.scenario import read_changes
    from raylaunch.deployment import run_file

    changes = read_changes(sets)

    def tell_kept(run: Run) -> None:
        out.note(f"kept: {run_file(run)}")
        if run.niceness:
            out.note(
                f"the client ran at niceness {run.niceness}; RAY_worker_niceness=0 at `ray start` mends it"
            )

    try:
        deployment = api.attach(name, address=address)
        with _progress(out) as tell:
            return deployment.bench(
                scenario, concurrency=concurrency, set=changes, on_progress=tell, on_run=tell_kept
            )
    except KeyboardInterrupt:
        out.to_stderr(["", f"interrupted: the benchmark was ended; {name} runs on"])
        raise typer.Exit(INTERRUPTED) from None


def _show_kept(
    out: Output, name: str, scenario: str | None, output: Format, *, listing: bool
) -> None:
    from raylaunch.bench.comparison import compare
    from raylaunch.bench.result import run_to_dict

    runs = _kept(out, name, scenario)
    if output is Format.JSON:
        return out.json(
            [run_to_dict(run) for run in runs]
            if listing
            else [one.as_dict() for one in compare(runs)]
        )
    if not runs:
        return out.note(f"no run of {name} is kept here; `raylaunch bench {name}` makes one")
    if listing:
        return out.lines(
            table([_list_row(run) for run in runs], out.style, header=LIST_HEADER, kinds=("name",))
        )
    return _show_comparisons(out, compare(runs))


def _kept(out: Output, name: str, scenario: str | None) -> list[Run]:
    from raylaunch.deployment import kept_runs

    runs, strange = kept_runs(name)
    if strange:
        out.note(f"not read, for they are no runs of this version: {', '.join(strange)}")
    return [run for run in runs if scenario in (None, run.scenario)]


def _show_new(out: Output, name: str, runs: Sequence[Run], output: Format) -> None:
    from raylaunch.bench.comparison import compare
    from raylaunch.bench.result import run_to_dict
    from raylaunch.deployment import kept_runs

    if output is Format.JSON:
        return out.json([run_to_dict(run) for run in runs])
    new = {run.id for run in runs}
    kept = [run for run in kept_runs(name)[0] if run.id not in new]
    return _show_comparisons(out, [one for one in compare([*kept, *runs]) if one.newest.id in new])


def _show_comparisons(out: Output, comparisons: Sequence[Comparison]) -> None:
    for number, one in enumerate(comparisons):
        out.lines([*([""] if number else []), *comparison_lines(out, one)])


def comparison_lines(out: Output, one: Comparison) -> Iterator[str]:
    """A load's figures, side by side, and what else changed."""
    run = one.newest
    load = f"{run.scenario} at concurrency {run.concurrency or 'all'}"
    yield f"{run.deployment}, {load}, {_at(run)} UTC: {run.description}"
    columns: list[tuple[str, Callable[[Row], float | None]]] = []
    if run.reference:
        columns.append(("REFERENCE", lambda row: row.reference))
    if one.previous:
        columns.append(("RUN BEFORE", lambda row: row.previous))
    if len(one.earlier) > 1:
        columns.append((f"MEDIAN OF {len(one.earlier)}", lambda row: row.median))
    rows = [
        (
            row.metric.title,
            row.metric.text(row.newest),
            *(_beside(row, pick(row)) for _, pick in columns),
        )
        for row in one.rows()
    ]
    yield from table(
        rows, out.style, header=("METRIC", "NOW", *(title for title, _ in columns)), kinds=("name",)
    )
    if run.reference:
        yield f"reference: {run.reference['source']}"
    if one.previous and (changes := one.changes()):
        yield f"since the run before ({one.previous.id}):"
        yield from (f"  {change}" for change in changes)


def _beside(row: Row, then: float | None) -> str:
    """Another value of the same figure, and by how much the newest one differs from it."""
    from raylaunch.bench.comparison import difference

    change = difference(row.newest, then)
    shown = row.metric.text(then)
    return (
        shown if change is None or row.metric.counts else f"{shown}  ({round(change * 100):+d} %)"
    )


def _list_row(run: Run) -> tuple[str, ...]:
    from raylaunch.bench.result import METRICS

    figures = run.figures()
    shown = {metric.key: metric.text(figures[metric.key]) for metric in METRICS}
    answered = f"{shown['completed']} of {run.args.get('num-prompts', '?')}"
    count = str(run.concurrency or "all")
    return (
        run.id,
        _at(run),
        count,
        answered,
        *(shown[key] for key in LISTED),
        run.versions.get("vllm", "-"),
    )


def _at(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.at))


def _draw(out: Output, name: str, scenario: str | None, paths: Sequence[Path]) -> None:
    if not paths:
        return
    from raylaunch.bench.charts import draw, make_figure, page

    runs = _kept(out, name, scenario)
    figure = make_figure(runs)
    shown = [run for run in runs if run.shape == runs[-1].shape]
    for path in paths:
        form = path.suffix.lower().removeprefix(".")
        data = draw(figure, "png" if form == "png" else "svg")
        if form == "html":
            data = page(figure, data.decode(), shown).encode()
        _write(path, data)
        out.note(f"wrote {path}")


def _write(path: Path, data: bytes) -> None:
    from raylaunch.errors import RaylaunchError

    try:
        path.write_bytes(data)
    except OSError as error:
        raise RaylaunchError(f"{path} cannot be written", why=str(error)) from error


def _refuse_failed(runs: Sequence[Run]) -> None:
    failed = [
        f"{run.id}: {count:.0f} of {run.result.get('num_prompts')} requests failed"
        for run in runs
        if (count := run.figures()["failed"])
    ]
    if failed:
        raise LaunchError(
            "\n".join(failed),
            why="the figures are of the others",
            todo=f"`raylaunch logs {runs[-1].deployment}` shows what the server said",
        )


@contextmanager
def _progress(out: Output) -> Iterator[OnProgress]:
    """A bar on a terminal, a few lines elsewhere; always beside the result."""
    if out.quiet or out.error_style.width is None:
        yield Lines(out.note)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bar,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, no_color=not out.error_style.colour)
    with Bar(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("waiting for the cluster", total=None)

        def tell(scenario: Scenario, progress: BenchProgress) -> None:
            if progress.done < bar.tasks[0].completed:  # the next run: its clock begins anew
                bar.reset(task)
            bar.update(
                task,
                description=_described(scenario, progress),
                completed=progress.done,
                total=progress.total,
            )

        yield tell


class Lines:
    """Tells each stage once, and of the requests a few steps."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told = ""

    def __call__(self, scenario: Scenario, progress: BenchProgress) -> None:
        """Take a look; write what is new."""
        step = progress.done * STEPS // max(1, progress.total)
        line = _described(scenario, progress)
        if f"{line} {step}" != self._told:
            self._told = f"{line} {step}"
            self._write(f"{line}: {progress.done} of {progress.total}" if step else line)


def _described(scenario: Scenario, progress: BenchProgress) -> str:
    return f"{scenario.name}, concurrency {scenario.concurrency or 'all'}: {progress.stage}"
