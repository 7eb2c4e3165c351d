"""The verb `plan`: what would run where, without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    from raylaunch.plan.engine_answer import EngineAnswers
    from raylaunch.plan.launch_plan import LaunchPlan


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch plan a2-dual --host 192.0.2.10%enp67s0f0np0 --host 192.0.2.11%enp67s0f0np0
        raylaunch plan a2-dual --set args.max-num-seqs=64 --set env.HCCL_BUFFSIZE=512
        raylaunch plan a3-single -o json
        raylaunch plan local-dual --engine
        """,
    )(plan)


def plan(
    out: Output,
    name: RecipeName,
    host: Hosts = None,
    primary: Primary = None,
    deployment: NameOfNew = None,
    sets: Sets = None,
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Have the vLLM of this machine build the engine configuration, and show it.",
        ),
    ] = False,
    output: PlanOutput = PlanFormat.TABLE,
) -> None:
    """Show what would run where; needs no cluster.

    Every variable and flag is shown with its origin: a line of the recipe, the node, --set, or
    raylaunch and why. Findings go to stderr. Exit code 4: the checks found an error.
    With --engine the model's config.json must be on this machine; no device is opened.
    """
    from raylaunch import api
    from raylaunch.checks.secret_checks import mask_secrets

    loaded, launch_plan, findings = make_plan(out, name, host, primary, deployment, sets)
    answers: EngineAnswers | None = None
    if engine:
        report, refused = api.configure_engine(loaded, launch_plan)
        answers = report.answers
        findings = [*findings, *refused]
    _show_plan(out, mask_secrets(launch_plan), answers, output)
    report_findings(out, findings)


def _show_plan(
    out: Output, launch_plan: LaunchPlan, answers: EngineAnswers | None, output: PlanFormat
) -> None:
    from raylaunch.cli.views.engine_view import engine_lines, engine_values
    from raylaunch.plan.plan_json import plan_to_dict

    values = plan_to_dict(launch_plan)
    if answers is not None:
        values["engine"] = engine_values(answers)
    if output is PlanFormat.JSON:
        out.json(values)
    elif output is PlanFormat.YAML:
        import yaml

        text = yaml.safe_dump(
            values,
            sort_keys=False,
            allow_unicode=True,
            width=10**9,  # never folded: a value stays on one line for grep
        )
        out.line(text.rstrip())
    else:
        from raylaunch.cli.views.plan_view import plan_lines

        out.lines(plan_lines(launch_plan, out.style))
        out.lines(engine_lines(answers or {}, out.style))
