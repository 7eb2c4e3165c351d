"""The verbs around a start: check before it, tune the host for it, clean up what an accident left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import Address, Format, JsonOutput, RecipeName, Sets, command, reasons
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import ChecksFailedError, NodeError

if TYPE_CHECKING:
    from raylaunch.checks.findings import Finding
    from raylaunch.plan.facts import TuningStep
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.supervise.deployment_status import CleanReport, Leftover

TUNE_HEADER = ("SETTING", "WANTED", "FOUND", "STATE")
LEFT_HEADER = ("HOST", "PID", "DEPLOYMENT", "ATTEMPT", "AGE", "COMMAND")
STATES = {"already": "as wanted", "unmet": "differs", "set": "set now", "host": "only on the host"}


def add_commands(app: typer.Typer) -> None:
    """Register the verbs of this module, in the order of the help."""
    command(
        app,
        examples="""
        raylaunch check a2-dual
        raylaunch check a2-dual -o json | jq '.findings[] | select(.level == "error")'
        raylaunch check a2-dual --strict && raylaunch start a2-dual
        raylaunch check local-dual
        """,
    )(check)
    command(
        app,
        examples="""
        raylaunch tune a3-single
        sudo raylaunch tune a3-single --apply
        """,
    )(tune)
    command(
        app,
        examples="""
        raylaunch clean
        raylaunch clean --yes
        raylaunch clean --yes --deployment a2-dual
        """,
    )(clean)


def check(
    out: Output,
    name: RecipeName,
    deployment: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the deployment; by default the recipe's."
        ),
    ] = None,
    address: Address = None,
    sets: Sets = None,
    skip_check: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-check",
            metavar="ID=REASON",
            help="Count this finding as a warning; may be repeated.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End with code 4 for a warning too, unless it is skipped."),
    ] = False,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Check a recipe on the nodes that would run it, and start nothing.

    Reserves the NPUs for a moment, looks from the nodes, and tells all findings at once. A recipe for CPU without a
    cluster is checked on this machine.
    The worst finding gives the exit code: 0 a warning, a note or nothing, for `start` would go on; 4 an error, with
    --strict a warning too that is not skipped. 6: too few NPUs.
    """
    from raylaunch import api
    from raylaunch.checks.findings import LEVELS, worst

    skipped = reasons(skip_check or [])
    planned, found = api.preflight(
        name, sets=sets or (), deployment=deployment, address=address, skip_checks=skipped
    )
    findings = sorted(found, key=lambda one: LEVELS.index(one.level))
    too_strict = strict and worst([one for one in findings if one.id not in skipped]) == "warning"
    if output is Format.JSON:
        out.json(_findings_as_dict(planned, findings))
    else:
        _show_findings(out, planned, findings, too_strict=too_strict)
    if worst(findings) == "error" or too_strict:
        raise typer.Exit(ChecksFailedError.exit_code)


def tune(
    out: Output,
    name: RecipeName,
    apply: Annotated[bool, typer.Option("--apply", help="Set what this user may set.")] = False,
    sets: Sets = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Compare this machine's settings with those that a recipe wants.

    With --apply they are set, until the next boot. A container may set few of them: the rest is said with the command
    for the host. Exit code 11: after --apply something is not as wanted.
    """
    from raylaunch import api

    steps = api.tune(name, sets=sets or (), apply=apply)
    if output is Format.JSON:
        out.json([dataclasses.asdict(step) for step in steps])
    elif not steps:
        out.note(f"{name} wants nothing of the host")
    else:
        out.lines(_tune_lines(steps, out.style))
    if apply and any(step.outcome == "host" for step in steps):
        raise typer.Exit(NodeError.exit_code)


def clean(
    out: Output,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="End and remove what is found.")] = False,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", metavar="NAME", help="Only what is left of this one."),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Find what accidents left behind; end it with --yes.

    Looks on this machine, and on every node of the cluster if there is one, for processes with raylaunch's mark that
    belong to nothing that runs, and for records of embedded clusters that are gone.
    Exit codes: 0 nothing is left, 11 something is.
    """
    from raylaunch import api

    report = api.clean(deployment, address=address, end=yes)
    if output is Format.JSON:
        out.json({**dataclasses.asdict(report), "is_clean": report.is_clean})
    else:
        out.lines(_clean_lines(report, out.style))
        _explain_clean(out, report)
    if not report.is_clean:
        raise typer.Exit(NodeError.exit_code)


def _findings_as_dict(planned: LaunchPlan, findings: Sequence[Finding]) -> dict[str, object]:
    from raylaunch.checks.findings import worst

    return {
        "deployment": planned.deployment,
        "hosts": [server.node.ip for server in planned.servers],
        "worst": worst(list(findings)),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _show_findings(
    out: Output, planned: LaunchPlan, findings: Sequence[Finding], *, too_strict: bool
) -> None:
    from raylaunch.cli.views.plan_view import count, finding_lines

    out.lines(
        finding_lines([one for one in findings if one.level == "error" or not out.quiet], out.style)
    )
    levels: list[str] = [one.level for one in findings]
    told = [count(levels.count(level), level) for level in ("error", "warning")]
    hosts = ", ".join(dict.fromkeys(server.node.ip for server in planned.servers))
    fine = "--strict refuses a warning" if too_strict else "nothing speaks against a start"
    verdict = "`start` would refuse" if "error" in levels else fine
    out.note(f"{planned.deployment} on {hosts}: {', '.join(told)}; {verdict}")


def _tune_lines(steps: Sequence[TuningStep], style: Style) -> Iterator[str]:
    rows = [
        (step.name, step.wanted, step.before or "not there", STATES[step.outcome]) for step in steps
    ]
    yield from table(rows, style, header=TUNE_HEADER, kinds=("name",))
    for step in steps:
        if step.todo:
            yield f"{step.name}: {step.why + '; ' if step.why else ''}{step.todo}"


def _clean_lines(report: CleanReport, style: Style) -> Iterator[str]:
    if report.found:
        yield from table([_left_row(one) for one in report.found], style, header=LEFT_HEADER)
    for name in report.orphaned:
        yield f"agents of {name} hold its NPUs, and its controller is gone"
    for name in report.records:
        yield f"record and folder of the embedded cluster of {name}, which is gone"
    yield from report.undecided


def _left_row(one: Leftover) -> tuple[str, ...]:
    from raylaunch.cli.views.status_view import duration

    return (
        one.host,
        str(one.pid),
        one.deployment,
        str(one.attempt),
        duration(one.age_s),
        one.command,
    )


def _explain_clean(out: Output, report: CleanReport) -> None:
    if not report.asked:
        out.note(
            "no Ray cluster was found, so only this machine was looked at; --address names one"
        )
    for host in report.silent:
        out.note(f"the node {host} did not answer")
    if report.is_clean:
        found = bool(report.found or report.records or report.orphaned)
        out.note("all of it was ended, nothing is left" if found else "nothing is left behind")
    elif report.ended:
        still = ", ".join([f"pid {one.pid} on {one.host}" for one in report.left])
        out.note(
            f"still there: {still or 'see above'}; a process inside a driver call ends only with it"
        )
    else:
        out.note("`raylaunch clean --yes` ends and removes exactly these")
