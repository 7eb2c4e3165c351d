"""The verbs that need no cluster: list, show, plan, render."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import (
    Address,
    Format,
    JsonOutput,
    PlanFormat,
    RecipeFormat,
    RecipeName,
    Sets,
    command,
)
from raylaunch.cli.output import Output, table, to_json
from raylaunch.errors import ChecksFailedError

if TYPE_CHECKING:
    from raylaunch.checks.findings import Finding
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.recipe.load import LoadedRecipe

Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="IP%NIC",
        help="A node: its address and network interface; once per node, primary first.",
    ),
]
Primary = Annotated[
    str | None,
    typer.Option(
        "--primary", metavar="IP", help="The node that becomes the primary instead of the first."
    ),
]
Named = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the deployment; by default the recipe's."),
]

EXAMPLE_NET = "192.0.2."
"""Addresses set aside for documentation (RFC 5737); a plan without --host uses them."""


class Render(StrEnum):
    """Forms a plan can be written in."""

    BASH = "bash"
    DOCKER = "docker"
    JSON = "json"


def add_commands(app: typer.Typer) -> None:
    """Register the verbs of this module, in the order of the help."""
    command(
        app,
        name="list",
        examples="""
        raylaunch list
        raylaunch list --running
        raylaunch list -o json
        """,
    )(list_)
    command(
        app,
        examples="""
        raylaunch show a2-dual
        raylaunch show a3-long-context --set args.max-num-seqs=8
        raylaunch show a2-dual > mine.yaml      # a recipe of your own to change
        """,
    )(show)
    command(
        app,
        examples="""
        raylaunch plan a2-dual --host 192.0.2.10%enp67s0f0np0 --host 192.0.2.11%enp67s0f0np0
        raylaunch plan a2-dual --set args.max-num-seqs=64 --set env.HCCL_BUFFSIZE=512
        raylaunch plan a3-single -o json
        """,
    )(plan)
    command(
        app,
        examples="""
        raylaunch render a2-dual --as bash --out scripts --host 192.0.2.10%enp67s0f0np0 --host 192.0.2.11%enp67s0f0np0
        raylaunch render a3-single --as docker --out scripts
        """,
    )(render)


def list_(
    out: Output,
    running: Annotated[
        bool, typer.Option("--running", help="List the deployments on the cluster instead.")
    ] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """List the recipes, or what runs."""
    if running:
        from raylaunch.cli.commands.deployments.deployments import list_running

        return list_running(out, address, output)
    from raylaunch.cli.views.recipe_view import LIST_HEADER, list_row, recipe_summary
    from raylaunch.recipe.catalog import read, recipe_names

    summaries = [recipe_summary(read(name)) for name in recipe_names()]
    if output is Format.JSON:
        return out.json(summaries)
    return out.lines(
        table(
            [list_row(each) for each in summaries], out.style, header=LIST_HEADER, kinds=("name",)
        )
    )


def show(
    out: Output,
    name: RecipeName,
    sets: Sets = None,
    output: Annotated[
        RecipeFormat, typer.Option("--output", "-o", help="Form of the recipe.")
    ] = RecipeFormat.YAML,
) -> None:
    """Print a whole recipe and where each value is from."""
    from raylaunch.cli.views.recipe_view import yaml_lines
    from raylaunch.recipe.catalog import read

    loaded = read(name, sets or [])
    if output is RecipeFormat.JSON:
        values = loaded.recipe.model_dump(mode="json")
        return out.json({"name": loaded.name, "recipe": values, "origins": dict(loaded.origins)})
    return out.lines(yaml_lines(loaded))


def plan(
    out: Output,
    name: RecipeName,
    host: Hosts = None,
    primary: Primary = None,
    deployment: Named = None,
    sets: Sets = None,
    output: Annotated[
        PlanFormat, typer.Option("--output", "-o", help="Form of the plan.")
    ] = PlanFormat.TABLE,
) -> None:
    """Show what would run where; needs no cluster.

    Every variable and flag stands with its origin: a line of the recipe, the node, --set, or raylaunch and why.
    Findings go to stderr. Exit code 4: the checks found an error.
    """
    _, planned, findings = _make(out, name, host, primary, deployment, sets)
    _show_plan(out, planned, output)
    _report(out, findings)


def render(
    out: Output,
    name: RecipeName,
    form: Annotated[
        Render,
        typer.Option("--as", metavar="bash|docker|json", help="What to write."),
    ],
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the files; made when missing.")
    ],
    host: Hosts = None,
    primary: Primary = None,
    deployment: Named = None,
    sets: Sets = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that raylaunch did not render.")
    ] = False,
) -> None:
    """Write the plan as scripts, docker commands or JSON.

    One bash script per server; with --as docker also the container of each node.

    Exit code 4: the checks found an error; the files are written all the same.
    """
    from raylaunch.cli.file_writer import write_files

    loaded, planned, findings = _make(out, name, host, primary, deployment, sets)
    for path in write_files(folder, _files(form, loaded, planned), force=force):
        out.line(str(path))
    _report(out, findings)


def _make(
    out: Output,
    name: str,
    hosts: list[str] | None,
    primary: str | None,
    deployment: str | None,
    sets: list[str] | None,
) -> tuple[LoadedRecipe, LaunchPlan, list[Finding]]:
    from raylaunch import api

    made = api.make_plan(
        name, hosts=hosts or (), primary=primary, deployment=deployment, sets=sets or ()
    )
    if not hosts and made[1].primary.node.ip.startswith(EXAMPLE_NET):
        out.note(
            "note: planned on example addresses; give the real ones with --host IP%NIC, once per node"
        )
    return made


def _show_plan(out: Output, planned: LaunchPlan, output: PlanFormat) -> None:
    from raylaunch.plan.plan_json import plan_to_dict

    if output is PlanFormat.JSON:
        out.json(plan_to_dict(planned))
    elif output is PlanFormat.YAML:
        import yaml

        out.line(
            yaml.safe_dump(
                plan_to_dict(planned), sort_keys=False, allow_unicode=True, width=10**9
            ).rstrip()
        )
    else:
        from raylaunch.cli.views.plan_view import plan_lines

        out.lines(plan_lines(planned, out.style))


def _report(out: Output, findings: list[Finding]) -> None:
    """Write the findings; end with exit code 4 when one is an error."""
    from raylaunch.cli.views.plan_view import finding_lines

    shown = [finding for finding in findings if finding.level == "error" or not out.quiet]
    out.to_stderr(finding_lines(shown, out.error_style))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(ChecksFailedError.exit_code)


def _files(form: Render, loaded: LoadedRecipe, planned: LaunchPlan) -> dict[str, str]:
    if form is Render.JSON:
        from raylaunch.plan.plan_json import plan_to_dict

        return {"plan.json": to_json(plan_to_dict(planned), indent=2) + "\n"}
    from raylaunch.render.script import render_scripts

    if form is Render.BASH:
        return render_scripts(planned)
    from raylaunch.render.container import render_containers

    return {**render_containers(loaded.recipe, planned), **render_scripts(planned)}
