"""The verb `list`: the shipped recipes, or the running deployments."""

from __future__ import annotations

from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, JsonOutput
from raylaunch.cli.output import Output, table


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        name="list",
        examples="""
        raylaunch list
        raylaunch list --running
        raylaunch list -o json
        """,
    )(list_)


def list_(
    out: Output,
    running: Annotated[
        bool, typer.Option("--running", help="List the deployments on the cluster instead.")
    ] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """List the recipes, or what runs."""
    if running:
        from raylaunch.cli.overview import show_overview

        return show_overview(out, address, output)
    from raylaunch.cli.views.recipe_view import LIST_HEADER, list_row, recipe_summary
    from raylaunch.recipe.catalog import read, recipe_names

    summaries = [recipe_summary(read(name)) for name in recipe_names()]
    if output is Format.JSON:
        return out.json(summaries)
    rows = [list_row(summary) for summary in summaries]
    return out.lines(table(rows, out.style, header=LIST_HEADER, kinds=("name",)))
