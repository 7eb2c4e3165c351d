"""A recipe with another number of replicas."""

from __future__ import annotations

from dataclasses import replace

from raylaunch.errors import RecipeError
from raylaunch.recipe.load import LoadedRecipe

MAX_REPLICAS = 1024


def with_replicas(loaded: LoadedRecipe, replicas: int) -> LoadedRecipe:
    """Return the recipe with so many replicas.

    Raises:
        RecipeError: its groups differ, so there is no one number of replicas; or the number is not
            possible.
    """
    if loaded.recipe.groups:
        raise RecipeError(
            f"the groups of {loaded.name} differ, so it has no one number of replicas",
            todo="change `replicas` of the group in the recipe, and start it again",
        )
    if not 1 <= replicas <= MAX_REPLICAS:
        raise RecipeError(
            f"a deployment cannot have {replicas} replicas",
            todo=f"give a number from 1 to {MAX_REPLICAS}; `raylaunch stop` stops all of them",
        )
    parallel = loaded.recipe.parallel.model_copy(update={"replicas": replicas})
    recipe = loaded.recipe.model_copy(update={"parallel": parallel})
    origins = {**loaded.origins, "parallel.replicas": "raylaunch scale"}
    return replace(loaded, recipe=recipe, origins=origins)
