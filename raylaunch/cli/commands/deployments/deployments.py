"""The verbs of a deployment's life: start, status, stop."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import (
    Address,
    DeploymentName,
    Format,
    JsonOutput,
    RecipeName,
    Sets,
    command,
    reasons,
)
from raylaunch.cli.output import Output, table
from raylaunch.errors import LaunchError, NodeError, NotReadyError, UnknownDeploymentError

if TYPE_CHECKING:
    from raylaunch.supervise.deployment_status import Status

INTERRUPTED = 130
"""What a shell reports of a program ended by Ctrl-C."""


def add_commands(app: typer.Typer) -> None:
    """Register the verbs of this module, in the order of the help."""
    command(
        app,
        examples="""
        raylaunch start a2-dual
        raylaunch start a2-dual --name prod --set args.max-num-seqs=64 --timeout 1800
        raylaunch start local-dual --no-wait && raylaunch status local-dual
        raylaunch start a2-dual --skip-check npu-net-health="the gateway answers no pings"
        """,
    )(start)
    command(
        app,
        examples="""
        raylaunch status
        raylaunch status a2-dual
        until raylaunch -q status a2-dual; do sleep 5; done
        raylaunch status a2-dual -o json | jq .phase
        """,
    )(status)
    command(app, examples="raylaunch stop a2-dual")(stop)


def start(
    out: Output,
    name: RecipeName,
    deployment: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the deployment; by default the recipe's."
        ),
    ] = None,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the deployment is ready.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="Stop waiting after so many seconds (exit code 8)."),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option("--primary", metavar="IP", help="The node that becomes the primary."),
    ] = None,
    sets: Sets = None,
    skip_check: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-check",
            metavar="ID=REASON",
            help="Do not refuse for this finding; may be repeated.",
        ),
    ] = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Start a recipe on the cluster and wait until it serves.

    The deployment runs on its own: Ctrl-C, a closed laptop or the end of this command change nothing.
    Exit codes: 0 ready, 7 failed, 8 not ready yet.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching

    skipped = reasons(skip_check or [])
    made = None
    with watching(out, to_stderr=output is Format.JSON) as watch, suppress(KeyboardInterrupt):
        made = api.deploy(
            name,
            sets=sets or (),
            deployment=deployment,
            address=address,
            wait=wait,
            timeout=timeout,
            on_update=watch,
            primary=primary,
            skip_checks=skipped,
        )
    if made is None:
        _explain_interrupt(
            out, deployment or Path(name).stem, address, known=watch.last is not None
        )
        raise typer.Exit(INTERRUPTED)
    _report_start(out, made.status(), address, output, wait=wait)


def status(
    out: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of the deployment; all without it.")
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Show a deployment and what was last seen of it.

    Exit codes: 0 ready, 7 failed, 8 not ready yet, 9 unknown or stopped.
    """
    if name is None:
        return list_running(out, address, output)
    from raylaunch import api
    from raylaunch.cli.views.status_view import status_lines

    seen = api.attach(name, address=address).status()
    if output is Format.JSON:
        out.json(dataclasses.asdict(seen))
    elif out.quiet:
        out.line(seen.phase.value)
    else:
        out.lines(status_lines(seen, out.style))
    raise typer.Exit(exit_code(seen))


def list_running(out: Output, address: str | None, output: Format) -> None:
    """List the deployments of the cluster."""
    from raylaunch import api
    from raylaunch.cli.views.status_view import RUNNING_HEADER, running_row

    found = api.deployments(address=address)
    out.to_stderr(api.record_problems())
    if output is Format.JSON:
        return out.json([dataclasses.asdict(each) for each in found])
    if not found:
        return out.note("no deployment runs on this cluster; `raylaunch start NAME` makes one")
    return out.lines(
        table(
            [running_row(each) for each in found], out.style, header=RUNNING_HEADER, kinds=("name",)
        )
    )


def stop(
    out: Output, name: DeploymentName, address: Address = None, output: JsonOutput = Format.TABLE
) -> None:
    """Stop a deployment and prove that nothing of it is left.

    Exit code 11: something is left; it is named.
    """
    from raylaunch import api
    from raylaunch.cli.views.live_view import watching
    from raylaunch.cli.views.status_view import duration

    with watching(out, to_stderr=output is Format.JSON) as watch:
        report = api.stop(name, address=address, on_update=watch)
    if output is Format.JSON:
        out.json(dataclasses.asdict(report))
    if report.left:
        raise NodeError(
            f"{report.deployment} was stopped, but something is left",
            evidence="\n".join(report.left),
            todo="`raylaunch clean` ends exactly what carries raylaunch's mark",
        )
    if output is Format.TABLE and not out.quiet:
        local = "; the local Ray cluster was stopped too" if report.local_cluster_stopped else ""
        if report.killed_because:
            out.note(
                f"its Ray cluster was killed by the marker of its processes ({report.killed_because})"
            )
        out.line(
            f"{report.deployment} stopped in {duration(report.seconds)}: {_ended(report.processes_ended)}{local}"
        )


def exit_code(status: Status) -> int:
    """What `status` and `start` tell a script."""
    codes = {
        "ready": 0,
        "failed": LaunchError.exit_code,
        "stopped": UnknownDeploymentError.exit_code,
    }
    return codes.get(status.phase.value, NotReadyError.exit_code)


def _explain_interrupt(out: Output, name: str, address: str | None, *, known: bool) -> None:
    from raylaunch.cli.views.status_view import again

    told = (
        f"{name} goes on without this command"
        if known
        else f"{name} may be starting: the cluster had not answered yet"
    )
    out.to_stderr(
        [
            "",
            f"interrupted: {told}",
            f"  follow  {again('status', name, address)}    or  {again('events', name, address)} -f",
            f"  stop    {again('stop', name, address)}",
        ]
    )


def _report_start(
    out: Output, status: Status, address: str | None, output: Format, *, wait: bool
) -> None:
    from raylaunch.cli.views.status_view import again, ready_lines

    code = exit_code(status)
    if output is Format.JSON:
        out.json(dataclasses.asdict(status))
    elif out.quiet:
        out.line(status.endpoint)
    elif code == 0:
        out.lines(["", *ready_lines(status, address, out.style)])
    else:
        follow = again("status", status.deployment, address)
        out.line(f"{status.deployment} is {status.phase.value}; follow it with  {follow}")
    if wait and code:
        raise typer.Exit(code)


def _ended(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'} ended, nothing left"
