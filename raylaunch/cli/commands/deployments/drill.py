"""The verb that breaks a deployment on purpose and measures how it comes back: drill."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.cli.command import Address, DeploymentName, Format, JsonOutput, command
from raylaunch.cli.output import Output, table
from raylaunch.errors import LaunchError

if TYPE_CHECKING:
    from raylaunch.supervise.drills import Outcome

HEADER = ("FAULT", "DETECTED", "RECOVERED", "OWN START", "BEYOND", "FAILED", "LEFT", "DETECTED BY")


def add_commands(app: typer.Typer) -> None:
    """Register the verb of this module."""
    command(
        app,
        examples="""
        raylaunch drill a2-dual
        raylaunch drill a2-dual --fault kill-engine --fault kill-controller --yes
        raylaunch drill local-dual --yes -o json
        """,
    )(drill)


def drill(
    out: Output,
    name: DeploymentName,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="FAULT",
            help="Only this fault (may be repeated); by default all that hit only NAME.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Break a deployment on purpose and measure its recovery.

    One fault at a time: kill-engine, kill-headless, kill-primary, stop-headless (a hang), kill-agent, kill-guard,
    kill-controller, steal-port; only when named also kill-raylet and cut-node. Requests fail while the deployment
    restarts. Its restart budget is not touched. Times in seconds: until the failure was noticed, until the service was
    ready again, what the servers' own start took of that, and the rest.
    Exit codes: 0 all recovered, 7 one did not, 10 not ready.
    """
    _check_names(fault or [])
    _confirm(name, yes=yes)
    from raylaunch import api

    def tell(outcome: Outcome) -> None:
        out.note(_line(outcome))

    outcomes = api.drill(name, fault or (), address=address, on_outcome=tell)
    if output is Format.JSON:
        out.json([as_dict(outcome) for outcome in outcomes])
    else:
        out.lines(
            table(
                [_row(outcome) for outcome in outcomes], out.style, header=HEADER, kinds=("name",)
            )
        )
    if problems := [
        f"{outcome.fault}: {outcome.problem}" for outcome in outcomes if outcome.problem
    ]:
        raise LaunchError(
            f"{name} did not come through the drill as it should",
            evidence="\n".join(problems),
            todo=f"`raylaunch events {name}` shows what happened when",
        )


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is written to JSON."""
    return {**dataclasses.asdict(outcome), "beyond_s": outcome.beyond_s}


def _check_names(names: Sequence[str]) -> None:
    from raylaunch.supervise.drills import FAULTS

    known = [fault.name for fault in FAULTS]
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(
            f"there is no fault {unknown[0]!r}; choose from {', '.join(known)}",
            param_hint="--fault",
        )


def _confirm(name: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "a drill makes requests fail; without a terminal to ask on, say so", param_hint="--yes"
        )
    typer.confirm(
        f"The servers of {name} will be killed and started again, several times. Go on?",
        abort=True,
        err=True,
    )


def _line(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"{outcome.fault}: not done: {outcome.skipped}"
    if outcome.recovery_s is None:
        return f"{outcome.fault}: {outcome.what}: {outcome.problem}"
    return f"{outcome.fault}: {outcome.what}: recovered after {outcome.recovery_s:.1f} s"


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.skipped:
        return (outcome.fault, "-", "-", "-", "-", "-", "-", f"not done: {outcome.skipped}")
    times = (outcome.detection_s, outcome.recovery_s, outcome.start_s, outcome.beyond_s)
    told = f"{outcome.detected_by}; {outcome.problem}" if outcome.problem else outcome.detected_by
    counts = (f"{outcome.failed} of {outcome.requests}", str(len(outcome.left)))
    return (outcome.fault, *(_seconds(one) for one in times), *counts, told)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
