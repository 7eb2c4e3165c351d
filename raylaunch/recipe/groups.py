"""The groups of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raylaunch.recipe.load import LoadedRecipe

Role = Literal["serve", "prefill", "decode"]


@dataclass(frozen=True)
class GroupSpec:
    """One group of a deployment, as a recipe of one group."""

    name: str
    role: Role
    replica: int
    loaded: LoadedRecipe
    alone: bool = True


def expand_groups(loaded: LoadedRecipe) -> tuple[GroupSpec, ...]:
    """Return the groups of a recipe."""
    return (GroupSpec("serve-0", "serve", 0, loaded),)
