"""The request that creates a controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raylaunch.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class Request:
    """What `raylaunch start` asks for.

    Secrets come separately: Ray keeps the arguments that an actor was created with.
    """

    deployment: str
    loaded: LoadedRecipe
    primary: str | None = None
    skipped: Mapping[str, str] | None = None
    """Ids of checks whose errors do not count, with the reason given."""
