"""From YAML to Recipe: layers (`extends`), `--set`, and errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raylaunch.errors import RecipeError
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.reserved import normalise_flag, reserved_arg, reserved_env
from raylaunch.recipe.yaml_reader import (
    Document,
    Json,
    check_values,
    read_document,
    read_text,
    read_value,
    shorten,
)

OPEN_MAPPINGS = ("args", "env", "container.env", "tuning.sysctl", "features.speculative")
"""Recipe fields whose keys are the user's own: values below them are replaced, never merged."""

MAX_BASES = 16
"""Recipes in one chain of `extends`."""

_MAX_PROBLEMS = 20
"""Problems shown of one recipe: searching the nearest key for thousands of unknown ones takes minutes."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its name and the origin of each value.

    `origins` maps a dotted path to where it was written: "recipe a2-dual.yaml:31" or "--set".
    """

    recipe: Recipe
    name: str
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, path: str) -> str:
        """Return where the value at `path`, or its nearest written parent, was written."""
        return find_origin(self.origins, path)


Finder = Callable[[str, Path | None], Path]
"""Finds a recipe file by name or path; the second argument is the folder of the recipe that extends it."""


def find_origin(origins: Mapping[str, str], path: str) -> str:
    """Return where `path` or its nearest written parent was written; without any it is raylaunch's default."""
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return "raylaunch: default"


def load_recipe(name: str, find: Finder, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Read the recipe `name`, apply what it extends and the `--set` assignments in `sets` ("a.b=value").

    Raises:
        RecipeError: Unknown recipe, malformed YAML, an unknown key, or a value the schema refuses.
    """
    chain = read_chain(name, find)
    layer = Document()
    for _, document in reversed(chain):
        _merge(layer, document)
    for assignment in sets:
        _apply_set(layer, assignment)
    path = chain[0][0]
    return LoadedRecipe(_validate(layer, path.name), path.stem, layer.origins)


def recipe_from_mapping(
    values: Mapping[str, Any], name: str, origin: str = "caller"
) -> LoadedRecipe:
    """Validate a recipe given as a mapping (from Python, or restored from JSON).

    Raises:
        RecipeError: A value that a recipe cannot hold, an unknown key, or a value the schema refuses.
    """
    check_values(values, origin)
    layer = Document()
    _merge(layer, Document(dict(values), dict.fromkeys(_paths(values), origin)))
    return LoadedRecipe(_validate(layer, name), name, layer.origins)


def read_chain(name: str, find: Finder) -> list[tuple[Path, Document]]:
    """Read the recipe `name` and the recipes it extends, the nearest first, each without its `extends`.

    Raises:
        RecipeError: One of them is unknown or malformed, or a recipe extends itself.
    """
    chain: list[tuple[Path, Document]] = []
    path = find(name, None)
    while True:
        seen = [known for known, _ in chain]
        if path in seen or len(seen) == MAX_BASES:
            problem = "extends itself" if path in seen else f"extends over {MAX_BASES} recipes"
            raise RecipeError(
                f"recipe {path.name} {problem}", why=" -> ".join(p.name for p in (*seen, path))
            )
        document = _read_file(path)
        base = document.values.pop("extends", None)
        chain.append((path, document))
        if base is None:
            return chain
        path = find(str(base), path.parent)


def _read_file(path: Path) -> Document:
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"recipe {path} cannot be read",
            why=str(error),
            todo="a recipe is a regular file of UTF-8 text, at most 1 MiB",
        ) from error
    document = read_document(text, path.name)
    _refuse_two_spellings(document)
    return document


def _refuse_two_spellings(document: Document) -> None:
    """Refuse max_num_seqs beside max-num-seqs: which of the two counts would depend on their order."""
    args = document.values.get("args")
    seen: set[str] = set()
    for name in args if isinstance(args, dict) else ():
        flag = normalise_flag(name)
        if flag in seen:
            where = document.origins[f"args.{name}"].replace(":", ", line ")
            raise RecipeError(f"{where}: args gives --{shorten(flag)} twice, in two spellings")
        seen.add(flag)


def _merge(base: Document, own: Document) -> None:
    """Lay `own` over `base`: mappings merge, everything else replaces, null removes."""
    _refuse_reserved_null(own)
    _merge_values(base.values, own.values, "")
    base.origins.update(own.origins)


def _refuse_reserved_null(own: Document) -> None:
    """Refuse null for what raylaunch sets itself: it would be accepted and have no effect."""
    for section, reserved in (("args", reserved_arg), ("env", reserved_env)):
        values = own.values.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            if value is None and (advice := reserved(name)):
                path = f"{section}.{name}"
                where = find_origin(own.origins, path)
                raise RecipeError(
                    f"{where}: {path} is set by raylaunch: use {advice}",
                    why="null removes what a base recipe has, and cannot remove what raylaunch sets",
                )


def _merge_values(base: dict[str, Json], own: Mapping[str, Json], prefix: str) -> None:
    if prefix == "args.":
        _drop_respelled(base, own)
    for key, value in own.items():
        path = f"{prefix}{key}"
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and not _is_open_value(path):
            below = base.get(key)
            # A dictionary of its own: `value` may be shared with the caller or with another alias.
            merged = dict(below) if isinstance(below, dict) else {}
            _merge_values(merged, value, f"{path}.")
            base[key] = merged
        else:
            base[key] = value


def _drop_respelled(base: dict[str, Json], own: Mapping[str, Json]) -> None:
    """Drop the flags of `base` that `own` gives in another spelling (max_num_seqs for max-num-seqs)."""
    given = {normalise_flag(name) for name in own}
    for name in list(base):
        if name not in own and normalise_flag(name) in given:
            del base[name]


def _is_open_value(path: str) -> bool:
    """Return whether `path` names a value below an open mapping, such as args.compilation-config."""
    return any(path.startswith(f"{mapping}.") for mapping in OPEN_MAPPINGS)


def _apply_set(layer: Document, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise RecipeError(
            f"--set {shorten(assignment)!r} has no value",
            todo="write --set KEY=VALUE, e.g. parallel.data=4",
        )
    keys = split_path(path)
    check_values(dict.fromkeys(keys), "--set")
    # An empty text is the empty string, not YAML's null: --set network.interface= is a mistake worth a message.
    value = read_value(text, path, f"--set {shorten(path)}: the value") if text else ""
    nested: dict[str, Json] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        nested = {key: nested}
    parents = [".".join(keys[:depth]) for depth in range(1, len(keys))]
    origins = {parent: "--set" for parent in parents if parent not in layer.origins}
    origins[".".join(keys)] = "--set"
    _merge(layer, Document(nested, origins))


def split_path(path: str) -> list[str]:
    """Split a dotted recipe path; below an open mapping the rest is one key (`args.a.b` is flag `a.b`)."""
    for mapping in OPEN_MAPPINGS:
        if path.startswith(f"{mapping}."):
            return [*mapping.split("."), path[len(mapping) + 1 :]]
    return path.split(".")


def _paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted path of every key, at every depth."""
    found = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        found.append(path)
        if isinstance(value, Mapping):
            found += _paths(value, f"{path}.")
    return found


def _validate(layer: Document, file: str) -> Recipe:
    try:
        return Recipe.model_validate(layer.values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_explain(problem, layer, file) for problem in found[:_MAX_PROBLEMS]]
        if len(found) > _MAX_PROBLEMS:
            problems.append(f"and {len(found) - _MAX_PROBLEMS} more problems")
        raise RecipeError(
            "\n".join(problems),
            todo="`raylaunch show NAME` prints a whole recipe; docs/recipes.md lists the fields",
        ) from error


def _explain(problem: ErrorDetails, layer: Document, file: str) -> str:
    """Say in one line where a problem is, in which key, and what is valid there."""
    location = problem["loc"]
    path = ".".join(str(part) for part in location if part != "[key]")
    path = path or _named_path(problem["msg"])
    origin = find_origin(layer.origins, path)
    where = f"recipe {file}" if origin.startswith("raylaunch") else origin
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {shorten(path)!r}{_nearest(location)}"
    if problem["type"] == "missing":
        return f"{where}: {path} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    named = f"{shorten(path)}: " if location else ""
    is_own = problem["type"] == "value_error"
    got = "" if is_own else f" (got {shorten(repr(problem['input']))})"
    return f"{where}: {named}{message}{got}"


def _named_path(message: str) -> str:
    """Return the path a whole-recipe problem begins with ("Value error, args.port is set by ..."), or ""."""
    found = re.match(r"Value error, ((?:args|env)\.\S+) ", message)
    return found[1] if found else ""


def _nearest(location: Sequence[str | int]) -> str:
    siblings = field_names(location[:-1])
    close = difflib.get_close_matches(str(location[-1])[:100], siblings, n=1, cutoff=0.6)
    if close:
        nearest = ".".join([*map(str, location[:-1]), close[0]])
        return f"; did you mean {nearest!r}?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


def field_names(location: Sequence[str | int]) -> list[str]:
    """Return the names of the recipe's fields below `location`; empty where the keys are free."""
    model: type[BaseModel] | None = Recipe
    for part in location:
        if model is None:
            return []
        model = _model_of(model.model_fields[str(part)].annotation)
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
