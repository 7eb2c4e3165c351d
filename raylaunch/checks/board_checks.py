"""Checks of the board type: the recipe's, the installed one, and the one vllm-ascend is built for.

Images of vllm-ascend for A3 have `-a3` in their tag. Inside a container only the build itself
identifies the board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding
from raylaunch.recipe.load import LoadedRecipe

BOARDS = {"ascend-a2": "A2", "ascend-a3": "A3"}
"""Platform of a recipe -> board, as vllm-ascend calls it (`__device_type__` of _build_info.py)."""

_TAGS = {"a3": "A3", "310p": "310P", "950dt": "A5"}
"""Part of an image's tag -> board; none of them: A2 (tags of quay.io/ascend/vllm-ascend)."""

_NAMES = ((r"910B\d", "A2"), (r"Ascend910(_93\d\d)?$", "A3"), (r"950", "A5"), (r"310P", "310P"))
"""Names that npu-smi gives to the NPUs (recorded with 25.5 to 26.0)."""


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


def _board(node: Node) -> str | None:
    """Return the board by the names of the NPUs; None when they are unknown or differ."""
    boards = {_board_of_name(npu.name) for npu in node.facts.npus}
    return boards.pop() if len(boards) == 1 else None


def _board_of_name(npu_name: str) -> str | None:
    for pattern, board in _NAMES:
        if re.search(pattern, npu_name):
            return board
    return None
