"""The verb `restart`: restart the groups of a deployment one after the other."""

from __future__ import annotations

import dataclasses

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentOrGroup, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch restart a2-replicas
        raylaunch restart a2-replicas --group serve-1
        """,
    )(restart)


def restart(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Restart the groups of a deployment one after the other.

    Each group is drained if the deployment has a gateway, and the next one is restarted when it
    serves again. A group that failed is tried again. The restart budget is reset.
    Exit codes: 0 all serve, 7 a group failed (those that were to follow were not touched),
    10 another command changes the deployment.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching

    with watching(out, to_stderr=output is Format.JSON, warned=True) as view:
        status = api.restart(target(name, group), address=address, on_update=view)
    if output is Format.JSON:
        out.json(dataclasses.asdict(status))
    elif not out.quiet:
        out.line(f"{name} is {status.phase.value}")
