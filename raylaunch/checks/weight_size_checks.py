"""Checks of the weights' sizes: divisible by the parallel sizes, small enough, loaded in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.group_checks import memory_share
from raylaunch.checks.recipe_checks import is_moe
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import WEIGHT_SUFFIXES

NOT_LOADED = 0.9
"""Share of a checkpoint that is certainly loaded into the NPUs' memory.

Layers for multi-token prediction, vision towers and the like may stay out (2 % of DeepSeek-V3).
"""
_MIB = 2**20


def check_heads(context: CheckContext) -> Iterator[Finding]:
    """Find numbers of heads that tensor parallelism does not divide.

    In vLLM each tensor-parallel worker has the same number of heads; key-value heads may also be
    repeated.
    """
    tensor = context.recipe.parallel.tensor
    # All nodes have the same model (check_same_weights), so the first one suffices.
    for _, weights in loadable_weights(context)[:1]:
        dimensions = _dimensions(weights)
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = dimensions.get(name)
            if isinstance(heads, int) and heads > 0 and not _divides(name, heads, tensor):
                yield Finding(
                    id="heads",
                    level="error",
                    what=(
                        f"the model has {name}={heads}, which tensor parallelism {tensor} does "
                        f"not divide"
                    ),
                    todo=f"set parallel.tensor to a divisor of {heads}",
                    where=context.loaded.origin("parallel.tensor"),
                    seen=f"{heads} % {tensor}",
                )


def check_layer_sizes(context: CheckContext) -> Iterator[Finding]:
    """Find feed-forward layers that cannot be split evenly: vLLM refuses them.

    A warning, because a model may not use the size.
    """
    for _, weights in loadable_weights(context)[:1]:
        dimensions = _dimensions(weights)
        for name, count in _split_counts(context, dimensions).items():
            size = dimensions.get(name)
            if isinstance(size, int) and size > 0 and size % count:
                yield Finding(
                    id="layer-size",
                    level="warning",
                    what=(
                        f"the model has {name}={size}, which cannot be split evenly over {count} "
                        f"workers"
                    ),
                    todo=(
                        f"set the parallel sizes so that {size} can be divided by {count}, "
                        f"or parallel.expert=true"
                    ),
                    where=context.loaded.origin("parallel.tensor"),
                    seen=f"{size} % {count}",
                )


def _split_counts(context: CheckContext, dimensions: dict[str, Any]) -> dict[str, int]:
    """Return over how many workers each size is split.

    Experts without expert parallelism are split over all tensor- and data-parallel workers
    (vLLM 0.32 fused_moe/config.py:1341).
    """
    parallel = context.recipe.parallel
    all_workers = parallel.tensor * parallel.data * parallel.prefill_context
    if _has_experts(dimensions) and "moe_intermediate_size" not in dimensions:
        # Such a model has the size of its experts under the general name.
        return {} if parallel.expert else {"intermediate_size": all_workers}
    counts = {"intermediate_size": parallel.tensor}
    if not parallel.expert:
        counts["moe_intermediate_size"] = all_workers
    return counts


def check_dense_ranks(context: CheckContext) -> Iterator[Finding]:
    """Report data parallelism of a dense model: its ranks need no collective, so may be replicas.

    vLLM treats such ranks as independent engines behind one API (0.32 v1/engine/core.py:1478), and
    refuses to run them behind separate ones ("Non-MoE models do not support external data parallel
    mode", engine/arg_utils.py:2421).
    """
    parallel = context.recipe.parallel
    if parallel.data == 1:
        return
    for _, weights in loadable_weights(context)[:1]:
        dimensions = _dimensions(weights)
        # A config without the sizes of its layers was not understood.
        if "num_attention_heads" not in dimensions or _has_experts(dimensions):
            continue
        # Weights of another model than the recipe's are a finding of their own.
        is_wanted = weights.model_type == (context.recipe.model.type or weights.model_type)
        if not is_wanted or is_moe(weights.model_type or ""):
            continue
        yield Finding(
            id="dense-data-parallel",
            level="info",
            what=(
                f"the model is dense: its {parallel.data} data-parallel ranks need no collective, "
                "and still all restart when one fails"
            ),
            todo=(
                f"parallel.replicas={parallel.data} with parallel.data=1 makes groups that fail "
                "and restart one by one"
            ),
            where=context.loaded.origin("parallel.data"),
            seen=weights.model_type or "no experts",
        )


def check_fits_npus(context: CheckContext) -> Iterator[Finding]:
    """Find weights that do not fit into the NPUs' memory, by the least an NPU must hold.

    With expert parallelism experts are distributed over all NPUs, the rest is repeated.
    """
    if context.plan.platform == "cpu":
        return
    parallel = context.recipe.parallel
    parts = parallel.tensor * parallel.pipeline
    if parallel.expert:
        parts *= parallel.data * parallel.prefill_context
    for node, weights in loadable_weights(context):
        needed = NOT_LOADED * _tensor_bytes(weights) * _cast_factor(weights) / parts
        smallest_mb = min((npu.hbm_total_mb for npu in node.facts.npus), default=0)
        available = smallest_mb * _MIB * memory_share(context)
        if 0 < available < needed:
            yield Finding(
                id="weights-too-big",
                level="error",
                what=(
                    f"the weights take at least {_gib(needed)} of each NPU of node {node.name}, "
                    f"and the servers may use {_gib(available)}"
                ),
                todo=(
                    "use quantised weights, or more NPUs (parallel.tensor; parallel.data with "
                    "parallel.expert)"
                ),
                where=node.facts.ip,
                seen=_gib(weights.total_bytes),
            )


def check_memory(context: CheckContext) -> Iterator[Finding]:
    """Find too little host memory for the weights.

    On CPU they stay there, once per server and rank; on the way to NPUs they only pass through the
    page cache. Each tensor-parallel worker reads all shards: what the page cache cannot hold, each
    reads from the disk again.
    """
    for node, weights in loadable_weights(context):
        available = node.facts.memory_available
        size = _tensor_bytes(weights)
        if not available or not size:
            continue
        if context.plan.platform == "cpu":
            ranks = sum(len(server.ranks) for server in node.servers)
            needed = size * _cast_factor(weights) * ranks
            if available < needed:
                yield _too_little_memory(node, needed)
        elif available < size and context.recipe.parallel.tensor > 1:
            yield _repeated_reads(context, node, size)


def _too_little_memory(node: Node, needed: float) -> Finding:
    available = _gib(node.facts.memory_available)
    return Finding(
        id="memory-small",
        level="error",
        what=(
            f"node {node.name} has {available} of memory available, "
            f"and its servers load {_gib(needed)}"
        ),
        todo="stop other processes that use the memory, or place fewer servers on the node",
        where=node.facts.ip,
        seen=_memory_seen(node),
    )


def _repeated_reads(context: CheckContext, node: Node, size: int) -> Finding:
    available = _gib(node.facts.memory_available)
    workers = context.recipe.parallel.tensor
    return Finding(
        id="memory-small",
        level="warning",
        what=(
            f"node {node.name} has {available} of memory available, and the weights are "
            f"{_gib(size)}: each of the {workers} workers will read them from the disk for itself"
        ),
        todo="free memory on that node, or expect a long load (timeouts.start)",
        where=node.facts.ip,
        seen=_memory_seen(node),
    )


def _memory_seen(node: Node) -> str:
    available = _gib(node.facts.memory_available)
    total = _gib(node.facts.memory_total)
    return f"{available} available of {total}"


def check_load_time(context: CheckContext) -> Iterator[Finding]:
    """Report how long the nodes take to read weights from a network file system.

    All nodes read at the same time, at a start as in the probe, so the measured speed is that of a
    shared file server.
    """
    for node, weights in loadable_weights(context):
        size = _tensor_bytes(weights)
        if not weights.read_rate or not size:
            continue
        seconds = size / weights.read_rate
        level: Level = "info"
        todo = ""
        if seconds > context.recipe.timeouts.start:
            level = "warning"
            todo = "copy them to a local disk on each node, or raise timeouts.start"
        yield Finding(
            id="weights-on-network",
            level=level,
            what=(
                f"node {node.name} reads its weights from {weights.filesystem} at "
                f"{_speed(weights.read_rate)}: {_gib(size)} in about {_duration(seconds)}"
            ),
            todo=todo,
            where=node.facts.ip,
            seen=f"{weights.read_rate:.0f} B/s",
        )


WEIGHT_SIZE_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_heads,
    check_layer_sizes,
    check_dense_ranks,
    check_fits_npus,
    check_memory,
    check_load_time,
)


def loadable_weights(context: CheckContext) -> list[tuple[Node, Weights]]:
    """Return the nodes whose weights can be judged.

    A tiny model is made at the start and is always right.
    """
    if context.recipe.model.tiny:
        return []
    loadable = []
    for node in context.nodes:
        weights = node.facts.weights
        if weights is not None and weights.exists:
            loadable.append((node, weights))
    return loadable


def _dimensions(weights: Weights) -> dict[str, Any]:
    # A multi-modal model nests those of its language model.
    nested = weights.config.get("text_config")
    return nested if isinstance(nested, dict) else weights.config


def _divides(name: str, heads: int, tensor: int) -> bool:
    if heads % tensor == 0:
        return True
    # vLLM repeats key-value heads over several workers
    return name == "num_key_value_heads" and tensor % heads == 0


def _has_experts(dimensions: dict[str, Any]) -> bool:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any(dimensions.get(name) for name in names)


def _tensor_bytes(weights: Weights) -> int:
    """Return the size by the index, else that of the weight files.

    Some repositories hold two formats of them: the first one that is there counts.
    """
    if weights.expected_bytes:
        return weights.expected_bytes
    files = {name: size for name, size in weights.files.items() if "/" not in name}
    for suffix in WEIGHT_SUFFIXES:
        total = sum(size for name, size in files.items() if name.endswith(suffix))
        if total:
            return total
    return 0


def _cast_factor(weights: Weights) -> float:
    """Return 0.5 for a float32 checkpoint: vLLM loads it as 16 bit by default."""
    dimensions = _dimensions(weights)
    dtype = dimensions.get("torch_dtype", dimensions.get("dtype"))
    return 0.5 if dtype == "float32" else 1.0


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _speed(rate: float) -> str:
    if rate >= 1e9:
        return f"{rate / 1e9:.1f} GB/s"
    return f"{rate / 1e6:.0f} MB/s"


def _duration(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    # "in about 0 s" would read like an error
    whole = max(1, round(seconds))
    return f"{whole} s"
