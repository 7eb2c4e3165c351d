"""Tracing before a start: whether the node of the controller can make spans."""

from __future__ import annotations

from raylaunch.checks.findings import Finding
from raylaunch.checks.monitoring.tracing_checks import check_tracing
from raylaunch.monitoring.otlp import is_installed
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.node_tasks import call_on_nodes, head_node


def preflight_tracing(loaded: LoadedRecipe) -> list[Finding]:
    """Return what is missing on the head of the connected cluster, where the controller runs."""
    head = head_node()
    if loaded.recipe.tracing.endpoint is None or head is None:
        return []
    node_id, ip = str(head["NodeID"]), str(head["NodeManagerAddress"])
    answers, _ = call_on_nodes(is_installed, {node_id: ()})
    # A head that does not answer is a finding of other checks.
    return list(check_tracing(loaded, installed=answers.get(node_id, True), ip=ip))


def check_tracing_here(loaded: LoadedRecipe, ip: str) -> list[Finding]:
    """Return what is missing on this machine, whose address is `ip`."""
    return list(check_tracing(loaded, installed=is_installed(), ip=ip))
