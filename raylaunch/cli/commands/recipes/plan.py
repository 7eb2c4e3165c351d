"""The verb `plan`: what would run where, without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from raylaunch.cli.command import command
from raylaunch.cli.offline_plan import make_plan, report_findings
from raylaunch.cli.options import (
    Hosts,
    NameOfNew,
    PlanFormat,
    PlanOutput,
    Primary,
    RecipeName,
    Sets,
)
from raylaunch.cli.output import Output

if TYPE_CHECKING:
    from raylaunch.plan.launch_plan import LaunchPlan


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch plan a2-dual --host 192.0.2.10%enp67s0f0np0 --host 192.0.2.11%enp67s0f0np0
        raylaunch plan a2-dual --set args.max-num-seqs=64 --set env.HCCL_BUFFSIZE=512
        raylaunch plan a3-single -o json
        """,
    )(plan)


def plan(
    out: Output,
    name: RecipeName,
    host: Hosts = None,
    primary: Primary = None,
    deployment: NameOfNew = None,
    sets: Sets = None,
    output: PlanOutput = PlanFormat.TABLE,
) -> None:
    """Show what would run where; needs no cluster.

    Every variable and flag is shown with its origin: a line of the recipe, the node, --set, or
    raylaunch and why. Findings go to stderr. Exit code 4: the checks found an error.
    """
    from raylaunch.checks.secret_checks import mask_secrets

    _, launch_plan, findings = make_plan(out, name, host, primary, deployment, sets)
    _show_plan(out, mask_secrets(launch_plan), output)
    report_findings(out, findings)


def _show_plan(out: Output, launch_plan: LaunchPlan, output: PlanFormat) -> None:
    from raylaunch.plan.plan_json import plan_to_dict

    if output is PlanFormat.JSON:
        out.json(plan_to_dict(launch_plan))
    elif output is PlanFormat.YAML:
        import yaml

        text = yaml.safe_dump(
            plan_to_dict(launch_plan),
            sort_keys=False,
            allow_unicode=True,
            width=10**9,  # never folded: a value stays on one line for grep
        )
        out.line(text.rstrip())
    else:
        from raylaunch.cli.views.plan_view import plan_lines

        out.lines(plan_lines(launch_plan, out.style))
