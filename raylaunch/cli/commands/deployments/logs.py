"""The verb `logs`: the log of a server or of the controller, from whichever node it is on."""

from __future__ import annotations

from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentOrGroup, Follow, Group, target
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch logs a2-dual
        raylaunch logs a2-dual --server 1 -n 1000
        raylaunch logs a2-dual -f
        raylaunch logs a2-dual --controller
        """,
    )(logs)


def logs(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
    server: Annotated[
        int | None,
        typer.Option(
            "--server", metavar="I", min=0, help="Index of the server; by default 0, the primary."
        ),
    ] = None,
    controller: Annotated[
        bool, typer.Option("--controller", help="The log of the deployment's controller instead.")
    ] = False,
    follow: Follow = False,
    lines: Annotated[
        int,
        typer.Option("--lines", "-n", metavar="LINES", min=0, help="Number of lines from the end."),
    ] = 100,
    address: Address = None,
) -> None:
    """Print the log of a server, from whichever node it is on."""
    if controller and (follow or server is not None):
        raise typer.BadParameter(
            "the controller's log is one for all servers and is not followed: "
            "leave out --server and --follow",
            param_hint="--controller",
        )
    from raylaunch import api

    deployment = api.attach(target(name, group), address=address)
    if controller:
        return out.lines(deployment.controller_log(lines=lines).splitlines())
    index = server or 0
    text = deployment.logs(server=index, lines=lines) if lines else ""
    out.lines(text.splitlines())
    if follow:
        for line in deployment.follow_logs(server=index):
            out.line(line.rstrip("\n"))
    return None
