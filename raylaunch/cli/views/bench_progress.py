"""The progress of a benchmark: a bar on a terminal, a few lines elsewhere, always on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raylaunch.cli.output import Output, printable

if TYPE_CHECKING:
    from raylaunch.bench.bench_output import BenchProgress
    from raylaunch.bench.scenario import Scenario

    OnProgress = Callable[[Scenario, BenchProgress], None]

STEPS = 4
"""Number of lines about the requests of one run where there is no terminal."""


@contextmanager
def progress(out: Output) -> Iterator[OnProgress]:
    """Yield the function that is called with the scenario and how far it is."""
    if out.quiet or out.error_style.width is None:
        yield Lines(out.note)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bar,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[ProgressColumn, ...] = (
        # Not as markup: a scenario's name may hold brackets.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, no_color=not out.error_style.colour)
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting for the cluster", total=None)

        def report(scenario: Scenario, current: BenchProgress) -> None:
            if current.done < bar.tasks[0].completed:
                bar.reset(task)  # the next run has a clock of its own
            bar.update(
                task,
                description=printable(_description(scenario, current)),
                completed=current.done,
                total=current.total,
            )

        yield report


class Lines:
    """Writes each stage once, and a few steps of the requests."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: tuple[str, int] | None = None

    def __call__(self, scenario: Scenario, current: BenchProgress) -> None:
        """Write the progress if its stage or step is new."""
        step = current.done * STEPS // max(1, current.total)
        line = _description(scenario, current)
        if self._last == (line, step):
            return
        self._last = (line, step)
        self._write(f"{line}: {current.done} of {current.total}" if step else line)


def _description(scenario: Scenario, current: BenchProgress) -> str:
    return f"{scenario.name}, concurrency {scenario.concurrency or 'all'}: {current.stage}"
