"""The verb `monitoring`: files for Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch monitoring --out watch
        raylaunch monitoring --out watch --token-file /etc/prometheus/raylaunch.token
        """,
    )(monitoring)


def monitoring(
    out: Output,
    folder: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the files; made when missing."),
    ],
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help="Where Prometheus finds the target files; by default below RAYLAUNCH_HOME.",
        ),
    ] = None,
    token_file: Annotated[
        str,
        typer.Option(metavar="FILE", help="File with the bearer token (metrics.token)."),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that raylaunch did not write.")
    ] = False,
) -> None:
    """Write files for Prometheus, Alertmanager and Grafana.

    They serve every deployment of this user on this machine. The alerts have the causes and
    remedies of `raylaunch diagnose`.
    """
    from raylaunch import api
    from raylaunch.cli.file_writer import write_files

    files = api.monitoring_files(targets, token_file)
    for path in write_files(folder, files, force=force):
        out.line(str(path))
