"""The verbs on recipes: list, plan, check without a cluster, render, import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, merge_settings
from raylaunch.checks.check_all import check_deployment
from raylaunch.checks.findings import Finding
from raylaunch.deployment import checked_name
from raylaunch.deployment.names import check_primary
from raylaunch.errors import NodeError, RecipeError
from raylaunch.home import home
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.engine_answer import EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.host_spec import example_hosts, parse_hosts
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.plan.wanted_weights import shorten
from raylaunch.recipe.catalog import recipe_names
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe

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
    group: str | None = None,
) -> tuple[LoadedRecipe, DeploymentPlan, list[Finding]]:
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
        group: Only this group of the deployment, e.g. "serve-0". It is planned among the others.

    Raises:
        RecipeError: the recipe, the name or a host is wrong.
        PlanError: the recipe cannot be laid out on the hosts.
    """
    check_primary(primary)
    loaded = load(name, set=merge_settings(set, sets))
    title = checked_name(deployment or loaded.name)
    refuse_unknown_group(loaded, title, group)
    groups = expand_groups(loaded)
    nodes = parse_hosts(hosts, shared=len(groups) > 1 or not loaded.recipe.hardware.spread)
    if not nodes:
        nodes = default_nodes(loaded, ask_vllm=ask_vllm)
    return plan_on(loaded, nodes, title, primary, group)


def refuse_unknown_group(loaded: LoadedRecipe, deployment: str, group: str | None) -> None:
    """Refuse a group that the recipe does not have.

    Raises:
        RecipeError: `group` is not None and not one of its groups.
    """
    known = [spec.name for spec in expand_groups(loaded)]
    if group is None or group in known:
        return
    raise RecipeError(
        f"{deployment} has no group {group!r}", todo=f"its groups are {shorten(known, 20)}"
    )


def plan_on(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    deployment: str,
    primary: str | None,
    group: str | None = None,
) -> tuple[LoadedRecipe, DeploymentPlan, list[Finding]]:
    """Plan a loaded recipe on nodes with these facts, and check it."""
    plan = build_deployment_plan(loaded, nodes, deployment=deployment, primary=primary)
    findings = check_plan(loaded, nodes, plan, group)
    return loaded, plan if group is None else plan.only(group), findings


def check_plan(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: DeploymentPlan,
    group: str | None = None,
) -> list[Finding]:
    """Check a recipe and the plan of it on nodes with these facts; of one group alone if named."""
    return list(check_deployment(loaded, nodes, plan, only=group))


def dry_run_here(
    loaded: LoadedRecipe, nodes: Sequence[Facts], plan: DeploymentPlan
) -> tuple[list[Facts], dict[str, EngineReport]]:
    """Have this machine's vLLM build the engine configuration of all servers of a plan.

    Equal groups get one answer: they differ in addresses, ports and devices only.

    Returns:
        The facts with what that vLLM knows, and its answers by group.
    """
    from raylaunch.node.probe import engine_dry_run
    from raylaunch.node.probe.vllm_flags import merge_answer

    kinds = {spec.name: id(spec.loaded) for spec in expand_groups(loaded)}
    by_kind: dict[int, EngineReport] = {}
    for group in plan.groups:
        kind = kinds[group.group]
        if kind not in by_kind:
            indices = range(len(group.servers))
            by_kind[kind] = engine_dry_run.dry_run(group, indices, os.environ, home())
    informed = list(nodes)
    for report in by_kind.values():
        failures = [one for one in report.answers.values() if isinstance(one, ProbeFailure)]
        known = [merge_answer(facts, report.known_flags) for facts in informed]
        informed = [merge_answer(facts, failures[0] if failures else None) for facts in known]
    return informed, {group.group: by_kind[kinds[group.group]] for group in plan.groups}


def check_answers(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: DeploymentPlan,
    reports: Mapping[str, EngineReport],
    found: Sequence[Finding] = (),
) -> list[Finding]:
    """Return what the dry runs of all groups found, beside what the other checks `found`."""
    from raylaunch.checks.engine.engine_checks import check_engines

    recipes = {spec.name: spec.loaded for spec in expand_groups(loaded)}
    findings: dict[Finding, None] = {}
    for group in plan.groups:
        answers = reports[group.group].answers
        own = check_engines(recipes[group.group], nodes, group, answers, found)
        findings.update(dict.fromkeys(own))
    return list(findings)


def configure_engine(
    loaded: LoadedRecipe, plan: DeploymentPlan
) -> tuple[dict[str, EngineReport], list[Finding]]:
    """Return what this machine's vLLM makes of a plan, and findings (`raylaunch plan --engine`).

    Returns:
        The answers by group ("serve-0"), and findings.

    Raises:
        NodeError: this machine has no vLLM, or not the model.
    """
    from raylaunch.node.probe.engine_dry_run import has_model
    from raylaunch.node.probe.vllm_question import find

    vllm = find(os.environ, home())
    if vllm is None:
        raise NodeError(
            "this machine has no vLLM to ask",
            todo="run it in the recipe's image, or use `raylaunch check`, which asks the nodes",
        )
    if not has_model(plan.primary):
        raise NodeError(
            f"there is no config.json at {plan.groups[0].model} on this machine",
            todo="give a folder that has one with --set model.path=DIR (no weights are needed)",
        )
    ips = dict.fromkeys(server.node.ip for server in plan.servers)
    nodes = [Facts(ip, vllm_executable=vllm.executable) for ip in ips]
    informed, reports = dry_run_here(loaded, nodes, plan)
    for report in reports.values():
        for answer in report.answers.values():
            if isinstance(answer, ProbeFailure):
                raise NodeError("vLLM did not answer", why=answer.reason)
    return reports, check_answers(loaded, informed, plan, reports)


def plan(
    name: RecipeLike,
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    ask_vllm: bool = False,
    group: str | None = None,
) -> DeploymentPlan:
    """Plan a recipe on given hosts, without a cluster. Arguments and errors as for `make_plan`."""
    _, launch_plan, _ = make_plan(
        name,
        hosts=hosts,
        primary=primary,
        set=merge_settings(set, sets),
        deployment=deployment,
        ask_vllm=ask_vllm,
        group=group,
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
    group: str | None = None,
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
        group=group,
    )
    return findings


def render_files(
    loaded: LoadedRecipe, launch_plan: DeploymentPlan, form: RenderForm
) -> dict[str, str]:
    """Return a plan as files, name -> text (`raylaunch render`).

    Args:
        loaded: The recipe of the plan, from `load` or `make_plan`.
        launch_plan: The plan.
        form: "bash" for scripts, "docker" for containers that run these scripts, "json".
    """
    if form == "json":
        import json

        from raylaunch.plan.plan_json import deployment_plan_to_dict

        text = json.dumps(deployment_plan_to_dict(launch_plan), indent=2, ensure_ascii=False)
        return {"plan.json": f"{text}\n"}
    from raylaunch.render.script import render_scripts

    scripts = render_scripts(launch_plan)
    if form == "bash":
        return scripts
    from raylaunch.render.container import render_containers

    return {**render_containers(loaded, launch_plan), **scripts}


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


def default_nodes(loaded: LoadedRecipe, *, ask_vllm: bool) -> list[Facts]:
    """Return this machine for a CPU recipe, documentation addresses for any other."""
    groups = expand_groups(loaded)
    if loaded.recipe.hardware.platform == "cpu":
        servers = sum(group.loaded.recipe.parallel.servers for group in groups)
        return [_this_machine(loaded.recipe, ask_vllm=ask_vllm)] * servers
    return example_hosts(_example_count(groups), EXAMPLE_NIC)


def _example_count(groups: Sequence[GroupSpec]) -> int:
    """Return one host per server for one group, else as many as the groups need."""
    if len(groups) == 1:
        return groups[0].loaded.recipe.parallel.servers
    return nodes_needed(groups)


def _this_machine(recipe: Recipe, *, ask_vllm: bool) -> Facts:
    from raylaunch.node.probe.node_probe import probe
    from raylaunch.node.probe.vllm_flags import add_known_flags

    seen = probe("127.0.0.1", env=os.environ, npu=False, model_path=recipe.model.path or None)
    vllm = os.environ.get("RAYLAUNCH_VLLM") or seen.vllm_executable
    facts = replace(seen, state_dir=str(home()), vllm_executable=vllm)
    return add_known_flags(facts, os.environ, ask=ask_vllm)
