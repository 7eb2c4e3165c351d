"""Checks of what vllm-ascend is built for: the board of the node, and the vLLM beside it.

Images of vllm-ascend for A3 have `-a3` in their tag. Inside a container only the build itself
identifies the board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding
from raylaunch.recipe.load import LoadedRecipe

BOARDS = {"ascend-a2": "A2", "ascend-a3": "A3"}
"""Platform of a recipe -> board, as vllm-ascend calls it (`__device_type__` of _build_info.py)."""

_TAGS = {"a3": "A3", "310p": "310P", "950dt": "A5"}
"""Part of an image's tag -> board; none of them: A2 (tags of quay.io/ascend/vllm-ascend)."""

_NAMES = ((r"910B\d", "A2"), (r"Ascend910(_93\d\d)?$", "A3"), (r"950", "A5"), (r"310P", "310P"))
"""Names that npu-smi gives to the NPUs (recorded with 25.5 to 26.0)."""

EXCEPTIONS = {"0.14.0rc1": "0.14.1"}
"""Releases of vllm-ascend whose vLLM has another number (the same page)."""


def check_image(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find an image for another board: vllm-ascend compares its build with the NPU and exits."""
    container = loaded.recipe.container
    board = BOARDS.get(loaded.recipe.hardware.platform)
    if container is None or board is None:
        return
    for part in container.tag.lower().split("-"):
        if _TAGS.get(part, board) != board:
            yield Finding(
                id="image-board",
                level="error",
                what=(
                    f"the image {container.image}:{container.tag} is for {_TAGS[part]} boards, "
                    f"and the recipe is for {board}"
                ),
                todo=(
                    "remove the part that names the board from container.tag: "
                    "raylaunch adds -a3 where it is needed"
                ),
                where=loaded.origin("container.tag"),
                seen=container.tag,
            )


def check_boards(context: CheckContext) -> Iterator[Finding]:
    """Find nodes whose board differs from the recipe's or from that of their vllm-ascend.

    vllm-ascend on another board exits with `does not match the installed ...`.
    """
    wanted = BOARDS.get(context.plan.platform)
    if wanted is None:
        return
    for node in context.nodes:
        installed = _board(node)
        built_for = node.facts.versions.get("vllm-ascend-board", "").lstrip("_")
        if installed and installed != wanted:
            yield Finding(
                id="other-board",
                level="warning",
                what=f"node {node.name} has {installed} boards, and the recipe is for {wanted}",
                todo=f"use a recipe for {installed} (`raylaunch list`), or other nodes",
                where=node.facts.ip,
                seen=node.facts.npus[0].name,
            )
        board = installed or wanted
        if built_for and built_for != board:
            version = node.facts.versions.get("vllm-ascend", "?")
            yield Finding(
                id="vllm-ascend-board",
                level="error",
                what=(
                    f"vllm-ascend on node {node.name} is built for {built_for}, and the board is "
                    f"{board}: every server would exit at start"
                ),
                todo="use the image for that board: the tag contains -a3 for A3, nothing for A2",
                where=node.facts.ip,
                seen=f"vllm-ascend {version} for {built_for}",
            )


def check_pairs(context: CheckContext) -> Iterator[Finding]:
    """Find a vLLM that does not belong to the vllm-ascend beside it.

    Each release of vllm-ascend is made for one release of vLLM, of the same number
    (docs/source/community/versioning_policy.md of vllm-ascend).
    """
    for node in context.nodes:
        vllm = node.facts.versions.get("vllm", "")
        ascend = node.facts.versions.get("vllm-ascend", "")
        known = node.facts.known_flags
        tested = known.vllm_versions if known is not None else ()
        if not vllm or not ascend or belong_together(vllm, ascend, tested):
            continue
        wanted = EXCEPTIONS.get(ascend, release(ascend))
        yield Finding(
            id="vllm-ascend-pair",
            level="error",
            what=(
                f"vLLM {vllm} on node {node.name} does not belong to vllm-ascend {ascend}, "
                f"which is made for vLLM {wanted}"
            ),
            todo=f"use the image of vllm-ascend {ascend}, or install vLLM {wanted}",
            where=node.facts.ip,
            seen=f"vLLM {vllm}, vllm-ascend {ascend}"
            + (f", which tests for vLLM {', '.join(tested)}" if tested else ""),
        )


def belong_together(vllm: str, ascend: str, tested: Sequence[str] = ()) -> bool:
    """Return whether a vLLM is the one that a vllm-ascend is made for.

    Builds from a branch have no partner by number, and pass.

    Args:
        vllm: Version of vLLM.
        ascend: Version of vllm-ascend.
        tested: Versions of vLLM that the installed vllm-ascend names in its own sources.
    """
    if ".dev" in vllm or ".dev" in ascend or not release(ascend) or not release(vllm):
        return True
    partner = EXCEPTIONS.get(ascend, release(ascend))
    return release(vllm) == release(partner) or release(vllm) in map(release, tested)


def release(version: str) -> str:
    """Return the numbers of a version: "0.23.0.post1" and "0.23.0+cpu" -> "0.23.0"."""
    numbers = re.match(r"\d+\.\d+(\.\d+)?", version.removeprefix("v"))
    return numbers[0] if numbers else ""


def _board(node: Node) -> str | None:
    """Return the board by the names of the NPUs; None when they are unknown or differ."""
    boards = {_board_of_name(npu.name) for npu in node.facts.npus}
    return boards.pop() if len(boards) == 1 else None


def _board_of_name(npu_name: str) -> str | None:
    for pattern, board in _NAMES:
        if re.search(pattern, npu_name):
            return board
    return None
