"""The verb `scale`: change the number of a deployment's replicas."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentName, Format, JsonOutput
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(app, examples="raylaunch scale a2-replicas --replicas 3")(scale)


def scale(
    out: Output,
    name: DeploymentName,
    replicas: Annotated[
        int, typer.Option("--replicas", metavar="N", min=1, help="Number of equal groups.")
    ],
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Change the number of a deployment's equal groups.

    New groups start beside the others. Those with the highest numbers are removed, and drained
    before if the deployment has a gateway. If a new group fails, the new ones are removed again.
    Exit codes: 0 done, 6 too few NPUs, 7 a new group failed, 10 another command changes the
    deployment.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching

    with watching(out, to_stderr=output is Format.JSON, warned=True) as view:
        status = api.scale(name, replicas, address=address, on_update=view)
    if output is Format.JSON:
        out.json(dataclasses.asdict(status))
    elif not out.quiet:
        out.line(f"{name} has {len(status.groups)} groups and is {status.phase.value}")
