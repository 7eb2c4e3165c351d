"""The verb `start`: launch a recipe on a cluster and wait until it serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import INTERRUPTED, command
from raylaunch.cli.options import (
    Address,
    Format,
    JsonOutput,
    NameOfNew,
    Primary,
    RecipeName,
    Sets,
    SkipChecks,
    refuse_nan,
)
from raylaunch.cli.output import Output
from raylaunch.cli.skip_checks import read_skips
from raylaunch.interrupts import StartUndone
from raylaunch.supervise.deployment_status import Status

if TYPE_CHECKING:
    from raylaunch.cli.views.live_view import LiveView


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch start a2-dual
        raylaunch start a2-dual --name prod --set args.max-num-seqs=64 --timeout 1800
        raylaunch start local-dual --no-wait && raylaunch status local-dual
        raylaunch start a2-dual --adopt
        raylaunch start a2-dual --follow --await-host 192.0.2.10 --await-host 192.0.2.11
        raylaunch start a2-dual --skip-check npu-net-health="the gateway answers no pings"
        """,
    )(start)


def start(
    out: Output,
    name: RecipeName,
    deployment: NameOfNew = None,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the deployment is ready.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            callback=refuse_nan,
            help="Stop waiting after this many seconds (exit code 8).",
        ),
    ] = None,
    primary: Primary = None,
    sets: Sets = None,
    skip_check: SkipChecks = None,
    dry_run_engine: Annotated[
        bool,
        typer.Option(
            "--dry-run-engine/--no-dry-run-engine",
            help="Have the nodes' vLLM build the engine configuration beside the start.",
        ),
    ] = True,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Stay until the deployment fails or is stopped, for systemd. One that runs "
            "already is followed; a cluster that does not answer yet is awaited.",
        ),
    ] = False,
    await_host: Annotated[
        list[str] | None,
        typer.Option(
            "--await-host",
            metavar="IP",
            help="With --follow: start when the nodes that the recipe needs, of all that are named "
            "so, have joined the cluster; may be repeated.",
        ),
    ] = None,
    adopt: Annotated[
        bool | None,
        typer.Option(
            "--adopt/--fresh",
            help="Adopt the deployment of that name if it runs, or stop it first. By default only "
            "servers that have outlived Ray or their controller are adopted.",
            show_default=False,
        ),
    ] = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Start a recipe on the cluster and wait until it serves.

    The deployment does not depend on this command: Ctrl-C, a closed laptop or the exit of this
    command leave it running. Servers that have outlived Ray or their controller are adopted as they
    run: --fresh stops them first, --adopt takes a deployment with a controller too.
    Exit codes: 0 ready, or a fallback serves; 7 failed, 8 not ready yet. With --follow: that of the
    deployment's error.
    """
    from raylaunch import api

    skipped = read_skips(skip_check or [])
    title = deployment or Path(name).stem
    _refuse_to_combine(follow=follow, wait=wait, timeout=timeout, hosts=await_host, adopt=adopt)
    if follow:
        with _following(out, title, address, to_stderr=output is Format.JSON) as view:
            api.follow(
                name,
                set=sets or (),
                deployment=deployment,
                address=address,
                await_hosts=await_host or (),
                on_update=view,
                on_wait=out.note,
                primary=primary,
                skip_checks=skipped,
                dry_run_engine=dry_run_engine,
            )
        return
    with _following(out, title, address, to_stderr=output is Format.JSON) as view:
        handle = api.deploy(
            name,
            set=sets or (),
            deployment=deployment,
            address=address,
            wait=wait,
            timeout=timeout,
            on_update=view,
            primary=primary,
            skip_checks=skipped,
            dry_run_engine=dry_run_engine,
            adopt=adopt,
        )
    if handle.adopted:
        out.note(f"adopted: {handle.name} was running; no server was started")
    _report_start(out, handle.status(), address, output, wait=wait)


def _refuse_to_combine(
    *,
    follow: bool,
    wait: bool,
    timeout: float | None,
    hosts: Sequence[str] | None,
    adopt: bool | None,
) -> None:
    if follow and adopt is False:
        raise typer.BadParameter(
            "--follow follows what runs: a unit that is restarted would stop its service",
            param_hint="--fresh",
        )
    if follow and not wait:
        raise typer.BadParameter("--follow waits without end", param_hint="--no-wait")
    if follow and timeout is not None:
        raise typer.BadParameter("--follow waits without end", param_hint="--timeout")
    if hosts and not follow:
        raise typer.BadParameter("only --follow waits for hosts", param_hint="--await-host")


@contextmanager
def _following(
    out: Output, name: str, address: str | None, *, to_stderr: bool
) -> Iterator[LiveView]:
    from raylaunch.cli.views.live_view import watching

    view = None
    try:
        with watching(out, to_stderr=to_stderr) as view:
            yield view
    except StartUndone as undone:
        _explain_undone(out, name, undone.left)
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        _explain_interrupt(out, name, address, None if view is None else view.last)
        raise typer.Exit(INTERRUPTED) from None


def _explain_undone(out: Output, name: str, left: Sequence[str]) -> None:
    what = f"interrupted: {name} was not started"
    if not left:
        out.to_stderr(["", f"{what}; its embedded Ray cluster was stopped again"])
        return
    resisting = f"{len(left)} processes of its embedded Ray cluster resist: {', '.join(left)}"
    out.to_stderr(["", f"{what}, and {resisting}", f"  stop    raylaunch stop {name}"])


def _explain_interrupt(out: Output, name: str, address: str | None, last: Status | None) -> None:
    from raylaunch.cli.views.status_view import again

    state = f"{name} may be starting: the cluster had not answered yet"
    if last is not None:
        verb = "running" if last.ready_at is not None else "starting"
        state = f"{name} keeps {verb} without this command"
    follow = f"{again('status', name, address)}    or  {again('events', name, address)} -f"
    out.to_stderr(
        [
            "",
            f"interrupted: {state}",
            f"  follow  {follow}",
            f"  stop    {again('stop', name, address)}",
        ]
    )


def _report_start(
    out: Output, status: Status, address: str | None, output: Format, *, wait: bool
) -> None:
    from raylaunch.cli.exit_codes import exit_code
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
