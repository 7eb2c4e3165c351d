"""The verb `report`: the page of a deployment, frozen into one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentOrGroup, Group, target
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch report a2-dual -o report.html
        raylaunch report a2-dual --lines 2000 > report.html
        """,
    )(report)


def report(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write it; by default to stdout."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            "--lines",
            "-n",
            metavar="LINES",
            min=0,
            max=20_000,
            help="Lines from the end of each server's log.",
        ),
    ] = 300,
    address: Address = None,
) -> None:
    """Write a deployment into one HTML file for a bug report.

    It holds status, timelines of starts and failures, diagnosis, findings, plan, the ends of the
    logs and the benchmarks, and loads nothing from elsewhere. Secrets of the recipe that are set
    in this environment, and what looks like a key, are replaced by ***. Logs may hold what users
    sent to the model: read it before you pass it on.
    """
    from raylaunch import api

    def warn(names: Sequence[str]) -> None:
        out.note(
            f"not set here, so their values were not searched for: {', '.join(names)}; "
            f"raylaunch itself logs no secret"
        )

    page = api.report(target(name, group), lines=lines, address=address, on_unsearched=warn)
    if file is None:
        out.lines(page.splitlines())
        return
    from raylaunch.cli.file_writer import write_private

    write_private(file, page)
    out.note(f"wrote {file}; its logs may hold what users sent to the model")
