"""The plan behind `plan` and `render`, and how its findings are reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from raylaunch.cli.output import Output
from raylaunch.errors import ChecksFailedError

if TYPE_CHECKING:
    from raylaunch.checks.findings import Finding
    from raylaunch.plan.deployment_plan import DeploymentPlan
    from raylaunch.recipe.load import LoadedRecipe

EXAMPLE_NET = "192.0.2."
"""Addresses set aside for documentation (RFC 5737); a plan without --host uses them."""


def make_plan(
    out: Output,
    name: str,
    hosts: list[str] | None,
    primary: str | None,
    deployment: str | None,
    sets: list[str] | None,
    group: str | None = None,
) -> tuple[LoadedRecipe, DeploymentPlan, list[Finding]]:
    """Plan a recipe on the given hosts, and note when the addresses are examples.

    Raises:
        RecipeError: the recipe, a host, the name or the group is wrong.
        PlanError: the recipe cannot be laid out on the hosts.
    """
    from raylaunch import api

    loaded, plan, findings = api.make_plan(
        name,
        hosts=hosts or (),
        primary=primary,
        deployment=deployment,
        set=sets or (),
        group=group,
    )
    if not hosts and plan.primary.node.ip.startswith(EXAMPLE_NET):
        out.note(
            "note: planned on example addresses; "
            "give the real ones with --host IP%NIC, once per node"
        )
    return loaded, plan, findings


def report_findings(out: Output, findings: list[Finding]) -> None:
    """Write the findings to stderr; exit with code 4 when one is an error."""
    from raylaunch.cli.views.plan_view import finding_lines

    errors = [finding for finding in findings if finding.level == "error"]
    out.to_stderr(finding_lines(errors if out.quiet else findings, out.error_style))
    if errors:
        raise typer.Exit(ChecksFailedError.exit_code)
