"""Checks of the weights' files: complete, of the right model type, equal on all nodes.

Their sizes are judged in `weight_size_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.node_checks import shorten_node_names
from raylaunch.checks.weight_size_checks import WEIGHT_SIZE_CHECKS, loadable_weights
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import WEIGHT_SUFFIXES, gaps_of, shorten

_ALL_READ = ("quant*.json", "tokenizer*", "*.model", "*.py")
"""Files beside the weights that every server reads.

quant_model_description.json is vllm-ascend's.
"""
_FEW_READ = ("*.json", "*.jinja")
"""Files that only the API server reads (generation_config.json, chat templates), or no server."""
_COPY = "copy the model directory from one node to the others"
_SHOWN_FILES = 3
_Sizes = dict[int | None, list[Node]]
"""Size of a file (None: not there) -> the nodes where it has that size."""


def check_weights(context: CheckContext) -> Iterator[Finding]:
    """Find absent and incomplete weights: every node loads its own copy."""
    if context.recipe.model.tiny:
        return
    for node in context.nodes:
        weights = node.facts.weights
        if weights is None:
            continue
        if not weights.exists:
            yield Finding(
                id="model-missing",
                level="error",
                what=f"node {node.name} has no model at {weights.path}",
                todo=f"{_download(context)}, or set model.path; in a container, mount them",
                where=node.facts.ip,
                seen=weights.path,
            )
            continue
        gaps = gaps_of(weights)
        if gaps:
            yield Finding(
                id="weights-incomplete",
                level="error",
                what=f"the weights at {weights.path} on node {node.name} are incomplete: {gaps}",
                todo=_download(context),
                where=node.facts.ip,
                seen=gaps,
            )


def check_drafter(context: CheckContext) -> Iterator[Finding]:
    """Find drafters that cannot be loaded: vLLM would find out only after loading the model."""
    name = context.loaded.name
    for node in context.nodes:
        weights = node.facts.drafter
        if weights is None:
            continue
        gaps = gaps_of(weights) if weights.exists else "not there"
        if gaps:
            yield Finding(
                id="drafter-missing",
                level="error",
                what=f"the drafter at {weights.path} on node {node.name} cannot be loaded: {gaps}",
                todo=(
                    f"`raylaunch weights {name}` has the command that downloads it, or "
                    f"--set features.speculative.enabled=false"
                ),
                where=node.facts.ip,
                seen=gaps,
            )


def check_model_type(context: CheckContext) -> Iterator[Finding]:
    """Find weights of another model type: the recipe's flags are for one."""
    wanted = context.recipe.model.type
    for node, weights in loadable_weights(context):
        found = weights.model_type
        if wanted and found and found != wanted:
            yield Finding(
                id="model-type",
                level="error",
                what=(
                    f"the weights on node {node.name} are of type {found}, "
                    f"and the recipe is for {wanted}"
                ),
                todo=(
                    f"set model.path to weights of {wanted}, "
                    f"or model.type={found} if the recipe fits them"
                ),
                where=node.facts.ip,
                seen=found,
            )


def check_same_weights(context: CheckContext) -> Iterator[Finding]:
    """Find nodes with different weights, tokenizer or model code.

    Their ranks start, and answer differently.
    """
    complete = [entry for entry in loadable_weights(context) if not entry[1].missing]
    serious: dict[str, _Sizes] = {}
    light: dict[str, _Sizes] = {}
    for name, sizes in _differing_files(complete):
        level = level_of_difference(name)
        if level == "error":
            serious[name] = sizes
        elif level == "warning":
            light[name] = sizes
    if serious:
        yield Finding(
            id="weights-differ",
            level="error",
            what=(
                f"the weights differ between the nodes, by name or size of files: "
                f"{_describe(serious)}"
            ),
            todo=_COPY,
            where=_odd_one(serious),
            seen=shorten(serious),
        )
        return
    if light:
        yield Finding(
            id="weights-differ",
            level="warning",
            what=f"files beside the weights differ between the nodes: {_describe(light)}",
            todo=(
                f"{_COPY}; if the primary has the right ones, nothing happens until another node "
                f"becomes the primary"
            ),
            where=_odd_one(light),
            seen=shorten(light),
        )
    yield from _differing_content(complete)


WEIGHT_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_weights,
    check_drafter,
    check_model_type,
    check_same_weights,
    *WEIGHT_SIZE_CHECKS,
)


def _download(context: CheckContext) -> str:
    sources = context.recipe.model.sources
    hubs = (("ModelScope", sources.modelscope), ("HF", sources.huggingface))
    names = " or ".join(f"{name} on {hub}" for hub, name in hubs if name)
    if not names:
        return "copy the weights there"
    return f"`raylaunch weights {context.loaded.name} --download` downloads {names}"


def _differing_content(complete: list[tuple[Node, Weights]]) -> Iterator[Finding]:
    """Find weights whose content differs though their names and sizes agree."""
    by_fingerprint: dict[str, list[Node]] = {}
    for node, weights in complete:
        if weights.fingerprint:
            by_fingerprint.setdefault(weights.fingerprint, []).append(node)
    if len(by_fingerprint) > 1:
        sides = " | ".join(shorten_node_names(nodes) for nodes in by_fingerprint.values())
        yield Finding(
            id="weights-differ",
            level="error",
            what=(
                f"the weights differ between the nodes, by content, though names and sizes agree: "
                f"{sides}"
            ),
            todo=_COPY,
            seen=", ".join(by_fingerprint),
        )


def _differing_files(complete: list[tuple[Node, Weights]]) -> Iterator[tuple[str, _Sizes]]:
    """Yield the files that some nodes lack, or have in another size."""
    names = sorted({name for _, weights in complete for name in weights.files})
    for name in names:
        sizes: _Sizes = {}
        for node, weights in complete:
            sizes.setdefault(weights.files.get(name), []).append(node)
        if len(sizes) > 1:
            yield name, sizes


def _describe(files: dict[str, _Sizes]) -> str:
    """Describe the first few files with their sizes and nodes, the fewest nodes first."""
    rows = []
    for name, sizes in list(files.items())[:_SHOWN_FILES]:
        sides = []
        for size, nodes in _rank(sizes):
            state = "missing" if size is None else f"{size} bytes"
            sides.append(f"{state} on {shorten_node_names(nodes)}")
        rows.append(f"{name} ({', '.join(sides)})")
    more = len(files) - _SHOWN_FILES
    suffix = f"; and {more} more files" if more > 0 else ""
    return "; ".join(rows) + suffix


def _odd_one(files: dict[str, _Sizes]) -> str:
    """Return the address of the one node that differs from all others, or that lacks files.

    "" when there is no such single node.
    """
    odd = set()
    for sizes in files.values():
        (size, fewest), (_, others) = _rank(sizes)[:2]
        # Of two single nodes with different sizes neither is known to be the odd one.
        others_agree = size is None or len(others) > 1
        if len(fewest) != 1 or not others_agree:
            return ""
        odd.add(fewest[0].facts.ip)
    return odd.pop() if len(odd) == 1 else ""


def _rank(sizes: _Sizes) -> list[tuple[int | None, list[Node]]]:
    def key(item: tuple[int | None, list[Node]]) -> tuple[int, int]:
        size, nodes = item
        return len(nodes), size or 0

    return sorted(sizes.items(), key=key)


def level_of_difference(name: str) -> Level | None:
    """Return how serious it is when two nodes do not have the same file of this name.

    None: it does no harm. In subfolders (examples, pictures, other formats) only weights and their
    config.json count.
    """
    folder, _, file = name.rpartition("/")
    if name.endswith(WEIGHT_SUFFIXES) or file == "config.json":
        return "error"
    if folder:
        return None
    if any(fnmatchcase(name, pattern) for pattern in _ALL_READ):
        return "error"
    if any(fnmatchcase(name, pattern) for pattern in _FEW_READ):
        return "warning"
    return None
