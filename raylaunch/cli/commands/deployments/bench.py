"""The verb `bench`: measure a deployment with vLLM's own client, and show earlier results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import INTERRUPTED, command
from raylaunch.cli.options import Address, DeploymentOrGroup, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output, table
from raylaunch.errors import LaunchError, NodeError

if TYPE_CHECKING:
    from raylaunch.bench.bench_output import BenchProgress
    from raylaunch.bench.comparison import Comparison
    from raylaunch.bench.result import Run
    from raylaunch.bench.scenario import Scenario

    OnProgress = Callable[[Scenario, BenchProgress], None]


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
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
    """Complete the name of a scenario, for the shell's Tab key."""
    from raylaunch.bench.scenario import shipped

    return (name for name in shipped() if name.startswith(incomplete))


def bench(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
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

    `vllm bench serve` runs on the node of the primary. Every result is kept as JSON below
    RAYLAUNCH_HOME, with plan and versions, and shown beside the recipe's reference and the runs
    before. Ctrl-C stops the benchmark and does not touch the servers.
    Exit codes: 0 measured, 7 it failed or requests did, 10 not ready or another benchmark runs.
    """
    from raylaunch.bench.charts import require_drawing

    if listing and compare:
        raise typer.BadParameter("--list and --compare are two views of the same runs: choose one")
    if (listing or compare) and (concurrency or sets):
        raise typer.BadParameter(
            "--list and --compare run nothing: leave out --concurrency and --set"
        )
    subject = target(name, group)
    # Runs are kept by deployment.
    name = subject.partition("/")[0]
    pictures = picture or []
    for path in pictures:
        require_drawing(str(path))  # before anything runs
    if listing or compare:
        _show_kept(out, name, scenario, output, listing=listing)
        return _draw(out, name, scenario, pictures)
    runs = _run(out, subject, scenario, concurrency or [], sets or [], address)
    _show_new(out, name, runs, output)
    _draw(out, name, runs[-1].scenario, pictures)
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
    from raylaunch.cli.views.bench_progress import progress

    changes = read_changes(sets)

    def report_kept(run: Run) -> None:
        out.note(f"kept: {_run_file(run)}")
        if run.niceness:
            out.note(
                f"the client ran at niceness {run.niceness}; "
                "set RAY_worker_niceness=0 at `ray start` to avoid that"
            )

    try:
        deployment = api.attach(name, address=address)
        with progress(out) as report:
            return deployment.bench(
                scenario,
                concurrency=concurrency,
                set=changes,
                on_progress=report,
                on_run=report_kept,
            )
    except KeyboardInterrupt:
        out.to_stderr(["", f"interrupted: the benchmark was stopped; {name} keeps running"])
        raise typer.Exit(INTERRUPTED) from None


def _run_file(run: Run) -> Path:
    from raylaunch.deployment import run_file

    return run_file(run)


def _show_kept(
    out: Output, name: str, scenario: str | None, output: Format, *, listing: bool
) -> None:
    from raylaunch.bench.comparison import compare
    from raylaunch.bench.result import run_to_dict
    from raylaunch.cli.views.bench_view import LIST_HEADER, list_row

    runs = _kept(out, name, scenario)
    if output is Format.JSON and listing:
        return out.json([run_to_dict(run) for run in runs])
    if output is Format.JSON:
        return out.json([comparison.as_dict() for comparison in compare(runs)])
    if not runs:
        return out.note(f"no run of {name} is kept here; `raylaunch bench {name}` makes one")
    if listing:
        rows = [list_row(run) for run in runs]
        return out.lines(table(rows, out.style, header=LIST_HEADER, kinds=("name",)))
    return _show_comparisons(out, compare(runs))


def _kept(out: Output, name: str, scenario: str | None) -> list[Run]:
    from raylaunch.deployment import kept_runs

    runs, unreadable = kept_runs(name)
    if unreadable:
        out.note(f"skipped, not runs of this version: {', '.join(unreadable)}")
    return [run for run in runs if scenario in (None, run.scenario)]


def _show_new(out: Output, name: str, runs: Sequence[Run], output: Format) -> None:
    from raylaunch.bench.comparison import compare
    from raylaunch.bench.result import run_to_dict
    from raylaunch.deployment import kept_runs

    if output is Format.JSON:
        return out.json([run_to_dict(run) for run in runs])
    new = {run.id for run in runs}
    earlier = [run for run in kept_runs(name)[0] if run.id not in new]
    comparisons = compare([*earlier, *runs])
    return _show_comparisons(out, [one for one in comparisons if one.newest.id in new])


def _show_comparisons(out: Output, comparisons: Sequence[Comparison]) -> None:
    from raylaunch.cli.views.bench_view import comparison_lines

    for number, comparison in enumerate(comparisons):
        if number:
            out.line()
        out.lines(comparison_lines(comparison, out.style))


def _draw(out: Output, name: str, scenario: str | None, paths: Sequence[Path]) -> None:
    if not paths:
        return
    from raylaunch.bench.charts import draw, make_figure, page

    runs = _kept(out, name, scenario)
    figure = make_figure(runs)
    for path in paths:
        form = path.suffix.lower().removeprefix(".")
        data = draw(figure, "png" if form == "png" else "svg")
        if form == "html":
            # The table below the curves has one load, as the curves have.
            shown = [run for run in runs if run.shape == runs[-1].shape]
            data = page(figure, data.decode(), shown).encode()
        _write(path, data)
        out.note(f"wrote {path}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise NodeError(f"cannot write {path}", why=str(error)) from error


def _refuse_failed(runs: Sequence[Run]) -> None:
    failed = []
    for run in runs:
        count = run.figures()["failed"]
        if count:
            requests = run.result.get("num_prompts")
            failed.append(f"{run.id}: {count:.0f} of {requests} requests failed")
    if failed:
        raise LaunchError(
            "\n".join(failed),
            why="the figures are those of the other requests",
            todo=f"`raylaunch logs {runs[-1].deployment}` shows the server's log",
        )
