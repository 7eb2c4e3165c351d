"""The verb `check`: check a recipe on the nodes that would run it, and start nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import (
    Address,
    Format,
    Group,
    JsonOutput,
    NameOfNew,
    RecipeName,
    Sets,
    SkipChecks,
)
from raylaunch.cli.output import Output
from raylaunch.cli.skip_checks import read_skips
from raylaunch.errors import ChecksFailedError

if TYPE_CHECKING:
    from raylaunch.checks.findings import Finding
    from raylaunch.plan.deployment_plan import DeploymentPlan


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch check a2-dual
        raylaunch check a2-dual -o json | jq '.findings[] | select(.level == "error")'
        raylaunch check a2-dual --strict && raylaunch start a2-dual
        raylaunch check local-dual
        """,
    )(check)


def check(
    out: Output,
    name: RecipeName,
    deployment: NameOfNew = None,
    address: Address = None,
    sets: Sets = None,
    group: Group = None,
    skip_check: SkipChecks = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with code 4 for a warning too, unless it is skipped."),
    ] = False,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Check a recipe on the nodes that would run it; start nothing.

    Reserves the NPUs for a moment, probes the nodes, and reports all findings. A recipe for CPU
    without a cluster is checked on this machine. Of a deployment that is running, its own processes
    and ports are no findings.
    The worst finding gives the exit code: 0 a warning, a note or nothing, for `start` would
    proceed; 4 an error, with --strict a warning too that is not skipped. 6: too few NPUs.
    """
    from raylaunch import api
    from raylaunch.checks.findings import LEVELS, worst

    skipped = read_skips(skip_check or [])
    plan, found = api.preflight(
        name,
        set=sets or (),
        deployment=deployment,
        address=address,
        skip_checks=skipped,
        group=group,
    )
    findings = sorted(found, key=lambda finding: LEVELS.index(finding.level))
    counted = [finding for finding in findings if finding.id not in skipped]
    strict_fails = strict and worst(counted) == "warning"
    if output is Format.JSON:
        out.json(_as_dict(plan, findings))
    else:
        _show(out, plan, findings, strict_fails=strict_fails)
    if worst(findings) == "error" or strict_fails:
        raise typer.Exit(ChecksFailedError.exit_code)


def _as_dict(plan: DeploymentPlan, findings: Sequence[Finding]) -> dict[str, object]:
    from raylaunch.checks.findings import worst

    return {
        "deployment": plan.deployment,
        "hosts": [server.node.ip for server in plan.servers],
        "groups": [group.group for group in plan.groups],
        "worst": worst(list(findings)),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _show(
    out: Output, plan: DeploymentPlan, findings: Sequence[Finding], *, strict_fails: bool
) -> None:
    from raylaunch.cli.views.plan_view import count, finding_lines

    errors = [finding for finding in findings if finding.level == "error"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    out.lines(finding_lines(errors if out.quiet else findings, out.style))
    if errors:
        verdict = "`start` would fail"
    elif strict_fails:
        verdict = "--strict refuses a warning"
    elif any(finding.id == "already-running" for finding in findings):
        verdict = "it is running"
    else:
        verdict = "ready to start"
    counts = f"{count(len(errors), 'error')}, {count(len(warnings), 'warning')}"
    hosts = ", ".join(dict.fromkeys(server.node.ip for server in plan.servers))
    out.note(f"{plan.deployment} on {hosts}: {counts}; {verdict}")
