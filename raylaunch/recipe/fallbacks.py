"""Whether a smaller recipe can take the place of a recipe while one of its nodes is lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from raylaunch.errors import RecipeError

if TYPE_CHECKING:
    from raylaunch.recipe.model import Recipe


def refuse_unfit(full: Sequence[Recipe], fallback: Sequence[Recipe], where: str) -> None:
    """Refuse a fallback that clients would notice, or that no lost node leaves room for.

    Args:
        full: The recipe of each group.
        fallback: The recipe of each group of the fallback.
        where: Names the entry of `fallback`.

    Raises:
        RecipeError: It serves under another name, needs as many nodes, another platform, or
            secrets that `raylaunch start` does not read.
    """
    wanted, other = full[0], fallback[0]
    name = wanted.model.served_name
    if other.model.served_name != name:
        raise RecipeError(
            f"{where} serves {other.model.served_name!r}, and clients ask for {name!r}",
            todo=f"add `set: {{model.served_name: {name}}}` to this entry",
        )
    if other.hardware.platform != wanted.hardware.platform:
        raise RecipeError(
            f"{where} is for {other.hardware.platform}, and the recipe for "
            f"{wanted.hardware.platform}"
        )
    nodes, needed = count_nodes(full), count_nodes(fallback)
    if needed >= nodes:
        raise RecipeError(
            f"{where} needs {needed} node(s), and the recipe itself {nodes}",
            why="it is started when a node of these is lost",
            todo="name a recipe for fewer nodes, or make this one smaller: "
            "`set: {parallel.data: 1}`",
        )
    known = {name for recipe in full for name in recipe.secrets}
    missing = [one for recipe in fallback for one in recipe.secrets if one not in known]
    if missing:
        raise RecipeError(
            f"{where} needs the secret {missing[0]}, which the recipe does not list",
            why="`raylaunch start` reads the secrets of the recipe alone",
            todo=f"add {missing[0]} to `secrets` of the recipe",
        )


def count_nodes(groups: Iterable[Recipe]) -> int:
    """Return on how many nodes groups fit, when each takes free NPUs of those before it."""
    used: list[int] = []
    for recipe in groups:
        own: set[int] = set()
        for _ in range(recipe.parallel.servers):
            free = (
                at
                for at, npus in enumerate(used)
                if npus + recipe.npus_per_server <= recipe.npus_per_node
                and not (recipe.hardware.spread and at in own)
            )
            at = next(free, len(used))
            if at == len(used):
                used.append(0)
            own.add(at)
            used[at] += recipe.npus_per_server
    return len(used)
