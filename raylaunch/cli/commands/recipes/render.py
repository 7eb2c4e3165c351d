"""The verb `render`: the plan as scripts, docker commands or JSON."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.offline_plan import make_plan, report_findings
from raylaunch.cli.options import Group, Hosts, NameOfNew, Primary, RecipeName, Sets
from raylaunch.cli.output import Output


class RenderForm(StrEnum):
    """Forms a plan can be written in."""

    BASH = "bash"
    DOCKER = "docker"
    JSON = "json"


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch render a2-dual --as bash --out sh --host 192.0.2.10%eth0 --host 192.0.2.11%eth0
        raylaunch render a3-single --as docker --out scripts
        """,
    )(render)


def render(
    out: Output,
    name: RecipeName,
    form: Annotated[
        RenderForm,
        typer.Option("--as", metavar="bash|docker|json", help="What to write."),
    ],
    folder: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the files; made when missing."),
    ],
    host: Hosts = None,
    primary: Primary = None,
    deployment: NameOfNew = None,
    sets: Sets = None,
    group: Group = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that raylaunch did not render.")
    ] = False,
) -> None:
    """Write the plan as scripts, docker commands or JSON.

    One bash script per server; with --as docker also the container of each node. With several
    groups the names of the scripts begin with the group.

    Exit code 4: the checks found an error; the files are written nevertheless, but for a secret in
    the recipe, which would be in them.
    """
    from raylaunch import api
    from raylaunch.cli.file_writer import write_files

    loaded, plan, findings = make_plan(out, name, host, primary, deployment, sets, group)
    if any(finding.id == "secret-in-recipe" for finding in findings):
        report_findings(out, findings)
        return
    files = api.render_files(loaded, plan, form.value)
    for path in write_files(folder, files, force=force):
        out.line(str(path))
    report_findings(out, findings)
