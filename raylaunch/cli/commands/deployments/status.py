"""The verb `status`: one deployment with its last observations, or all of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch status
        raylaunch status a2-dual
        until raylaunch -q status a2-dual; do sleep 5; done
        raylaunch status a2-dual -o json | jq .phase
        """,
    )(status)


def status(
    out: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Name of the deployment, or NAME/GROUP; all without it."
        ),
    ] = None,
    group: Group = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Show a deployment and its last observations.

    Exit codes: 0 ready, or a fallback serves; 7 failed, 8 not ready yet, 9 unknown or stopped.
    """
    if name is None:
        if group is not None:
            raise typer.BadParameter("--group needs the name of its deployment")
        from raylaunch.cli.overview import show_overview

        return show_overview(out, address, output)
    from raylaunch import api
    from raylaunch.cli.exit_codes import exit_code
    from raylaunch.cli.views.status_view import status_lines

    current = api.attach(target(name, group), address=address).status()
    if output is Format.JSON:
        out.json(dataclasses.asdict(current))
    elif out.quiet:
        out.line(current.phase.value)
    else:
        out.lines(status_lines(current, out.style))
    raise typer.Exit(exit_code(current))
