"""The verb `tune`: compare this machine with the host settings of a recipe, and set them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Format, JsonOutput, RecipeName, Sets
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import NodeError

if TYPE_CHECKING:
    from raylaunch.plan.facts import TuningStep

HEADER = ("SETTING", "WANTED", "FOUND", "STATE")
STATES = {
    "already": "as wanted",
    "unmet": "differs",
    "set": "set now",
    "host": "only on the host",
}


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch tune a3-single
        sudo raylaunch tune a3-single --apply
        """,
    )(tune)


def tune(
    out: Output,
    name: RecipeName,
    apply: Annotated[bool, typer.Option("--apply", help="Set what this user may set.")] = False,
    sets: Sets = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Compare this machine's settings with those that a recipe wants.

    With --apply they are set, until the next boot. A container may set few of them: for the rest
    the command for the host is printed. Exit code 11: after --apply a setting still differs.
    """
    from raylaunch import api

    steps = api.tune(name, set=sets or (), apply=apply)
    if output is Format.JSON:
        out.json([dataclasses.asdict(step) for step in steps])
    elif not steps:
        out.note(f"{name} wants no host settings")
    else:
        out.lines(_lines(steps, out.style))
    if apply and any(step.outcome == "host" for step in steps):
        raise typer.Exit(NodeError.exit_code)


def _lines(steps: Sequence[TuningStep], style: Style) -> Iterator[str]:
    rows = [
        (step.name, step.wanted, step.before or "not there", STATES[step.outcome]) for step in steps
    ]
    yield from table(rows, style, header=HEADER, kinds=("name",))
    for step in steps:
        if step.todo:
            reason = f"{step.why}; " if step.why else ""
            yield f"{step.name}: {reason}{step.todo}"
