"""Recipes for people: the list, and one recipe whole, as YAML that can be read back, each value with its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raylaunch.recipe.load import OPEN_MAPPINGS, LoadedRecipe

ORIGIN_COLUMN = 56
"""Origins stand at this column, or right behind a longer value."""

LIST_HEADER = ("NAME", "MODEL", "HARDWARE", "NODES", "NPUS", "CONTEXT", "DESCRIPTION")


def recipe_summary(loaded: LoadedRecipe) -> dict[str, Any]:
    """What `list` says of a recipe. `context` is None where the model's own maximum holds."""
    recipe = loaded.recipe
    servers = recipe.parallel.servers
    per_node = (
        1 if recipe.hardware.spread else max(1, recipe.npus_per_node // recipe.npus_per_server)
    )
    return {
        "name": loaded.name,
        "model": recipe.model.served_name,
        "hardware": recipe.hardware.platform,
        "nodes": -(-servers // per_node),
        "npus": 0 if recipe.hardware.platform == "cpu" else servers * recipe.npus_per_server,
        "context": recipe.args.get("max-model-len"),
        "description": recipe.description,
        "good_for": recipe.good_for,
        "source": recipe.source,
    }


def list_row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of `list`."""
    context = "model's" if summary["context"] is None else str(summary["context"])
    hardware = str(summary["hardware"])
    described = "; ".join(part for part in (summary["description"], summary["good_for"]) if part)
    return (
        summary["name"],
        summary["model"],
        hardware,
        str(summary["nodes"]),
        str(summary["npus"]),
        context,
        described,
    )


def yaml_lines(loaded: LoadedRecipe) -> Iterator[str]:
    """The resolved recipe as YAML; the comment behind each value says where it was written."""
    yield f"# {loaded.name}: every value of the recipe, and where it comes from"
    yield from _mapping(loaded.recipe.model_dump(mode="json"), loaded, "")


def origin_of(loaded: LoadedRecipe, path: str) -> str:
    """Where exactly the value at `path` was written; "default" for what nobody wrote."""
    while path not in loaded.origins:
        parent = path.rpartition(".")[0]
        if not parent or not any(
            parent == top or parent.startswith(f"{top}.") for top in OPEN_MAPPINGS
        ):
            return "default"
        path = parent
    return loaded.origins[path].removeprefix("recipe ")


def _mapping(values: Mapping[str, Any], loaded: LoadedRecipe, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and prefix not in ("args.", "env."):
            yield f"{indent}{_scalar(key)}:"
            yield from _mapping(value, loaded, f"{path}.")
        elif isinstance(value, list) and value and path.startswith("container."):
            yield _commented(f"{indent}{_scalar(key)}:", origin_of(loaded, path))
            yield from (f"{indent}  - {_scalar(item)}" for item in value)
        else:
            yield _commented(f"{indent}{_scalar(key)}: {_scalar(value)}", origin_of(loaded, path))


def _commented(text: str, origin: str) -> str:
    return f"{text.ljust(ORIGIN_COLUMN)}  # {origin}"


def _scalar(value: object) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
