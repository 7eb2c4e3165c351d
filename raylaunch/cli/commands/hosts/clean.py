"""The verb `clean`: find orphaned processes and stale records, and on request remove them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, JsonOutput
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import NodeError

if TYPE_CHECKING:
    from raylaunch.supervise.deployment_status import CleanReport, Leftover

HEADER = ("HOST", "PID", "DEPLOYMENT", "ATTEMPT", "AGE", "COMMAND")


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch clean
        raylaunch clean --yes
        raylaunch clean --yes --deployment a2-dual
        """,
    )(clean)


def clean(
    out: Output,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Kill and remove what is found.")
    ] = False,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", metavar="NAME", help="Only what is left of this one."),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Find orphaned processes and stale records; kill them with --yes.

    Searches this machine, and every node of the cluster if there is one, for processes with
    raylaunch's marker that belong to no running deployment, and for records of embedded clusters
    that are gone.
    Exit codes: 0 nothing is left, 11 something is.
    """
    from raylaunch import api

    report = api.clean(deployment, address=address, end=yes)
    if output is Format.JSON:
        out.json({**dataclasses.asdict(report), "is_clean": report.is_clean})
    else:
        out.lines(_lines(report, out.style))
        _explain(out, report)
    if not report.is_clean:
        raise typer.Exit(NodeError.exit_code)


def _lines(report: CleanReport, style: Style) -> Iterator[str]:
    if report.found:
        rows = [_row(orphan) for orphan in report.found]
        yield from table(rows, style, header=HEADER)
    for name in report.orphaned:
        yield f"agents of {name} hold its NPUs, and its controller is gone"
    for name in report.records:
        yield f"record and folder of the embedded cluster of {name}, which is gone"
    yield from report.undecided


def _row(orphan: Leftover) -> tuple[str, ...]:
    from raylaunch.cli.views.durations import duration

    return (
        orphan.host,
        str(orphan.pid),
        orphan.deployment,
        str(orphan.attempt),
        duration(orphan.age_s),
        orphan.command,
    )


def _explain(out: Output, report: CleanReport) -> None:
    if not report.asked:
        out.note("no Ray cluster was found, so only this machine was searched; use --address")
    for host in report.silent:
        out.note(f"the node {host} did not answer")
    if report.is_clean:
        found = bool(report.found or report.records or report.orphaned)
        out.note("all of it was removed, nothing is left" if found else "nothing is left behind")
    elif report.ended:
        left = ", ".join(f"pid {orphan.pid} on {orphan.host}" for orphan in report.left)
        out.note(
            f"still there: {left or 'see above'}; "
            "a process inside a driver call exits only when the call returns"
        )
    else:
        out.note("`raylaunch clean --yes` kills and removes exactly these")
