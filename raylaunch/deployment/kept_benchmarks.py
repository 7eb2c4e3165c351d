"""Benchmarks of deployments that are kept on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.deployment.names import checked_name
from raylaunch.home import home

if TYPE_CHECKING:
    from raylaunch.bench.result import Run


def kept_runs(deployment: str) -> tuple[list[Run], list[str]]:
    """Return the benchmarks of a deployment that are kept here, oldest first.

    The second value names the files that could not be read.

    Raises:
        RecipeError: no deployment can have this name.
    """
    from raylaunch.runtime.bench import bench_store

    return bench_store.load(home(), checked_name(deployment))


def run_file(run: Run) -> Path:
    """Return the file that a benchmark is kept in."""
    from raylaunch.runtime.bench import bench_store

    return bench_store.file_of(home(), run)
