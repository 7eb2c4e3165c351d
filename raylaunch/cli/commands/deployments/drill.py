"""The verb `drill`: break a deployment on purpose and measure its recovery."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, DeploymentOrGroup, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output, table
from raylaunch.errors import LaunchError

if TYPE_CHECKING:
    from raylaunch.supervise.drills import Outcome

HEADER = (
    "FAULT",
    "DETECTED",
    "RECOVERED",
    "OWN START",
    "BEYOND",
    "FAILED",
    "ADOPTED",
    "LEFT",
    "DETECTED BY",
)


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
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
    name: DeploymentOrGroup,
    group: Group = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="FAULT",
            help="Only this fault (may be repeated); by default all that affect only NAME.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Break a deployment on purpose and measure its recovery.

    One fault at a time: kill-engine, kill-headless, kill-primary, stop-headless (a hang),
    kill-agent, kill-guard, kill-controller, steal-port; only when named also cut-node, and
    kill-raylet, kill-gcs, kill-ray, restart-ray, where something starts Ray again. Requests wait
    in the gateway while the deployment restarts; without a gateway they fail. Its restart budget
    is not touched. Times in seconds: until the failure was detected, until the service was ready
    again, the servers' own start within that time, and the rest.
    Exit codes: 0 all recovered, 7 one did not, 10 not ready.
    """
    _refuse_unknown(fault or [])
    _confirm(name, yes=yes)
    from raylaunch import api

    def report(outcome: Outcome) -> None:
        out.note(_line(outcome))

    outcomes = api.drill(target(name, group), fault or (), address=address, on_outcome=report)
    if output is Format.JSON:
        out.json([as_dict(outcome) for outcome in outcomes])
    else:
        rows = [_row(outcome) for outcome in outcomes]
        out.lines(table(rows, out.style, header=HEADER, kinds=("name",)))
    failed = [outcome for outcome in outcomes if outcome.problem]
    if failed:
        raise LaunchError(
            f"{name} did not pass the drill",
            evidence="\n".join(f"{outcome.fault}: {outcome.problem}" for outcome in failed),
            todo=f"`raylaunch events {name}` shows what happened when",
        )


def as_dict(outcome: Outcome) -> dict[str, object]:
    """Return an outcome as it is written to JSON."""
    return {**dataclasses.asdict(outcome), "beyond_s": outcome.beyond_s}


def _refuse_unknown(names: Sequence[str]) -> None:
    from raylaunch.supervise.drills import FAULTS

    known = [fault.name for fault in FAULTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"there is no fault {unknown[0]!r}; choose from {', '.join(known)}",
            param_hint="--fault",
        )


def _confirm(name: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "a drill makes requests fail; without a terminal to ask on, give --yes",
            param_hint="--yes",
        )
    question = f"The servers of {name} will be killed and restarted several times. Continue?"
    typer.confirm(question, abort=True, err=True)


def _line(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"{outcome.fault}: skipped: {outcome.skipped}"
    if outcome.recovery_s is None:
        return f"{outcome.fault}: {outcome.what}: {outcome.problem}"
    return f"{outcome.fault}: {outcome.what}: recovered after {outcome.recovery_s:.1f} s"


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.skipped:
        dashes = ["-"] * (len(HEADER) - 2)
        return (outcome.fault, *dashes, f"skipped: {outcome.skipped}")
    detected_by = outcome.detected_by
    if outcome.problem:
        detected_by += f"; {outcome.problem}"
    return (
        outcome.fault,
        _seconds(outcome.detection_s),
        _seconds(outcome.recovery_s),
        _seconds(outcome.start_s),
        _seconds(outcome.beyond_s),
        f"{outcome.failed} of {outcome.requests}",
        "yes" if outcome.adopted else "no",
        str(len(outcome.left)),
        detected_by,
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
