"""From YAML to Recipe: layers (`extends`), `--set`, and errors that name the nearest valid key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylaunch.errors import RecipeError
from raylaunch.recipe.layers import find_origin, merge, paths_of, refuse_two_spellings, split_path
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.validation import validate
from raylaunch.recipe.yaml_reader import (
    Document,
    Json,
    check_values,
    read_document,
    read_text,
    read_value,
    shorten,
)

MAX_BASES = 16
"""Recipes in one chain of `extends`."""


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
"""Finds a recipe file by name or path; the second argument is the folder of its extender."""


def load_recipe(name: str, find: Finder, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Read the recipe `name` with its bases, and apply the `--set` assignments ("a.b=value").

    Raises:
        RecipeError: Unknown recipe, malformed YAML, an unknown key, or a value the schema refuses.
    """
    chain = read_chain(name, find)
    layer = Document()
    for _, document in reversed(chain):
        merge(layer, document)
    for assignment in sets:
        _apply_set(layer, assignment)
    path = chain[0][0]
    return LoadedRecipe(validate(layer, path.name), path.stem, layer.origins)


def change_recipe(loaded: LoadedRecipe, sets: Sequence[str]) -> LoadedRecipe:
    """Return a recipe with more `--set` assignments applied.

    Raises:
        RecipeError: A path or a value that the schema refuses.
    """
    layer = Document(loaded.recipe.model_dump(exclude_unset=True), dict(loaded.origins))
    for assignment in sets:
        _apply_set(layer, assignment)
    return LoadedRecipe(validate(layer, loaded.name), loaded.name, layer.origins)


def recipe_from_mapping(
    values: Mapping[str, Any], name: str, origin: str = "caller"
) -> LoadedRecipe:
    """Validate a recipe given as a mapping (from Python, or restored from JSON).

    Raises:
        RecipeError: A value that a recipe cannot hold, an unknown key, or a value the schema
            refuses.
    """
    check_values(values, origin)
    layer = Document()
    merge(layer, Document(dict(values), dict.fromkeys(paths_of(values), origin)))
    return LoadedRecipe(validate(layer, name), name, layer.origins)


def read_chain(name: str, find: Finder) -> list[tuple[Path, Document]]:
    """Read the recipe `name` and the recipes it extends, the nearest first, without `extends`.

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
    refuse_two_spellings(document)
    return document


def _apply_set(layer: Document, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise RecipeError(
            f"--set {shorten(assignment)!r} has no value",
            todo="write --set KEY=VALUE, e.g. parallel.data=4",
        )
    keys = split_path(path)
    if keys[0] == "groups":
        raise RecipeError(
            f"--set {shorten(path)}: groups are changed in a recipe file only",
            todo="write a recipe that extends this one and lists its `groups`; --set on a field of "
            "the top level (--set args.max-num-seqs=64) reaches each group that does not set it",
        )
    check_values(dict.fromkeys(keys), "--set")
    # An empty text is the empty string, not YAML's null, which would remove the value.
    value = read_value(text, path, f"--set {shorten(path)}: the value") if text else ""
    nested: dict[str, Json] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        nested = {key: nested}
    parents = [".".join(keys[:depth]) for depth in range(1, len(keys))]
    origins = {parent: "--set" for parent in parents if parent not in layer.origins}
    origins[".".join(keys)] = "--set"
    merge(layer, Document(nested, origins))
