"""Refuses deployments that no recipe can hold, with the reason."""

from __future__ import annotations

import math

from raylaunch.errors import RecipeError
from raylaunch.importer.script_model import Reading, Server
from raylaunch.importer.server_groups import Group

_NPUS_A2 = 8
"""NPUs of one Atlas 800 A2 node."""


def refuse_unsupported(reading: Reading, group: Group) -> None:
    """Check that a recipe can hold the deployment.

    Raises:
        RecipeError: It balances its load outside of vLLM, splits the API from the engines, or a
            data-parallel rank of it spans several nodes.
    """
    _refuse_balancing(reading, group)
    _refuse_local_zero(group)
    _refuse_ranks_over_nodes(reading, group)


def _number(server: Server, name: str) -> int | None:
    text = server.value(name) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _refuse_balancing(reading: Reading, group: Group) -> None:
    primary = group.primary
    if primary.flag("data-parallel-size") is None:
        return
    if any(server.flag("data-parallel-hybrid-lb") for server in group.servers):
        raise _balancing("hybrid", "--data-parallel-hybrid-lb", primary)
    external = (
        "data-parallel-rank",
        "data-parallel-external-lb",
        "data-parallel-multi-port-external-lb",
    )
    for server in group.servers:
        flag = next((server.flag(name) for name in external if server.flag(name)), None)
        if flag is not None:
            raise _balancing("external", " ".join(flag.words), server)
    for server in reading.servers:
        # vLLM infers hybrid load balancing from a start rank on a server that has an API.
        start = _number(server, "data-parallel-start-rank") or 0
        same = server.model == primary.model and not server.headless
        sizes = server.value("data-parallel-size") == primary.value("data-parallel-size")
        if start and same and sizes:
            raise _balancing("hybrid", f"--data-parallel-start-rank {start}", server)


def _balancing(kind: str, flag: str, server: Server) -> RecipeError:
    return RecipeError(
        f"this deployment uses {kind} load balancing, which a recipe cannot hold",
        why=f"{server.where} has {flag}: the API of each node or rank serves its own ranks only, "
        "while raylaunch deploys vLLM's internal load balancing, one API for all ranks",
        todo="to deploy it with internal load balancing, take that flag out of the scripts, give "
        "one `vllm serve` per node, make all but the first --headless, and import them again",
    )


def _refuse_local_zero(group: Group) -> None:
    for server in group.servers:
        if _number(server, "data-parallel-size-local") == 0:
            raise RecipeError(
                "this deployment has a node with the API and no engine, which a recipe cannot hold",
                why=f"{server.where} has --data-parallel-size-local 0: its ranks all run on the "
                "other nodes; with raylaunch every server holds parallel.data_local ranks, 1 or "
                "more",
                todo="give that node ranks of its own, or start the API on the node with the ranks",
            )


def _refuse_ranks_over_nodes(reading: Reading, group: Group) -> None:
    primary = group.primary
    nodes = max(_number(server, "nnodes") or 1 for server in group.servers)
    devices = _devices_of_rank(primary)
    if nodes > 1:
        flag = f"--nnodes {nodes}"
        raise _over_nodes(primary, flag, devices, f"{nodes} nodes")
    listed = [*reading.ray_devices]
    visible = primary.env.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is not None and "$" not in visible.value:
        listed.append(len(visible.value.split(",")))
    over_ray = primary.value("distributed-executor-backend") == "ray"
    per_node = max(listed, default=0)
    joined = over_ray and len(reading.ray_nodes) > 1
    if not per_node and joined:
        per_node = _NPUS_A2
    if devices > per_node > 0 and (over_ray or joined):
        flag = "--distributed-executor-backend ray"
        raise _over_nodes(primary, flag, devices, f"{per_node} NPUs per node")


def _devices_of_rank(server: Server) -> int:
    names = ("tensor-parallel-size", "pipeline-parallel-size", "prefill-context-parallel-size")
    return math.prod(_number(server, name) or 1 for name in names)


def _over_nodes(server: Server, flag: str, devices: int, nodes: str) -> RecipeError:
    return RecipeError(
        "a rank of this deployment spans several nodes, which a recipe cannot hold",
        why=f"{server.where} has {flag}: one rank takes {devices} NPUs (tensor x pipeline x "
        f"prefill context) with {nodes}; raylaunch places each data-parallel rank on one node",
        todo="choose sizes whose rank fits one node (--tensor-parallel-size 8 on A2, 16 on A3) "
        "and data parallelism over the nodes, or start it without raylaunch",
    )
