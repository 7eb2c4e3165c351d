"""The arguments that describe a recipe: by name, by path or as a value, and its settings."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence

from raylaunch.deployment import LOCAL
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import configs_dir, finder, read
from raylaunch.recipe.load import LoadedRecipe, recipe_from_mapping
from raylaunch.recipe.model import Recipe

RecipeLike = str | Recipe | Mapping[str, object]
"""Name of a shipped recipe, path of a file, or the recipe itself."""

Settings = Mapping[str, object] | Sequence[str]
"""Changes to a recipe: {"parallel.data": 4}, or ["parallel.data=4"] as --set has them."""


def load(
    recipe: RecipeLike,
    sets: Sequence[str] | None = None,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
) -> LoadedRecipe:
    """Load a recipe by name or path, or validate one that is given as a value.

    Args:
        recipe: The recipe.
        sets: Deprecated spelling of `set`.
        set: Changes to a recipe given by name or path.

    Raises:
        RecipeError: unknown or malformed.
    """
    texts = settings_texts(merge_settings(set, sets))
    if isinstance(recipe, str):
        return read(recipe, texts)
    if texts:
        raise RecipeError(
            "`set` changes recipes that are given by name or path",
            todo="put the values into the recipe itself",
        )
    values = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else dict(recipe)
    return recipe_from_mapping(values, "custom", find=finder(configs_dir()))


def merge_settings(
    settings: Settings | None, deprecated: Sequence[str] | None, *, stacklevel: int = 3
) -> Settings | None:
    """Return the settings of a call that may use the deprecated spelling `sets`."""
    if deprecated is None:
        return settings
    warnings.warn(
        "`sets` is deprecated: `set` takes texts like 'parallel.data=4' too",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return [*deprecated, *settings_texts(settings)]


def settings_texts(settings: Settings | None) -> list[str]:
    """Return settings as texts like "parallel.data=4".

    Raises:
        RecipeError: a value cannot be written as JSON, which YAML and so the recipe understands.
    """
    if settings is None:
        return []
    if isinstance(settings, str):
        raise RecipeError(
            "`set` is one text", todo='give a mapping {"parallel.data": 4}, or a list of texts'
        )
    if not isinstance(settings, Mapping):
        return list(settings)
    texts = []
    for path, value in settings.items():
        try:
            texts.append(f"{path}={json.dumps(value)}")
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError(f"set: the value of {path} is no JSON", why=str(error)) from error
    return texts


def starts_embedded(recipe: Recipe, address: str | None) -> bool:
    """Whether `deploy` starts an embedded cluster: on CPU without a cluster, or when asked to."""
    if address == LOCAL:
        return True
    named = address or os.environ.get("RAY_ADDRESS")
    return recipe.hardware.platform == "cpu" and not named
