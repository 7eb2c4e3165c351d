"""The verb `keys`: replace the API keys that a gateway accepts."""

from __future__ import annotations

from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentName, Format, JsonOutput
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch keys prod
        raylaunch keys prod TEAM_KEY
        """,
    )(keys)


def keys(
    out: Output,
    name: DeploymentName,
    chosen: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...", help="Names in `gateway.api_keys`; by default all of them."
        ),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Replace API keys of a deployment's gateway, without a restart.

    The new values are read from the environment, as at the start, and only their SHA-256 leaves
    this command. The old values are refused from then on. For a change without a refused request,
    list two keys in `gateway.api_keys` and replace one after the other. Keys of the servers behind
    the gateway stay as they are.
    Exit codes: 0 replaced, 3 no such key, or it has no value.
    """
    from raylaunch import api

    replaced = api.rotate_keys(name, chosen or (), address=address)
    if output is Format.JSON:
        out.json({"replaced": list(replaced)})
    elif not out.quiet:
        out.line(f"{name}: replaced {', '.join(replaced)}")
