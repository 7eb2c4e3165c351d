"""The verb `stop`: stop a deployment and verify that nothing is left."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentName, Format, JsonOutput
from raylaunch.cli.output import Output
from raylaunch.errors import NodeError

if TYPE_CHECKING:
    from raylaunch.supervise.deployment_status import StopReport


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(app, examples="raylaunch stop a2-dual")(stop)


def stop(
    out: Output, name: DeploymentName, address: Address = None, output: JsonOutput = Format.TABLE
) -> None:
    """Stop a deployment and verify that nothing is left.

    Exit code 11: something is left; it is named.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching

    # The findings belong to the start, which has shown them.
    with watching(out, to_stderr=output is Format.JSON, warned=True) as view:
        report = api.stop(name, address=address, on_update=view)
    if output is Format.JSON:
        out.json(dataclasses.asdict(report))
    if report.left:
        raise NodeError(
            f"{report.deployment} was stopped, but something is left",
            evidence="\n".join(report.left),
            todo="`raylaunch clean --yes` kills exactly the processes with raylaunch's marker",
        )
    if report.killed_because and output is Format.TABLE:
        out.note(
            f"its Ray cluster was killed by the marker of its processes ({report.killed_because})"
        )
    if output is Format.TABLE and not out.quiet:
        out.line(_summary(report))


def _summary(report: StopReport) -> str:
    from raylaunch.cli.views.durations import duration
    from raylaunch.cli.views.plan_view import count

    stopped = f"{report.deployment} stopped in {duration(report.seconds)}"
    processes = count(report.processes_ended, "process", "processes")
    text = f"{stopped}: {processes} stopped, nothing left"
    if report.local_cluster_stopped:
        text += "; the local Ray cluster was stopped too"
    return text
