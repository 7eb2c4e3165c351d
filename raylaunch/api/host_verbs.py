"""The verbs on hosts and clusters: check, tune, clean, weights, cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from raylaunch.api.recipe_arguments import (
    RecipeLike,
    Settings,
    load,
    merge_settings,
    starts_embedded,
)
from raylaunch.api.recipe_verbs import (
    check_answers,
    check_plan,
    default_nodes,
    dry_run_here,
    refuse_unknown_group,
)
from raylaunch.checks.check_all import check_recipe
from raylaunch.checks.findings import Finding, refuse_unknown_ids, waive
from raylaunch.deployment import Deployment, checked_name, choose_address, connect_to, find_embedded
from raylaunch.deployment.deployment_records import remove_record
from raylaunch.errors import BusyError, ClusterError, RaylaunchError
from raylaunch.home import home
from raylaunch.plan.deployment_plan import DeploymentPlan, GatewayPlan
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.recipe.load import LoadedRecipe

if TYPE_CHECKING:
    from raylaunch.plan.facts import TuningStep
    from raylaunch.plan.wanted_weights import Hub, WeightsReport
    from raylaunch.runtime.weights.weights_fetch import OnProgress
    from raylaunch.supervise.deployment_status import CleanReport, Status

ALREADY_RUNNING = "already-running"
"""Id of the finding that a checked deployment is running."""


def preflight(
    name: RecipeLike,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    address: str | None = None,
    skip_checks: Mapping[str, str] | None = None,
    group: str | None = None,
) -> tuple[DeploymentPlan, list[Finding]]:
    """Plan and check a recipe where `deploy` would run it, and launch nothing (`raylaunch check`).

    The NPUs are reserved while it lasts. A recipe for CPU without a cluster is checked on this
    machine; no cluster is started. Of a deployment that is running its own plan is returned, with
    the finding "already-running"; its own processes and ports are no findings.

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe.
        sets: Deprecated spelling of `set`.
        deployment: Name; by default the recipe's.
        address: Ray cluster, as for `deploy`.
        skip_checks: Ids of checks whose errors count as warnings, with the reason.
        group: Only this group of the deployment, e.g. "serve-0".

    Raises:
        RaylaunchError: no cluster, too few NPUs, or no plan. What the checks find is no error.
    """
    loaded = load(name, set=merge_settings(set, sets))
    title = checked_name(deployment or loaded.name)
    skipped = skip_checks or {}
    refuse_unknown_ids(skipped)
    refuse_unknown_group(loaded, title, group)
    if starts_embedded(loaded.recipe, address):
        plan, findings = _check_here(loaded, title, group)
    else:
        plan, findings = _check_on_cluster(loaded, title, address, group)
        plan = plan if group is None else plan.only(group)
    return plan, waive(findings, skipped)


def _check_here(
    loaded: LoadedRecipe, title: str, group: str | None
) -> tuple[DeploymentPlan, list[Finding]]:
    from raylaunch.runtime.controller.gateway.gateway_preflight import check_gateway_here
    from raylaunch.runtime.controller.monitoring.tracing_preflight import check_tracing_here

    nodes = default_nodes(loaded, ask_vllm=False)
    running = _find_running_embedded(title)
    if running is not None:
        nodes = [_without_own(node, title) for node in nodes]
    plan = build_deployment_plan(loaded, nodes, deployment=title)
    _create_tiny_model(loaded.recipe.model.tiny, plan.groups[0].model)
    nodes, reports = dry_run_here(loaded, nodes, plan)
    findings = check_plan(loaded, nodes, plan, group)
    asked = plan if group is None else plan.only(group)
    findings += check_answers(loaded, nodes, asked, reports, findings)
    findings += check_gateway_here(loaded, nodes[0])
    findings += check_tracing_here(loaded, nodes[0].ip)
    if running is not None:
        findings.insert(0, running)
    return asked, findings


def _create_tiny_model(kind: Literal["qwen3", "minimax_m2"] | None, path: str) -> None:
    """Create the model that `start` would: the dry run reads its configuration."""
    if kind is not None:
        from raylaunch.node.model.tiny_model import ensure_tiny_model

        ensure_tiny_model(kind, Path(path))


def _find_running_embedded(title: str) -> Finding | None:
    """Return the finding that a deployment runs on its embedded cluster; None if it does not."""
    try:
        if find_embedded(title) is None:
            return None
        connect_to(title, None)
        return _running(title, Deployment(title).status().phase.value)
    except RaylaunchError:
        # A record without a cluster that answers: what is left of it is for the checks to find.
        return None


def _without_own(facts: Facts, deployment: str) -> Facts:
    """Return the facts of a node without the processes and listeners of a running deployment."""
    own = {process.pid for process in facts.marked if process.deployment == deployment}
    return replace(
        facts,
        marked=tuple(process for process in facts.marked if process.pid not in own),
        listeners=tuple(one for one in facts.listeners if one.pid not in own),
    )


def _check_on_cluster(
    loaded: LoadedRecipe, title: str, address: str | None, group: str | None
) -> tuple[DeploymentPlan, list[Finding]]:
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.controller import preflight as room
    from raylaunch.runtime.controller.controller_client import find_controller

    choose_address(address)
    connect(address)
    if find_controller(title) is None:
        return room.preflight(loaded, title, group)
    return _plan_of_running(title, group)


def _plan_of_running(title: str, only: str | None) -> tuple[DeploymentPlan, list[Finding]]:
    """Return the plan of a running deployment. Its NPUs are reserved, so no node can be probed."""
    status = Deployment(title).status()
    phase = status.phase.value
    plans: list[LaunchPlan] = []
    # What equal groups have in common is reported once.
    findings = {_running(title, phase): None}
    for group in status.groups:
        loaded, plan, versions = Deployment(title, group.name).describe()
        if plan is None:
            raise BusyError(
                f"{title} is {phase}, and its own checks have not finished",
                todo=f"`raylaunch status {title}` follows it",
            )
        plans.append(plan)
        if only in (None, group.name):
            findings.update(dict.fromkeys(check_recipe(loaded, versions.get(0, {}))))
    gateway = _gateway_of(status)
    return DeploymentPlan(title, status.recipe, tuple(plans), gateway), list(findings)


def _gateway_of(status: Status) -> GatewayPlan | None:
    """Return the plan of a gateway that runs; None without one."""
    report = status.gateway
    if report is None or not report.nodes:
        return None
    port = urlsplit(report.endpoint).port or 0
    nodes = tuple(node.ip for node in report.nodes)
    return GatewayPlan(report.endpoint, port, nodes, report.policy)


def _running(title: str, phase: str) -> Finding:
    return Finding(
        ALREADY_RUNNING,
        "info",
        f"{title} is running ({phase}); its own processes and ports are no findings",
        f"`raylaunch status {title}` shows it; `start` needs another --name",
    )


def clean(
    deployment: str | None = None, *, address: str | None = None, end: bool = False
) -> CleanReport:
    """Find orphaned processes and the records of embedded clusters that are gone.

    Args:
        deployment: Only what is left of this one.
        address: Ray cluster whose nodes are searched too; by default the one that is found, if any.
        end: Kill and remove what is found, and nothing else.

    Raises:
        ClusterError: the named cluster does not answer.
        RecipeError: no deployment can have this name.
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.controller import orphan_search

    if deployment is not None:
        checked_name(deployment)
    choose_address(address)
    asked = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        connect(address)
    except ClusterError:
        if asked != "auto":
            raise
        asked = ""
    report = orphan_search.clean(home(), asked=asked, deployment=deployment, end=end)
    if end and deployment is not None and report.is_clean:
        remove_record(home(), deployment)
    return report


def tune(
    name: RecipeLike,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    apply: bool = False,
) -> list[TuningStep]:
    """Compare this machine with the host settings of a recipe; with `apply` set what may be set."""
    from raylaunch.node.probe import tuning

    wanted = load(name, set=merge_settings(set, sets)).recipe.tuning
    settings: dict[str, str | int | bool] = {}
    if wanted.governor:
        settings["governor"] = wanted.governor
    settings |= wanted.sysctl
    if wanted.jemalloc:
        settings["jemalloc"] = "installed"
    return tuning.apply(settings) if apply else tuning.compare(settings)


def weights(
    name: RecipeLike,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    address: str | None = None,
    download: bool = False,
    hub: Hub | None = None,
    on_progress: OnProgress | None = None,
) -> WeightsReport:
    """Report a recipe's weights on every node that could hold a server.

    For a recipe for CPU without a cluster, or the address "local", that is this machine.

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe.
        sets: Deprecated spelling of `set`.
        address: Ray cluster, as for `deploy`.
        download: Download what is missing first, once per shared folder, and wait for it.
        hub: Hub to download from; by default the first of the recipe's with a program on the node.
        on_progress: Called about once per second with what is being downloaded.

    Raises:
        RaylaunchError: no node fits, or a download failed (the others were finished).
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.weights import weights_fetch as room

    loaded = load(name, set=merge_settings(set, sets))
    here = starts_embedded(loaded.recipe, address)
    if not here:
        choose_address(address)
        connect(address)
    return room.fetch_weights(
        loaded, here=here, download=download, hub=hub, on_progress=on_progress
    )


def cluster_file(
    name: str,
    *,
    head: str,
    workers: Sequence[str] = (),
    ssh_user: str,
    ssh_key: str | None = None,
    bare: bool = False,
    cluster_name: str | None = None,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
) -> tuple[str, str]:
    """Return the name of a Ray cluster for a recipe, and its file for `ray up`.

    Args:
        name: Recipe by name or path.
        head: Address of the host that runs Ray's head.
        workers: Addresses of the other hosts.
        ssh_user: Login name on every host.
        ssh_key: Path of that user's private key.
        bare: Run Ray directly on the hosts, without the recipe's container.
        cluster_name: Name; by default the recipe's.
        set: Changes to the recipe.

    Raises:
        RecipeError: the recipe or the name is wrong.
        PlanError: the hosts do not fit the recipe.
    """
    from raylaunch.api.recipe_arguments import settings_texts
    from raylaunch.render.ray_cluster import render_cluster

    loaded = load(name, set=set)
    title = checked_name(cluster_name or loaded.name, "a cluster")
    asked = [name]
    for text in settings_texts(set):
        asked += ["--set", text]
    file = render_cluster(
        loaded,
        head=head,
        workers=list(workers),
        ssh_user=ssh_user,
        ssh_key=ssh_key,
        bare=bare,
        name=cluster_name,
        asked=asked,
    )
    return title, file
