"""The list of running deployments, and of those that do not answer: `status`, `list --running`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import typer

from raylaunch.cli.options import Format
from raylaunch.cli.output import Output, table
from raylaunch.cli.views.status_view import RUNNING_HEADER, running_row
from raylaunch.deployment import Silent


def show_overview(out: Output, address: str | None, output: Format) -> None:
    """Show every deployment of the cluster and of the embedded clusters of this machine.

    Deployments that were started from here and do not answer are named on stderr.
    """
    from raylaunch import api

    overview = api.overview(address=address)
    if output is Format.JSON:
        out.json([dataclasses.asdict(status) for status in overview.running])
    elif overview.running:
        rows = [running_row(status) for status in overview.running]
        out.lines(table(rows, out.style, header=RUNNING_HEADER, kinds=("name",)))
    elif not overview.silent:
        out.note("no deployment runs on this cluster; `raylaunch start NAME` starts one")
    else:
        out.note("no deployment answers")
    for silent in overview.silent:
        for line in silent_lines(silent):
            out.note(line)


def silent_lines(silent: Silent) -> Iterator[str]:
    """Lay out a deployment that does not answer: its name, why, and what to do."""
    yield f"{silent.deployment}: {silent.what}"
    if silent.why:
        yield f"  why   {silent.why}"
    yield f"  next  {silent.todo}"


def only_deployment(address: str | None) -> str:
    """Return the name of the only deployment that runs.

    Raises:
        typer.BadParameter: none runs, or several do.
    """
    from raylaunch import api

    names = [status.deployment for status in api.deployments(address=address)]
    if len(names) != 1:
        running = ", ".join(names) or "none"
        raise typer.BadParameter(f"name a deployment; running: {running}")
    return names[0]
