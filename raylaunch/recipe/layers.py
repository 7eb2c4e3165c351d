"""Layers of a recipe: mappings merge, everything else replaces, null removes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylaunch.errors import RecipeError
from raylaunch.recipe.reserved import normalise_flag, reserved_arg, reserved_env
from raylaunch.recipe.yaml_reader import Document, Json, shorten

OPEN_MAPPINGS = ("args", "env", "container.env", "tuning.sysctl", "features.speculative")
"""Recipe fields whose keys are the user's own: values below them are replaced, never merged."""


GROUP_SECTIONS = ("parallel", "args", "env", "hardware", "network")
"""Sections of the recipe that an entry of `groups` may change."""


def find_origin(origins: Mapping[str, str], path: str) -> str:
    """Return where `path` or its nearest written parent was written, or raylaunch's default."""
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return "raylaunch: default"


def refuse_two_spellings(document: Document) -> None:
    """Refuse max_num_seqs beside max-num-seqs: their order would decide which one counts."""
    args = document.values.get("args")
    seen: set[str] = set()
    for name in args if isinstance(args, dict) else ():
        flag = normalise_flag(name)
        if flag in seen:
            where = document.origins[f"args.{name}"].replace(":", ", line ")
            raise RecipeError(f"{where}: args gives --{shorten(flag)} twice, in two spellings")
        seen.add(flag)


def merge(base: Document, own: Document) -> None:
    """Lay `own` over `base`: mappings merge, everything else replaces, null removes."""
    _refuse_reserved_null(own)
    _merge_values(base.values, own.values, "")
    for key, value in own.values.items():
        # A list replaces the one below it, and the origins inside that one with it.
        if isinstance(value, list | tuple):
            _drop_below(base.origins, f"{key}.")
    base.origins.update(own.origins)


def _drop_below(origins: dict[str, str], prefix: str) -> None:
    for path in [path for path in origins if path.startswith(prefix)]:
        del origins[path]


def group_layer(layer: Document, index: int) -> Document:
    """Lay what `groups[index]` changes over the top level: the layer of a recipe of one group."""
    values = {key: value for key, value in layer.values.items() if key != "groups"}
    base = Document(values, dict(layer.origins))
    _drop_below(base.origins, "groups.")
    base.origins.pop("groups", None)
    groups = layer.values["groups"]
    group = groups[index] if isinstance(groups, list | tuple) else None
    if not isinstance(group, dict):
        raise TypeError("the layer was not validated")
    prefix = f"groups.{index}."
    origins = {
        path.removeprefix(prefix): origin
        for path, origin in layer.origins.items()
        if path.startswith(prefix)
    }
    own = {key: value for key, value in group.items() if key in GROUP_SECTIONS}
    paths = {path: origins[path] for path in origins if path.partition(".")[0] in own}
    merge(base, Document(own, paths))
    return base


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
                    why="null removes what a base recipe has, not what raylaunch sets",
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
    """Drop the flags of `base` that `own` gives in another spelling (max_num_seqs)."""
    given = {normalise_flag(name) for name in own}
    for name in list(base):
        if name not in own and normalise_flag(name) in given:
            del base[name]


def _is_open_value(path: str) -> bool:
    """Return whether `path` is below an open mapping, such as args.compilation-config."""
    return any(path.startswith(f"{mapping}.") for mapping in OPEN_MAPPINGS)


def split_path(path: str) -> list[str]:
    """Split a dotted recipe path; below an open mapping the rest is one key (flag `a.b`)."""
    for mapping in OPEN_MAPPINGS:
        if path.startswith(f"{mapping}."):
            return [*mapping.split("."), path[len(mapping) + 1 :]]
    return path.split(".")


def paths_of(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted path of every key, at every depth."""
    found = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        found.append(path)
        if isinstance(value, Mapping):
            found += paths_of(value, f"{path}.")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    found += [f"{path}.{index}", *paths_of(item, f"{path}.{index}.")]
    return found
