"""Checks on the kind of board: the recipe's, the one that is there, and the one that vllm-ascend was built for.

Images of vllm-ascend for A3 carry `-a3` in their tag; within a container only the build itself still says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding
from raylaunch.recipe.load import LoadedRecipe

BOARDS = {"ascend-a2": "A2", "ascend-a3": "A3"}
"""Platform of a recipe -> board, as vllm-ascend calls it (`__device_type__` of its _build_info.py)."""

_TAGS = {"a3": "A3", "310p": "310P", "950dt": "A5"}
"""Part of an image's tag -> board; none of them: A2 (tags of quay.io/ascend/vllm-ascend)."""

_NAMES = ((r"910B\d", "A2"), (r"Ascend910(_93\d\d)?$", "A3"), (r"950", "A5"), (r"310P", "310P"))
"""Names that npu-smi gives to the NPUs (recorded with 25.5 to 26.0)."""


def check_image(loaded: LoadedRecipe) -> Iterator[Finding]:
    """An image for another board ends every server: vllm-ascend compares its build with the NPU at start."""
    box, board = loaded.recipe.container, BOARDS.get(loaded.recipe.hardware.platform)
    if box is None or board is None:
        return
    for part in box.tag.lower().split("-"):
        if _TAGS.get(part, board) != board:
            yield Finding(
                "image-board",
                "error",
                f"the image {box.image}:{box.tag} is for {_TAGS[part]} boards, and the recipe is for {board}",
                "take the part that names the board out of container.tag: raylaunch adds -a3 where it belongs",
                loaded.origin("container.tag"),
                box.tag,
            )


def check_boards(view: View) -> Iterator[Finding]:
    """The build of vllm-ascend is for one kind of board; on another it ends with `does not match the installed ...`."""
    wanted = BOARDS.get(view.plan.platform)
    for node in view.nodes if wanted else ():
        there, built = _board(node), node.facts.versions.get("vllm-ascend-board", "").lstrip("_")
        if there and there != wanted:
            what = f"node {node.name} has {there} boards, and the recipe is for {wanted}"
            todo = f"take a recipe for {there} (`raylaunch list`), or other nodes"
            yield Finding(
                "other-board", "warning", what, todo, node.facts.ip, node.facts.npus[0].name
            )
        if built and built != (there or wanted):
            yield Finding(
                "vllm-ascend-board",
                "error",
                f"vllm-ascend on node {node.name} is built for {built}, and the board is {there or wanted}: "
                f"every server would end at start",
                "use the image for that board: the tag has -a3 for A3, and no such part for A2",
                node.facts.ip,
                f"vllm-ascend {node.facts.versions.get('vllm-ascend', '?')} for {built}",
            )


def _board(node: Node) -> str | None:
    """The board of a node by the names of its NPUs; None when they say nothing, or different things."""
    names = {npu.name for npu in node.facts.npus}
    found = {
        next((board for pattern, board in _NAMES if re.search(pattern, name)), None)
        for name in names
    }
    return found.pop() if len(found) == 1 else None
