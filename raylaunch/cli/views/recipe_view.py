"""Recipes for people: the list, and one recipe as YAML that can be read back, with origins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypedDict

import yaml

from raylaunch.checks.secret_checks import mask_recipe
from raylaunch.plan.layout import nodes_needed
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.layers import OPEN_MAPPINGS
from raylaunch.recipe.load import LoadedRecipe

ORIGIN_COLUMN = 56
"""Column of the origins; behind a longer value the origin follows directly."""

LIST_HEADER = ("NAME", "MODEL", "HARDWARE", "NODES", "NPUS", "CONTEXT", "DESCRIPTION")


class Summary(TypedDict):
    """The values of one recipe in `list`. `context` is None for the model's own maximum."""

    name: str
    model: str
    hardware: str
    nodes: int
    npus: int
    context: object
    description: str
    good_for: str
    source: str


def recipe_summary(loaded: LoadedRecipe) -> Summary:
    """Summarize a recipe for `list`."""
    recipe = loaded.recipe
    groups = expand_groups(loaded)
    sizes = [group.loaded.recipe for group in groups]
    npus = sum(one.npus_per_server * one.parallel.servers for one in sizes)
    on_cpu = recipe.hardware.platform == "cpu"
    return {
        "name": loaded.name,
        "model": recipe.model.served_name,
        "hardware": recipe.hardware.platform,
        "nodes": nodes_needed(groups),
        "npus": 0 if on_cpu else npus,
        "context": recipe.args.get("max-model-len"),
        "description": recipe.description,
        "good_for": recipe.good_for,
        "source": recipe.source,
    }


def list_row(summary: Summary) -> tuple[str, ...]:
    """Return one row of `list`."""
    context = "model's" if summary["context"] is None else str(summary["context"])
    description = "; ".join(part for part in (summary["description"], summary["good_for"]) if part)
    return (
        summary["name"],
        summary["model"],
        summary["hardware"],
        str(summary["nodes"]),
        str(summary["npus"]),
        context,
        description,
    )


def yaml_lines(loaded: LoadedRecipe) -> Iterator[str]:
    """Yield the resolved recipe as YAML, each value with a comment that names its origin.

    What looks like a secret is masked.
    """
    yield f"# {loaded.name}: every value of the recipe, and where it comes from"
    values = loaded.recipe.model_dump(mode="json")
    # An entry of `groups` holds only what differs, and a null there removes a value.
    values["groups"] = [
        group.model_dump(mode="json", exclude_unset=True) for group in loaded.recipe.groups
    ]
    yield from _mapping(mask_recipe(values), loaded, "")


def origin_of(loaded: LoadedRecipe, path: str) -> str:
    """Return where the value at `path` was written; "default" if it was written nowhere."""
    while path not in loaded.origins:
        parent = path.rpartition(".")[0]
        if not parent or not _is_open(parent):
            return "default"
        path = parent
    return loaded.origins[path].removeprefix("recipe ")


def _is_open(path: str) -> bool:
    """Whether `path` lies in a mapping whose keys the recipe chooses (`args`, `env`)."""
    return any(path == top or path.startswith(f"{top}.") for top in OPEN_MAPPINGS)


def _mapping(values: Mapping[str, object], loaded: LoadedRecipe, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        path = f"{prefix}{key}"
        head = f"{indent}{_scalar(key)}:"
        is_free = _in_group(prefix) in ("args.", "env.")
        if isinstance(value, dict) and value and not is_free:
            yield head
            yield from _mapping(value, loaded, f"{path}.")
        elif path == "groups" and isinstance(value, list) and value:
            yield head
            for index, group in enumerate(value):
                first, *others = _mapping(group, loaded, f"groups.{index}.")
                yield f"  - {first.lstrip()}"
                yield from others
        elif isinstance(value, list) and value and path.startswith("container."):
            yield _commented(head, origin_of(loaded, path))
            yield from (f"{indent}  - {_scalar(item)}" for item in value)
        else:
            yield _commented(f"{head} {_scalar(value)}", origin_of(loaded, path))


def _in_group(path: str) -> str:
    """Return `path` without "groups.0." in front."""
    return re.sub(r"^groups\.\d+\.", "", path)


def _commented(text: str, origin: str) -> str:
    return f"{text.ljust(ORIGIN_COLUMN)}  # {origin}"


def _scalar(value: object) -> str:
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        width=10**9,  # never folded: the origin follows on the same line
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")
