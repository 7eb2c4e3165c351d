"""From YAML to Recipe: reading with line numbers, `extends`, `--set`, and errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raylaunch.errors import RecipeError
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.reserved import normalise_flag

OPEN_MAPPINGS = ("args", "env", "container.env", "tuning.sysctl", "features.speculative")
"""Recipe fields whose keys are the user's own: values below them are replaced, never merged."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its name and the origin of each value (dotted path -> "recipe a2-dual.yaml:31" or "--set")."""

    recipe: Recipe
    name: str
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, path: str) -> str:
        """Where the value at `path` was written; its nearest written parent, or raylaunch's default."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return "raylaunch: default"


@dataclass
class _Layer:
    """One YAML document: its values, and the line of each key."""

    values: dict[str, Any]
    origins: dict[str, str]


Finder = Callable[[str, Path | None], Path]
"""Finds a recipe file by name or path; the second argument is the folder of the recipe that asks."""


def load_recipe(name: str, find: Finder, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Read the recipe `name`, apply what it extends and the `--set` assignments in `sets` ("a.b=value").

    Raises:
        RecipeError: unknown recipe, malformed YAML, an unknown key, or a value the schema refuses.
    """
    path = find(name, None)
    layer = _read_layers(path, find, ())
    for assignment in sets:
        _apply_set(layer, assignment)
    return LoadedRecipe(_validate(layer, path.name), path.stem, layer.origins)


def recipe_from_mapping(
    values: Mapping[str, Any], name: str, origin: str = "caller"
) -> LoadedRecipe:
    """Validate a recipe given as a mapping (from Python, or restored from JSON)."""
    layer = _Layer({}, {})
    _merge(layer, _Layer(dict(values), dict.fromkeys(_paths(values), origin)))
    return LoadedRecipe(_validate(layer, name), name, layer.origins)


def _read_layers(path: Path, find: Finder, seen: tuple[Path, ...]) -> _Layer:
    if path in seen:
        raise RecipeError(
            f"recipe {path.name} extends itself", why=" -> ".join(p.name for p in (*seen, path))
        )
    own = _read_file(path)
    base_name = own.values.pop("extends", None)
    found = find(str(base_name), path.parent) if base_name is not None else None
    base = _read_layers(found, find, (*seen, path)) if found else _Layer({}, {})
    _merge(base, own)
    return base


def _read_file(path: Path) -> _Layer:
    try:
        text = path.read_text(encoding="utf-8")
        return _parse(text, path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read", why=str(error)) from error
    except yaml.MarkedYAMLError as error:
        raise _malformed(path, error) from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a NUL byte, the 31st of June, an alias to itself
        raise RecipeError(f"recipe {path.name} is not valid YAML", why=str(error)) from error


def _parse(text: str, file: str) -> _Layer:
    node = yaml.compose(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"recipe {file} is not a mapping of keys to values")
    origins: dict[str, str] = {}
    return _Layer(_build(node, file, "", origins), origins)


def _malformed(path: Path, error: yaml.MarkedYAMLError) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return RecipeError(
        f"recipe {path.name} is not valid YAML{where}: {error.problem or error.context}",
        evidence=(mark.get_snippet() or "") if mark else "",
        todo="mend the line; a value that starts with { [ * & or @ or holds ': ' needs quotes",
    )


def _build(node: yaml.Node, file: str, prefix: str, origins: dict[str, str]) -> Any:  # noqa: ANN401 - YAML holds anything
    if not isinstance(node, yaml.MappingNode):
        return _plain(node)
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(_plain(key_node))
        line = key_node.start_mark.line + 1
        if key in built:
            raise RecipeError(f"recipe {file}, line {line}: the key {prefix}{key} stands twice")
        if prefix == "args." and normalise_flag(key) in map(normalise_flag, built):
            flag = normalise_flag(key)
            raise RecipeError(
                f"recipe {file}, line {line}: args gives --{flag} twice, in two spellings"
            )
        origins[prefix + key] = f"recipe {file}:{line}"
        built[key] = _build(value_node, file, f"{prefix}{key}.", origins)
    return built


def _plain(node: yaml.Node) -> Any:  # noqa: ANN401 - YAML holds anything
    loader = yaml.SafeLoader("")
    return loader.construct_object(node, deep=True)


def _merge(base: _Layer, own: _Layer) -> None:
    """Lay `own` over `base`: mappings merge, everything else replaces, null removes; a flag in whichever spelling."""
    base.values = _merged(base.values, own.values, "")
    base.origins = {**base.origins, **own.origins}


def _merged(base: dict[str, Any], own: dict[str, Any], prefix: str) -> dict[str, Any]:
    out = _without_respelled(base, own) if prefix == "args." else dict(base)
    for key, value in own.items():
        path = f"{prefix}{key}"
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and not _is_open_value(path):
            below = out.get(key)
            out[key] = _merged(below if isinstance(below, dict) else {}, value, f"{path}.")
        else:
            out[key] = value
    return out


def _without_respelled(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The flags of `base` but for those that `own` gives in another spelling (max_num_seqs for max-num-seqs)."""
    given = {normalise_flag(name) for name in own}
    return {
        name: value
        for name, value in base.items()
        if name in own or normalise_flag(name) not in given
    }


def _is_open_value(path: str) -> bool:
    """Whether `path` names a value below an open mapping, such as args.compilation-config."""
    return any(path.startswith(f"{mapping}.") for mapping in OPEN_MAPPINGS)


def _apply_set(layer: _Layer, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise RecipeError(
            f"--set {assignment!r} has no value", todo="write --set KEY=VALUE, e.g. parallel.data=4"
        )
    keys = split_path(path)
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {path}: the value is not valid YAML", evidence=text) from error
    nested: dict[str, Any] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        nested = {key: nested}
    parents = {".".join(keys[:depth]) for depth in range(1, len(keys))}
    new_parents = dict.fromkeys(parents - layer.origins.keys(), "--set")
    _merge(layer, _Layer(nested, {**new_parents, ".".join(keys): "--set"}))


def split_path(path: str) -> list[str]:
    """Split a dotted recipe path; below an open mapping the rest is one key (`args.a.b` is flag `a.b`)."""
    for mapping in OPEN_MAPPINGS:
        if path.startswith(f"{mapping}."):
            return [*mapping.split("."), path[len(mapping) + 1 :]]
    return path.split(".")


def _paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    below = [
        p
        for key, value in values.items()
        if isinstance(value, Mapping)
        for p in _paths(value, f"{prefix}{key}.")
    ]
    return [*(f"{prefix}{key}" for key in values), *below]


def _validate(layer: _Layer, file: str) -> Recipe:
    try:
        return Recipe.model_validate(layer.values)
    except ValidationError as error:
        problems = [_explain(problem, layer, file) for problem in error.errors(include_url=False)]
        raise RecipeError(
            "\n".join(problems),
            todo="`raylaunch show NAME` prints a whole recipe; docs/recipes.md lists the fields",
        ) from error


def _explain(problem: Any, layer: _Layer, file: str) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    path = ".".join(str(part) for part in problem["loc"] if part != "[key]") or _named_path(
        problem["msg"]
    )
    origin = LoadedRecipe(None, "", layer.origins).origin(path) if path else ""  # type: ignore[arg-type]
    where = (
        (origin if not origin.startswith("raylaunch") else f"recipe {file}")
        if path
        else f"recipe {file}"
    )
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {path!r}{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where}: {path} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (got {problem['input']!r})"
    return f"{where}: {path + ': ' if problem['loc'] else ''}{message}{shown}"


def _named_path(message: str) -> str:
    """The recipe path that a whole-recipe complaint begins with ("Value error, args.port is set by ...")."""
    found = re.match(r"Value error, ((?:args|env)\.\S+) ", message)
    return found[1] if found else ""


def _nearest(location: Sequence[str | int]) -> str:
    siblings = field_names(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), siblings, n=1, cutoff=0.6)
    if close:
        nearest = ".".join([*map(str, location[:-1]), close[0]])
        return f"; did you mean {nearest!r}?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


def field_names(location: Sequence[str | int]) -> list[str]:
    """Names of the recipe's fields below `location`; empty where the keys are free."""
    model: type[BaseModel] | None = Recipe
    for part in location:
        model = _model_of(model.model_fields[str(part)].annotation) if model else None
    return [*model.model_fields, *(["extends"] if model is Recipe else [])] if model else []


def _model_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a type form
    if get_origin(annotation) is None:
        return (
            annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel)
            else None
        )
    return next((model for arg in get_args(annotation) if (model := _model_of(arg))), None)
