"""Checks on the weights: whole, of the right kind, the same everywhere, and whether they fit and load in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.group_checks import memory_share
from raylaunch.checks.node_checks import node_names
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import WEIGHT_SUFFIXES, gaps_of, shorten

NOT_LOADED = 0.9
"""Share of a checkpoint that surely ends in the NPUs' memory: layers for multi-token prediction, vision towers and the
like may stay out (2 % of DeepSeek-V3)."""
_ALL_READ = ("quant*.json", "tokenizer*", "*.model", "*.py")
"""Files beside the weights that every server reads (quant_model_description.json is vllm-ascend's)."""
_FEW_READ = ("*.json", "*.jinja")
"""The rest of the manifest, read by the API server alone (generation_config.json, chat templates) or not at all."""
_COPY = "copy the model directory from one node to the others"
_Sizes = dict[int | None, list[Node]]
"""Size of a file (None: not there) -> the nodes where it is so."""


def check_weights(view: View) -> Iterator[Finding]:
    """Every node loads the weights itself, so they must be whole on each."""
    if view.recipe.model.tiny:
        return
    for node in view.nodes:
        weights = node.facts.weights
        if weights is None:
            continue
        if not weights.exists:
            what = f"node {node.name} has no model at {weights.path}"
            todo = f"{_download(view)}, or set model.path; in a container, mount them"
            yield Finding("model-missing", "error", what, todo, node.facts.ip, weights.path)
        elif gaps := gaps_of(weights):
            what = f"the weights at {weights.path} on node {node.name} are incomplete: {gaps}"
            yield Finding("weights-incomplete", "error", what, _download(view), node.facts.ip, gaps)


def check_drafter(view: View) -> Iterator[Finding]:
    """A drafter is loaded after the model: what is wrong with it would be found after the long part."""
    for node in view.nodes:
        weights = node.facts.drafter
        if weights is None:
            continue
        gaps = gaps_of(weights) if weights.exists else "not there"
        if gaps:
            what = f"the drafter at {weights.path} on node {node.name} cannot be loaded: {gaps}"
            verb = f"`raylaunch weights {view.loaded.name}` has the command that brings it"
            todo = f"{verb}, or --set features.speculative.enabled=false"
            yield Finding("drafter-missing", "error", what, todo, node.facts.ip, gaps)


def check_model_type(view: View) -> Iterator[Finding]:
    """The recipe's flags are for one kind of model."""
    wanted = view.recipe.model.type
    for node, weights in _loadable(view):
        found = weights.model_type
        if wanted and found and found != wanted:
            yield Finding(
                "model-type",
                "error",
                f"the weights on node {node.name} are of type {found}, and the recipe is for {wanted}",
                f"set model.path to weights of {wanted}, or model.type={found} if the recipe fits them",
                node.facts.ip,
                found,
            )


def check_heads(view: View) -> Iterator[Finding]:
    """In vLLM each tensor-parallel worker has the same number of heads; key-value heads may also be repeated."""
    tensor = view.recipe.parallel.tensor
    for _, weights in _loadable(view)[:1]:
        dims = _dimensions(weights)
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = dims.get(name)
            if isinstance(heads, int) and heads > 0 and not _divides(name, heads, tensor):
                yield Finding(
                    "heads",
                    "error",
                    f"the model has {name}={heads}, which tensor parallelism {tensor} does not divide",
                    f"set parallel.tensor to a divisor of {heads}",
                    view.loaded.origin("parallel.tensor"),
                    f"{heads} % {tensor}",
                )


def check_layer_sizes(view: View) -> Iterator[Finding]:
    """A feed-forward layer is split evenly, or vLLM refuses it; a warning, for a model may not use the size.

    Experts without expert parallelism are split over all tensor- and data-parallel workers (vLLM 0.32
    fused_moe/config.py:1341).
    """
    parallel = view.recipe.parallel
    flat = parallel.tensor * parallel.data * parallel.prefill_context
    for _, weights in _loadable(view)[:1]:
        dims = _dimensions(weights)
        parts = {"intermediate_size": parallel.tensor, "moe_intermediate_size": flat}
        if _has_experts(dims) and "moe_intermediate_size" not in dims:
            parts = {"intermediate_size": flat}
            parts = {} if parallel.expert else parts
        elif parallel.expert:
            del parts["moe_intermediate_size"]
        for name, count in parts.items():
            size = dims.get(name)
            if isinstance(size, int) and size > 0 and size % count:
                what = f"the model has {name}={size}, which cannot be split evenly over {count} workers"
                todo = f"set the parallel sizes so that {size} can be divided by {count}, or parallel.expert=true"
                where = view.loaded.origin("parallel.tensor")
                yield Finding("layer-size", "warning", what, todo, where, f"{size} % {count}")


def check_same_weights(view: View) -> Iterator[Finding]:
    """Ranks with different weights start, and answer differently; so they do with another tokenizer or model code."""
    whole = [(node, weights) for node, weights in _loadable(view) if not weights.missing]
    uneven = [(level_of_difference(name), name, sizes) for name, sizes in _uneven(whole)]
    if serious := {name: sizes for level, name, sizes in uneven if level == "error"}:
        what = (
            f"the weights differ between the nodes, by name or size of files: {_describe(serious)}"
        )
        yield Finding("weights-differ", "error", what, _COPY, _odd_one(serious), shorten(serious))
        return
    if light := {name: sizes for level, name, sizes in uneven if level == "warning"}:
        what = f"files beside the weights differ between the nodes: {_describe(light)}"
        todo = f"{_COPY}; if the primary has the right ones, nothing happens until another node becomes the primary"
        yield Finding("weights-differ", "warning", what, todo, _odd_one(light), shorten(light))
    by_content: dict[str, list[Node]] = {}
    for node, weights in whole:
        if weights.fingerprint:
            by_content.setdefault(weights.fingerprint, []).append(node)
    if len(by_content) > 1:
        sides = " | ".join(node_names(nodes) for nodes in by_content.values())
        what = f"the weights differ between the nodes, by content, though names and sizes agree: {sides}"
        yield Finding("weights-differ", "error", what, _COPY, "", ", ".join(by_content))


def check_fits_npus(view: View) -> Iterator[Finding]:
    """The least that an NPU must hold: with expert parallelism experts are spread over all, the rest is repeated."""
    parallel = view.recipe.parallel
    parts = parallel.tensor * parallel.pipeline
    if parallel.expert:
        parts *= parallel.data * parallel.prefill_context
    for node, weights in _loadable(view) if view.plan.platform != "cpu" else ():
        least = NOT_LOADED * _tensor_bytes(weights) * _cast(weights) / parts
        room = (
            min((npu.hbm_total_mb for npu in node.facts.npus), default=0)
            * 2**20
            * memory_share(view)
        )
        if 0 < room < least:
            what = (
                f"the weights take at least {_gib(least)} of each NPU of node {node.name}, and the servers may use "
                f"{_gib(room)}"
            )
            todo = "use quantised weights, or more NPUs (parallel.tensor; parallel.data with parallel.expert)"
            yield Finding(
                "weights-too-big",
                "error",
                what,
                todo,
                node.facts.ip,
                f"{_gib(weights.total_bytes)}",
            )


def check_memory(view: View) -> Iterator[Finding]:
    """On CPU the weights stay in memory, once per server and rank; before NPUs they only pass through.

    Each tensor-parallel worker reads all shards. What the page cache cannot hold is read from the disk again by each.
    """
    for node, weights in _loadable(view):
        available, size = node.facts.memory_available, _tensor_bytes(weights)
        if not available or not size:
            continue
        seen = f"{_gib(available)} available of {_gib(node.facts.memory_total)}"
        if view.plan.platform == "cpu":
            least = size * _cast(weights) * sum(len(server.ranks) for server in node.servers)
            if available < least:
                what = f"node {node.name} has {_gib(available)} of memory available, and its servers load {_gib(least)}"
                todo = "end what holds the memory, or place fewer servers on the node"
                yield Finding("memory-small", "error", what, todo, node.facts.ip, seen)
        elif available < size and view.recipe.parallel.tensor > 1:
            what = (
                f"node {node.name} has {_gib(available)} of memory available, and the weights are {_gib(size)}: each "
                f"of the {view.recipe.parallel.tensor} workers will read them from the disk for itself"
            )
            todo = "free memory on that node, or expect a long load (timeouts.start)"
            yield Finding("memory-small", "warning", what, todo, node.facts.ip, seen)


def check_load_time(view: View) -> Iterator[Finding]:
    """All nodes read at once, at a start as in the probe, so the measured speed is that of a shared file server."""
    limit_s = view.recipe.timeouts.start
    for node, weights in _loadable(view):
        if weights.read_rate and (size := _tensor_bytes(weights)):
            seconds = size / weights.read_rate
            level: Level = "warning" if seconds > limit_s else "info"
            what = (
                f"node {node.name} reads its weights from {weights.filesystem} at {_speed(weights.read_rate)}: "
                f"{_gib(size)} in about {_duration(seconds)}"
            )
            todo = (
                "copy them to a local disk on each node, or raise timeouts.start"
                if level == "warning"
                else ""
            )
            yield Finding(
                "weights-on-network",
                level,
                what,
                todo,
                node.facts.ip,
                f"{weights.read_rate:.0f} B/s",
            )


WEIGHT_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_weights,
    check_drafter,
    check_model_type,
    check_heads,
    check_layer_sizes,
    check_same_weights,
    check_fits_npus,
    check_memory,
    check_load_time,
)


def _loadable(view: View) -> list[tuple[Node, Weights]]:
    """The nodes with weights to judge; a tiny model is made at the start and is always right."""
    if view.recipe.model.tiny:
        return []
    seen = ((node, node.facts.weights) for node in view.nodes)
    return [(node, weights) for node, weights in seen if weights is not None and weights.exists]


def _download(view: View) -> str:
    sources = view.recipe.model.sources
    hubs = (("ModelScope", sources.modelscope), ("HF", sources.huggingface))
    names = " or ".join(f"{name} on {hub}" for hub, name in hubs if name)
    verb = f"`raylaunch weights {view.loaded.name} --download`"
    return f"{verb} brings {names}" if names else "copy the weights there"


def _dimensions(weights: Weights) -> dict[str, Any]:
    nested = weights.config.get("text_config")
    return nested if isinstance(nested, dict) else weights.config


def _divides(name: str, heads: int, tensor: int) -> bool:
    return heads % tensor == 0 or (name == "num_key_value_heads" and tensor % heads == 0)


def _has_experts(dims: dict[str, Any]) -> bool:
    return any(dims.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _tensor_bytes(weights: Weights) -> int:
    """What the index says, else the size of the weight files: some repositories hold two formats of them."""
    files = {name: size for name, size in weights.files.items() if "/" not in name}
    kinds = (
        sum(size for name, size in files.items() if name.endswith(suffix))
        for suffix in WEIGHT_SUFFIXES
    )
    return weights.expected_bytes or next((total for total in kinds if total), 0)


def _cast(weights: Weights) -> float:
    """A float32 checkpoint is loaded as 16 bit unless vLLM is told otherwise."""
    dims = _dimensions(weights)
    return 0.5 if dims.get("torch_dtype", dims.get("dtype")) == "float32" else 1.0


def _uneven(whole: list[tuple[Node, Weights]]) -> Iterator[tuple[str, _Sizes]]:
    """Files that some nodes do not have, or have in another size."""
    for name in sorted({name for _, weights in whole for name in weights.files}):
        sizes: _Sizes = {}
        for node, weights in whole:
            sizes.setdefault(weights.files.get(name), []).append(node)
        if len(sizes) > 1:
            yield name, sizes


def _describe(uneven: dict[str, _Sizes], shown: int = 3) -> str:
    """The first few files, each with its sizes and where it has them, the fewest nodes first."""
    said = []
    for name, sizes in list(uneven.items())[:shown]:
        sides = (
            f"{'missing' if size is None else f'{size} bytes'} on {node_names(odd)}"
            for size, odd in _rank(sizes)
        )
        said.append(f"{name} ({', '.join(sides)})")
    return "; ".join(said) + (
        f"; and {len(uneven) - shown} more files" if len(uneven) > shown else ""
    )


def _odd_one(uneven: dict[str, _Sizes]) -> str:
    """The address of the one node that differs from the others, or that alone lacks files; "" when there is no such."""
    odd = set()
    for sizes in uneven.values():
        (size, few), (_, more) = _rank(sizes)[:2]
        odd.add(few[0].facts.ip if len(few) == 1 and (size is None or len(more) > 1) else "")
    return odd.pop() if len(odd) == 1 else ""


def _rank(sizes: _Sizes) -> list[tuple[int | None, list[Node]]]:
    return sorted(sizes.items(), key=lambda item: (len(item[1]), item[0] or 0))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _speed(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(1, round(seconds))} s"


def level_of_difference(name: str) -> Level | None:
    """How bad it is when two nodes do not have the same file of this name in a model folder; None: no harm.

    In subfolders (examples, pictures, other formats) only weights and their config.json count.
    """
    below, _, file = name.rpartition("/")
    if name.endswith(WEIGHT_SUFFIXES) or file == "config.json":
        return "error"
    if below:
        return None
    if any(fnmatchcase(name, pattern) for pattern in _ALL_READ):
        return "error"
    return "warning" if any(fnmatchcase(name, pattern) for pattern in _FEW_READ) else None
