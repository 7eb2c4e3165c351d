"""From YAML to Recipe: layers (`extends`), `--set`, and errors that name the nearest valid key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raylaunch.errors import RecipeError
from raylaunch.recipe.fallbacks import refuse_unfit
from raylaunch.recipe.health_settings import Fallback
from raylaunch.recipe.layers import (
    find_origin,
    group_layer,
    merge,
    paths_of,
    refuse_two_spellings,
    split_path,
)
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
    fallbacks: tuple[LoadedRecipe, ...] = ()
    """The recipes of `fallback`, in that order."""

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
    layer = _merge_chain(chain)
    for assignment in sets:
        _apply_set(layer, assignment)
    path = chain[0][0]
    loaded = LoadedRecipe(validate(layer, path.name), path.stem, layer.origins)
    return _with_fallbacks(loaded, layer, _fallback_reader(chain, find, layer))


def change_recipe(loaded: LoadedRecipe, sets: Sequence[str]) -> LoadedRecipe:
    """Return a recipe with more `--set` assignments applied.

    The recipes of `fallback` are those that were read with it.

    Raises:
        RecipeError: A path or a value that the schema refuses, or another fallback by name.
    """
    layer = Document(loaded.recipe.model_dump(exclude_unset=True), dict(loaded.origins))
    for assignment in sets:
        _apply_set(layer, assignment)
    known = list(zip(loaded.recipe.fallback, loaded.fallbacks, strict=True))
    changed = LoadedRecipe(validate(layer, loaded.name), loaded.name, layer.origins)

    def read(entry: Fallback) -> LoadedRecipe:
        for read_entry, fallback in known:
            if read_entry == entry:
                return fallback
        raise RecipeError(
            f"--set fallback: the recipe {shorten(entry.recipe)} is not among those that were read",
            todo="give the recipe itself, with its `fallback`, instead of --set",
        )

    return _with_fallbacks(changed, layer, read)


def recipe_from_mapping(
    values: Mapping[str, Any], name: str, origin: str = "caller", find: Finder | None = None
) -> LoadedRecipe:
    """Validate a recipe given as a mapping (from Python, or restored from JSON).

    Args:
        values: The recipe.
        name: Its name.
        origin: Where its values were written.
        find: Finds the recipes of `fallback`.

    Raises:
        RecipeError: A value that a recipe cannot hold, an unknown key, or a value the schema
            refuses.
    """
    check_values(values, origin)
    layer = Document()
    merge(layer, Document(dict(values), dict.fromkeys(paths_of(values), origin)))
    loaded = LoadedRecipe(validate(layer, name), name, layer.origins)
    return _with_fallbacks(loaded, layer, _fallback_reader([], find, layer))


def read_chain(name: str, find: Finder, beside: Path | None = None) -> list[tuple[Path, Document]]:
    """Read the recipe `name` and the recipes it extends, the nearest first, without `extends`.

    `beside` is the folder of the recipe that names it.

    Raises:
        RecipeError: One of them is unknown or malformed, or a recipe extends itself.
    """
    chain: list[tuple[Path, Document]] = []
    path = find(name, beside)
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


def read_fallback_files(chain: Sequence[tuple[Path, Document]], find: Finder) -> list[Path]:
    """Return the files of the recipes that the files of a chain name under `fallback`.

    Raises:
        RecipeError: See `read_chain`.
    """
    files: list[Path] = []
    folder, entries = _written_fallbacks(chain)
    for entry in entries:
        name = entry.get("recipe") if isinstance(entry, dict) else entry
        # What is no name is refused when the recipe is validated.
        if name and isinstance(name, str):
            files += [path for path, _ in read_chain(name, find, folder)]
    return files


FallbackReader = Callable[[Fallback], LoadedRecipe]
"""Reads the recipe that an entry of `fallback` names."""


def _with_fallbacks(loaded: LoadedRecipe, layer: Document, read: FallbackReader) -> LoadedRecipe:
    """Return the recipe with those of its `fallback`.

    Raises:
        RecipeError: One is unknown or malformed, or cannot take the recipe's place.
    """
    found = []
    for index, entry in enumerate(loaded.recipe.fallback):
        where = f"{loaded.origin(f'fallback.{index}')}: fallback[{index}]"
        other = read(entry) if entry.recipe else _changed_fallback(loaded, layer, entry)
        refuse_unfit(_group_recipes(loaded), _group_recipes(other), where)
        found.append(other)
    return replace(loaded, fallbacks=tuple(found))


def _fallback_reader(
    chain: Sequence[tuple[Path, Document]], find: Finder | None, layer: Document
) -> FallbackReader:
    """Return what reads the recipes that are named under `fallback` in a chain or by `--set`."""
    folder, _ = _written_fallbacks(chain)
    beside = None if layer.origins.get("fallback") == "--set" else folder

    def read(entry: Fallback) -> LoadedRecipe:
        if find is None:
            raise RecipeError(f"fallback: the recipe {shorten(entry.recipe)} cannot be read here")
        others = read_chain(entry.recipe, find, beside)
        path, own = others[0]
        if own.values.get("fallback"):
            raise RecipeError(
                f"fallback: the recipe {shorten(entry.recipe)} has fallbacks itself",
                todo="list all of them in the recipe that is started, the largest first",
            )
        return _smaller(_merge_chain(others), entry, path.stem)

    return read


def _written_fallbacks(chain: Sequence[tuple[Path, Document]]) -> tuple[Path | None, list[Json]]:
    """Return the `fallback` of a chain as it is written, and the folder of its file."""
    for path, document in chain:
        if "fallback" in document.values:
            entries = document.values["fallback"]
            return path.parent, entries if isinstance(entries, list) else []
    return None, []


def _changed_fallback(loaded: LoadedRecipe, layer: Document, entry: Fallback) -> LoadedRecipe:
    values = loaded.recipe.model_dump(exclude_unset=True)
    return _smaller(Document(values, dict(layer.origins)), entry, loaded.name)


def _smaller(layer: Document, entry: Fallback, name: str) -> LoadedRecipe:
    """Return the recipe of a layer with the changes of an entry of `fallback`."""
    # A recipe that extends the full one would inherit it.
    layer.values.pop("fallback", None)
    for path, value in entry.set.items():
        _set_value(layer, path, value, "fallback")
    if layer.values.get("fallback"):
        raise RecipeError("fallback: `set` cannot give a fallback further ones")
    return LoadedRecipe(validate(layer, name), name, layer.origins)


def _group_recipes(loaded: LoadedRecipe) -> list[Recipe]:
    """Return the recipe of each group."""
    recipe = loaded.recipe
    if not recipe.groups:
        return [recipe] * recipe.parallel.replicas
    layer = Document(recipe.model_dump(exclude_unset=True), dict(loaded.origins))
    found: list[Recipe] = []
    for index, group in enumerate(recipe.groups):
        found += [validate(group_layer(layer, index), loaded.name)] * group.replicas
    return found


def _merge_chain(chain: Sequence[tuple[Path, Document]]) -> Document:
    layer = Document()
    for _, document in reversed(chain):
        merge(layer, document)
    return layer


def _apply_set(layer: Document, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise RecipeError(
            f"--set {shorten(assignment)!r} has no value",
            todo="write --set KEY=VALUE, e.g. parallel.data=4",
        )
    # An empty text is the empty string, not YAML's null, which would remove the value.
    value = read_value(text, path, f"--set {shorten(path)}: the value") if text else ""
    _set_value(layer, path, value, "--set")


def _set_value(layer: Document, path: str, value: Json, origin: str) -> None:
    """Set one value of a recipe by its dotted path; `origin` names who sets it."""
    keys = split_path(path)
    if keys[0] == "groups":
        raise RecipeError(
            f"{origin} {shorten(path)}: groups are changed in a recipe file only",
            todo="write a recipe that extends this one and lists its `groups`; --set on a field of "
            "the top level (--set args.max-num-seqs=64) reaches each group that does not set it",
        )
    check_values(dict.fromkeys(keys), origin)
    nested: dict[str, Json] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        nested = {key: nested}
    parents = [".".join(keys[:depth]) for depth in range(1, len(keys))]
    origins = {parent: origin for parent in parents if parent not in layer.origins}
    origins[".".join(keys)] = origin
    merge(layer, Document(nested, origins))
