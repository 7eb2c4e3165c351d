"""Calls a function of raylaunch on nodes of the connected cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.packaging import packaged

NODE_TIMEOUT_S = 60.0
HEAD_RESOURCE = "node:__internal_head__"
"""Ray's resource that only the head has."""


def call_on_nodes(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    timeout_s: float = NODE_TIMEOUT_S,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Call `function` on the nodes, by id; return the answers, and the nodes that gave none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not arguments:
        return {}, ()
    task = ray.remote(packaged(function))
    calls = {}
    for node_id, given in arguments.items():
        on_this_node = task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        calls[on_this_node.remote(*given)] = node_id
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    answers = {}
    for call in done:
        try:
            answers[calls[call]] = ray.get(call)
        except ray.exceptions.RayError:  # the node died, or its worker could not start
            continue
    return answers, tuple(node_id for node_id in arguments if node_id not in answers)


def head_node() -> dict[str, Any] | None:
    """Return Ray's record of the head; None while it has none that is alive."""
    heads = (node for node in alive_nodes() if HEAD_RESOURCE in node["Resources"])
    return next(heads, None)
