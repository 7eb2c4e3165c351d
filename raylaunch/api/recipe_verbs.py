"""The verbs on recipes: list, plan, check without a cluster, render, import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, merge_settings
from raylaunch.checks.check_all import check_nodes, check_recipe, common_names
from raylaunch.checks.findings import Finding
from raylaunch.deployment import checked_name
from raylaunch.deployment.names import check_primary
from raylaunch.errors import NodeError
from raylaunch.home import home
from raylaunch.plan.engine_answer import EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.host_spec import example_hosts, parse_hosts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import recipe_names
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.recipe_settings import image_versions

if TYPE_CHECKING:
    from raylaunch.importer.import_scripts import Imported

EXAMPLE_NIC = "enp67s0f0np0"
"""Interface of the example addresses, as the vLLM Ascend guide has it."""

RenderForm = Literal["bash", "docker", "json"]


def recipes() -> list[str]:
    """Return the names of the shipped recipes (`raylaunch list`)."""
    return recipe_names()


def make_plan(
    name: RecipeLike,
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    ask_vllm: bool = False,
) -> tuple[LoadedRecipe, LaunchPlan, list[Finding]]:
    """Plan a recipe on given hosts, without a cluster, and check it.

    Args:
        name: Recipe by name or path, or as a value.
        hosts: "IP%NIC", one per server or node; without any, documentation addresses are used
            (for a CPU recipe this machine).
        primary: Address of the host that becomes the primary instead of the first.
        set: Changes to the recipe.
        sets: Deprecated spelling of `set`.
        deployment: Name; by default the recipe's.
        ask_vllm: Ask this machine's vLLM for its flags if the plan is for this machine and the
            answer is not cached.

    Raises:
        RecipeError: the recipe, the name or a host is wrong.
        PlanError: the recipe cannot be laid out on the hosts.
    """
    check_primary(primary)
    loaded = load(name, set=merge_settings(set, sets))
    title = checked_name(deployment or loaded.name)
    nodes = parse_hosts(hosts, shared=not loaded.recipe.hardware.spread)
    if not nodes:
        nodes = default_nodes(loaded.recipe, ask_vllm=ask_vllm)
    return plan_on(loaded, nodes, title, primary)


def plan_on(
    loaded: LoadedRecipe, nodes: Sequence[Facts], deployment: str, primary: str | None
) -> tuple[LoadedRecipe, LaunchPlan, list[Finding]]:
    """Plan a loaded recipe on nodes with these facts, and check it."""
    launch_plan = build_plan(loaded, nodes, deployment=deployment, primary=primary)
    return loaded, launch_plan, check_plan(loaded, nodes, launch_plan)


def check_plan(
    loaded: LoadedRecipe, nodes: Sequence[Facts], launch_plan: LaunchPlan
) -> list[Finding]:
    """Check a recipe and the plan of it on nodes with these facts."""
    # A node that was not probed will run the recipe's own image.
    versions = nodes[0].versions or image_versions(loaded.recipe)
    return [
        *check_recipe(loaded, versions, known=common_names(nodes)),
        *check_nodes(loaded, nodes, launch_plan),
    ]


def dry_run_here(
    nodes: Sequence[Facts], launch_plan: LaunchPlan
) -> tuple[list[Facts], EngineReport]:
    """Have this machine's vLLM build the engine configuration of all servers of a plan.

    Returns:
        The facts with what that vLLM knows, and its answers.
    """
    from raylaunch.node.probe import engine_dry_run
    from raylaunch.node.probe.vllm_flags import merge_answer

    indices = range(len(launch_plan.servers))
    report = engine_dry_run.dry_run(launch_plan, indices, os.environ, home())
    failures = [one for one in report.answers.values() if isinstance(one, ProbeFailure)]
    informed = []
    for facts in nodes:
        known = merge_answer(facts, report.known_flags)
        informed.append(merge_answer(known, failures[0] if failures else None))
    return informed, report


def configure_engine(
    loaded: LoadedRecipe, launch_plan: LaunchPlan
) -> tuple[EngineReport, list[Finding]]:
    """Return what this machine's vLLM makes of a plan, and findings (`raylaunch plan --engine`).

    Raises:
        NodeError: this machine has no vLLM, or not the model.
    """
    from raylaunch.checks.engine.engine_checks import check_engines
    from raylaunch.node.probe.engine_dry_run import has_model
    from raylaunch.node.probe.vllm_question import find

    vllm = find(os.environ, home())
    if vllm is None:
        raise NodeError(
            "this machine has no vLLM to ask",
            todo="run it in the recipe's image, or use `raylaunch check`, which asks the nodes",
        )
    if not has_model(launch_plan.primary):
        raise NodeError(
            f"there is no config.json at {launch_plan.model} on this machine",
            todo="give a folder that has one with --set model.path=DIR (no weights are needed)",
        )
    ips = dict.fromkeys(server.node.ip for server in launch_plan.servers)
    nodes = [Facts(ip, vllm_executable=vllm.executable) for ip in ips]
    informed, report = dry_run_here(nodes, launch_plan)
    for answer in report.answers.values():
        if isinstance(answer, ProbeFailure):
            raise NodeError("vLLM did not answer", why=answer.reason)
    return report, [*check_engines(loaded, informed, launch_plan, report.answers)]


def plan(
    name: RecipeLike,
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    ask_vllm: bool = False,
) -> LaunchPlan:
    """Plan a recipe on given hosts, without a cluster. Arguments and errors as for `make_plan`."""
    _, launch_plan, _ = make_plan(
        name,
        hosts=hosts,
        primary=primary,
        set=merge_settings(set, sets),
        deployment=deployment,
        ask_vllm=ask_vllm,
    )
    return launch_plan


def check(
    name: RecipeLike,
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    ask_vllm: bool = False,
) -> list[Finding]:
    """Check a recipe on given hosts, without a cluster. Arguments and errors as for `make_plan`.

    `preflight` checks it on the nodes of a cluster.
    """
    _, _, findings = make_plan(
        name,
        hosts=hosts,
        primary=primary,
        set=merge_settings(set, sets),
        deployment=deployment,
        ask_vllm=ask_vllm,
    )
    return findings


def render_files(loaded: LoadedRecipe, launch_plan: LaunchPlan, form: RenderForm) -> dict[str, str]:
    """Return a plan as files, name -> text (`raylaunch render`).

    Args:
        loaded: The recipe of the plan, from `load` or `make_plan`.
        launch_plan: The plan.
        form: "bash" for scripts, "docker" for containers that run these scripts, "json".
    """
    if form == "json":
        import json

        from raylaunch.plan.plan_json import plan_to_dict

        text = json.dumps(plan_to_dict(launch_plan), indent=2, ensure_ascii=False)
        return {"plan.json": f"{text}\n"}
    from raylaunch.render.script import render_scripts

    scripts = render_scripts(launch_plan)
    if form == "bash":
        return scripts
    from raylaunch.render.container import render_containers

    return {**render_containers(loaded.recipe, launch_plan), **scripts}


def import_scripts(
    scripts: Mapping[str, str],
    *,
    platform: str | None = None,
    pick: int | None = None,
    beside: Callable[[str, str], str | None] | None = None,
) -> Imported:
    """Make a recipe from launch scripts (`raylaunch import`). Nothing is executed.

    Args:
        scripts: File name -> text: launch scripts, docker run lines, Markdown.
        platform: "ascend-a2", "ascend-a3" or "cpu"; by default it follows from the scripts.
        pick: Which deployment to import, from 1, when the scripts describe several.
        beside: Given a script and a path in it (`--config FILE`, `source FILE`), returns the text
            of that file or None; by default only the given scripts are known.

    Raises:
        RecipeError: the scripts start no server, or describe several deployments.
    """
    from raylaunch.importer.import_scripts import import_scripts as make

    return make(scripts, platform=platform, pick=pick, beside=beside)


def default_nodes(recipe: Recipe, *, ask_vllm: bool) -> list[Facts]:
    """Return this machine for a CPU recipe, documentation addresses for any other."""
    servers = recipe.parallel.servers
    if recipe.hardware.platform == "cpu":
        return [_this_machine(recipe, ask_vllm=ask_vllm)] * servers
    return example_hosts(servers, EXAMPLE_NIC)


def _this_machine(recipe: Recipe, *, ask_vllm: bool) -> Facts:
    from raylaunch.node.probe.node_probe import probe
    from raylaunch.node.probe.vllm_flags import add_known_flags

    seen = probe("127.0.0.1", env=os.environ, npu=False, model_path=recipe.model.path or None)
    vllm = os.environ.get("RAYLAUNCH_VLLM") or seen.vllm_executable
    facts = replace(seen, state_dir=str(home()), vllm_executable=vllm)
    return add_known_flags(facts, os.environ, ask=ask_vllm)
