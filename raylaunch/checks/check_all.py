"""All checks, run together: they yield every finding, not only the first.

Each check is a small generator. Checks of the recipe alone are in `recipe_checks`,
`variable_checks` and `secret_checks`; checks of one probed machine in `node_checks`, of the
machines together in `group_checks`, of the NPUs' own network in `link_checks`. The results of
connections and pings between machines are judged by `reach_checks` and `ping_checks`, what the
nodes' own vLLM makes of the servers by `engine.engine_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from raylaunch.checks.board_checks import check_boards, check_image, check_pairs
from raylaunch.checks.check_context import build_context
from raylaunch.checks.fallback.fallback_checks import check_fallbacks
from raylaunch.checks.findings import Finding
from raylaunch.checks.flag_checks import FLAG_CHECKS
from raylaunch.checks.gateway.gateway_checks import check_gateway_keys
from raylaunch.checks.group_checks import GROUP_CHECKS, check_shared_nodes
from raylaunch.checks.link_checks import LINK_CHECKS
from raylaunch.checks.network_checks import NETWORK_CHECKS
from raylaunch.checks.node_checks import NODE_CHECKS
from raylaunch.checks.port_checks import PORT_CHECKS
from raylaunch.checks.recipe_checks import (
    RECIPE_CHECKS,
    check_additional_config,
    check_flags,
    check_flashcomm1,
)
from raylaunch.checks.secret_checks import check_open_api, check_secrets
from raylaunch.checks.variable_checks import VARIABLE_CHECKS, check_variable_names
from raylaunch.checks.weight_checks import WEIGHT_CHECKS
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.facts import Facts
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import Versions, image_versions

_CONTEXT_CHECKS = (
    *NODE_CHECKS,
    *WEIGHT_CHECKS,
    *GROUP_CHECKS,
    *PORT_CHECKS,
    *NETWORK_CHECKS,
    *LINK_CHECKS,
    *FLAG_CHECKS,
    check_boards,
    check_pairs,
    check_open_api,
)


def check_recipe(
    loaded: LoadedRecipe, versions: Versions, *, known: KnownFlags | None = None
) -> Iterator[Finding]:
    """Yield what is wrong with the recipe itself.

    Args:
        loaded: The recipe with the origin of each value.
        versions: Versions of the nodes (`Facts.versions`), empty while they are unknown: a check
            that depends on a version then assumes the one it matters for.
        known: The names that the vLLM of the nodes knows (`common_names`). Then `check_nodes`
            judges flags by those, variables and keys are judged by them here, and raylaunch's lists
            do not count.
    """
    own = (check_secrets, check_image, check_gateway_keys)
    for check in (*RECIPE_CHECKS, *VARIABLE_CHECKS, *own):
        yield from check(loaded)
    yield from check_flashcomm1(loaded, versions)
    yield from check_variable_names(loaded, versions, known)
    yield from check_additional_config(loaded, known)
    if known is None:
        yield from check_flags(loaded, versions)


def check_deployment(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: DeploymentPlan,
    *,
    only: str | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with a recipe, and with the nodes for the plan of all its groups.

    What equal groups have in common is reported once.

    Args:
        loaded: The recipe with the origin of each value.
        nodes: Facts that the plan was built from.
        plan: The plan.
        only: Check this group alone, among the others.

    Raises:
        RecipeError: See `expand_groups`.
    """
    known = common_names(nodes)
    findings: dict[Finding, None] = {}
    for spec, group in zip(expand_groups(loaded), plan.groups, strict=True):
        if only is not None and spec.name != only:
            continue
        siblings = [one for one in plan.groups if one is not group]
        # A node that was not probed will run the recipe's own image.
        versions = nodes[0].versions or image_versions(spec.loaded.recipe)
        findings.update(dict.fromkeys(check_recipe(spec.loaded, versions, known=known)))
        findings.update(dict.fromkeys(check_nodes(spec.loaded, nodes, group, siblings)))
        context = build_context(spec.loaded, nodes, group, siblings)
        findings.update(dict.fromkeys(check_shared_nodes(context)))
    findings.update(dict.fromkeys(check_fallback_recipes(loaded, nodes[0].versions, known=known)))
    yield from findings


def check_fallback_recipes(
    loaded: LoadedRecipe, versions: Versions, *, known: KnownFlags | None = None
) -> Iterator[Finding]:
    """Yield what is known of the recipes under `fallback`; arguments as for `check_recipe`."""

    def judge(fallback: LoadedRecipe) -> Iterator[Finding]:
        own = versions or image_versions(fallback.recipe)
        for spec in expand_groups(fallback):
            yield from check_recipe(spec.loaded, own, known=known)

    yield from dict.fromkeys(check_fallbacks(loaded, judge))


def common_names(nodes: Sequence[Facts]) -> KnownFlags | None:
    """Return the names that every node's vLLM knows; None while one of them was not asked."""
    reports = [node.known_flags for node in nodes]
    first = reports[0] if reports else None
    if first is None or None in reports:
        return None
    others = [report for report in reports[1:] if report is not None and report != first]
    variables = set(first.variables).intersection(*(one.variables for one in others))
    keys = set(first.config_keys).intersection(*(one.config_keys for one in others))
    return replace(first, variables=tuple(sorted(variables)), config_keys=tuple(sorted(keys)))


def check_nodes(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    others: Sequence[LaunchPlan] = (),
) -> Iterator[Finding]:
    """Yield what is wrong with the nodes for this plan.

    What was not probed is not judged; a probe that failed is a finding.

    Args:
        loaded: The recipe with the origin of each value.
        nodes: Facts that the plan was built from.
        plan: The plan.
        others: Plans of the deployment's other groups, and of the cluster's other deployments.
    """
    context = build_context(loaded, nodes, plan, others)
    findings = (finding for check in _CONTEXT_CHECKS for finding in check(context))
    # Two servers on one machine give the same findings: each is reported once.
    yield from dict.fromkeys(findings)
