"""Validates the layers of a recipe; a problem names file, line and the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raylaunch.errors import RecipeError
from raylaunch.recipe.layers import find_origin, group_layer
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.yaml_reader import Document, Json, shorten

_MAY_HOLD_SECRETS = re.compile(r"(?:container\.)?env\b|args\b|secrets\b|container$|groups\b")
_MAX_PROBLEMS = 20
"""Problems shown of one recipe: the nearest keys of thousands of unknown ones take minutes."""


def validate(layer: Document, file: str) -> Recipe:
    """Return the recipe of `layer`, after each of its groups was validated as a recipe too.

    Raises:
        RecipeError: An unknown key, or a value the schema refuses.
    """
    recipe = _validate(layer.values, layer.origins, file, "")
    for index in range(len(recipe.groups)):
        merged = group_layer(layer, index)
        _validate(merged.values, layer.origins, file, f"groups.{index}.")
    return recipe


def _validate(
    values: Mapping[str, Json], origins: Mapping[str, str], file: str, prefix: str
) -> Recipe:
    """Validate one recipe; `prefix` is where its values were written ("" or "groups.0.")."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_explain(problem, origins, file, prefix) for problem in found[:_MAX_PROBLEMS]]
        if len(found) > _MAX_PROBLEMS:
            problems.append(f"and {len(found) - _MAX_PROBLEMS} more problems")
        raise RecipeError(
            "\n".join(problems),
            todo="`raylaunch show NAME` prints a whole recipe; docs/recipes.md lists the fields",
        ) from error


def _explain(problem: ErrorDetails, origins: Mapping[str, str], file: str, prefix: str) -> str:
    """Say in one line where a problem is, in which key, and what is valid there."""
    location = problem["loc"]
    path = ".".join(str(part) for part in location if part != "[key]")
    path = path or _named_path(problem["msg"])
    origin = find_origin(origins, f"{prefix}{path}".rstrip("."))
    where = f"recipe {file}" if origin.startswith("raylaunch") else origin
    # A key such as `HF_TOKEN=hf_...` holds the value as well.
    bare = path.partition("=")[0] if _MAY_HOLD_SECRETS.match(path) else path
    shown = shorten(_as_written(f"{prefix}{bare}"))
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {shown!r}{_nearest(location, prefix)}"
    if problem["type"] == "missing":
        return f"{where}: {shown} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    named = f"{shown}: " if location else ""
    if prefix and not location:
        named = f"{_as_written(prefix).rstrip('.')}: "
    is_own = problem["type"] == "value_error"
    got = "" if is_own else f" (got {_describe(problem['input'], path)})"
    return f"{where}: {named}{message}{got}"


def _describe(value: object, path: str) -> str:
    """Return a wrong value, or its kind alone where it may be a secret."""
    if not _MAY_HOLD_SECRETS.match(path):
        return shorten(repr(value))
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "a text" if isinstance(value, str) else shorten(repr(value))


def _as_written(path: str) -> str:
    """Return the path of a value in an entry of `groups` with the index in brackets."""
    return re.sub(r"^groups\.(\d+)", r"groups[\1]", path)


def _named_path(message: str) -> str:
    """Return the path at the start of a whole-recipe problem ("Value error, args.port is ...")."""
    found = re.match(r"Value error, ((?:args|env|groups\[\d+\])\.\S+) ", message)
    return re.sub(r"\[(\d+)\]", r".\1", found[1], count=1) if found else ""


def _nearest(location: Sequence[str | int], prefix: str) -> str:
    siblings = field_names(location[:-1])
    close = difflib.get_close_matches(str(location[-1])[:100], siblings, n=1, cutoff=0.6)
    if close:
        nearest = ".".join([*map(str, location[:-1]), close[0]])
        return f"; did you mean {_as_written(prefix + nearest)!r}?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


def field_names(location: Sequence[str | int]) -> list[str]:
    """Return the names of the recipe's fields below `location`; empty where the keys are free."""
    model: type[BaseModel] | None = Recipe
    for part in location:
        if model is None:
            return []
        # The index of an entry of `groups` is not a key.
        if not isinstance(part, int):
            model = _model_of(model.model_fields[part].annotation)
    if model is None:
        return []
    names = list(model.model_fields)
    return [*names, "extends"] if model is Recipe else names


def _model_of(annotation: object) -> type[BaseModel] | None:
    """Return the pydantic model within a type such as `Container | None`."""
    if get_origin(annotation) is None:
        is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return annotation if is_model else None  # type: ignore[return-value]
    for argument in get_args(annotation):
        if model := _model_of(argument):
            return model
    return None
