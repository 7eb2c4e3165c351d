"""The groups of a recipe: each is a recipe of its own, and restarts on its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raylaunch.recipe.group_names import DEFAULT_NAME, GroupRole
from raylaunch.recipe.layers import group_layer
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.validation import validate
from raylaunch.recipe.yaml_reader import Document


@dataclass(frozen=True)
class GroupSpec:
    """One group of a deployment, as a recipe of one group.

    `name` is the name in the recipe with the number of the replica ("serve-0"). `alone`: it is the
    deployment's only group.
    """

    name: str
    role: GroupRole
    replica: int
    loaded: LoadedRecipe
    alone: bool = True


def expand_groups(loaded: LoadedRecipe) -> tuple[GroupSpec, ...]:
    """Return the groups of a recipe, replica by replica, in the order they are written.

    Raises:
        RecipeError: The recipe did not come from `load_recipe` or `recipe_from_mapping`, and one
            of its groups is invalid.
    """
    recipe = loaded.recipe
    if not recipe.groups:
        count = recipe.parallel.replicas
        one = _without_replicas(loaded)
        return _replicate(DEFAULT_NAME, "serve", one, count, alone=count == 1)
    layer = Document(recipe.model_dump(exclude_unset=True), dict(loaded.origins))
    alone = sum(group.replicas for group in recipe.groups) == 1
    specs: list[GroupSpec] = []
    for index, group in enumerate(recipe.groups):
        merged = group_layer(layer, index)
        recipe_of_group = validate(merged, loaded.name)
        own = replace(loaded, recipe=recipe_of_group, origins=merged.origins)
        one = _without_replicas(own)
        specs += _replicate(group.name, group.role, one, group.replicas, alone=alone)
    return tuple(specs)


def _replicate(
    name: str, role: GroupRole, loaded: LoadedRecipe, count: int, *, alone: bool
) -> tuple[GroupSpec, ...]:
    return tuple(
        GroupSpec(f"{name}-{replica}", role, replica, loaded, alone) for replica in range(count)
    )


def _without_replicas(loaded: LoadedRecipe) -> LoadedRecipe:
    """Return the recipe of one of the replicas."""
    if "replicas" not in loaded.recipe.parallel.model_fields_set:
        return loaded
    values = loaded.recipe.model_dump(exclude_unset=True)
    del values["parallel"]["replicas"]
    origins = {path: at for path, at in loaded.origins.items() if path != "parallel.replicas"}
    return replace(loaded, recipe=validate(Document(values), loaded.name), origins=origins)
