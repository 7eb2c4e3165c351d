"""The verb `upgrade`: change a deployment's recipe, with a way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentName, Format, JsonOutput, Sets
from raylaunch.cli.output import Output, Style, table

if TYPE_CHECKING:
    from raylaunch.recipe.recipe_changes import Change
    from raylaunch.supervise.plan_changes import PlanChange


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch upgrade a2-replicas --set args.max-num-seqs=64
        raylaunch upgrade prod ./new-recipe.yaml
        raylaunch upgrade prod ./new-recipe.yaml --gate small:+5%
        raylaunch upgrade prod --set gateway.hold_s=900 --no-verify
        """,
    )(upgrade)


def upgrade(
    out: Output,
    name: DeploymentName,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A recipe by name or path; by default the one that runs."
        ),
    ] = None,
    sets: Sets = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify each new group before it serves.")
    ] = True,
    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            metavar="SCENARIO:+PERCENT%",
            help="Benchmark each new group before it serves; refuse one that is worse than that.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Change the recipe of a deployment that runs, with a way back.

    The settings that differ are shown, and the flags and variables of servers that they change.
    Groups whose servers do not change are not touched. With a gateway and enough free NPUs the new
    groups start beside the old ones, are verified, get the traffic, and the old ones are drained
    and stopped. Otherwise group follows group. If a new group fails, or is refused, the old ones
    serve again. Ctrl-C while a group waits for its verification refuses it.
    Exit codes: 0 upgraded, 6 too few NPUs, 7 a new group failed, 10 another command changes the
    deployment, 15 a new group was refused.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching

    def show(changes: list[Change], of_plans: list[PlanChange]) -> None:
        if dry_run and output is Format.JSON:
            settings = [asdict(one) for one in changes]
            out.json({"settings": settings, "plans": [asdict(one) for one in of_plans]})
        elif output is Format.TABLE and not out.quiet:
            out.lines(_change_lines(changes, out.style))
            out.lines(_plan_lines(of_plans, out.style))

    with watching(out, to_stderr=output is Format.JSON, warned=True) as view:
        status = api.upgrade(
            name,
            recipe,
            set=sets or (),
            address=address,
            verify_groups=verify,
            gate=gate,
            on_update=view,
            on_changes=show,
            dry_run=dry_run,
        )
    if dry_run:
        return
    if output is Format.JSON:
        out.json(asdict(status))
    elif not out.quiet:
        out.line(f"{name} is {status.phase.value}")


def _change_lines(changes: list[Change], style: Style) -> Iterator[str]:
    if not changes:
        yield "nothing changes"
        return
    rows = [(change.path, change.old, change.new) for change in changes]
    yield from table(rows, style, header=("SETTING", "RUNS", "WANTED"), kinds=("name",))


def _plan_lines(changes: list[PlanChange], style: Style) -> Iterator[str]:
    if not changes:
        return
    yield ""
    rows = [(", ".join(one.where), one.name, one.old, one.new) for one in changes]
    header = ("WHERE", "FLAG OR VARIABLE", "RUNS", "WANTED")
    yield from table(rows, style, header=header, kinds=("name",))
