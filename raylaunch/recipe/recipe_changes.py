"""What differs between two recipes, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from raylaunch.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class Change:
    """One setting that differs. Values are JSON; "-" where there is none."""

    path: str
    old: str
    new: str


def recipe_changes(old: LoadedRecipe, new: LoadedRecipe) -> list[Change]:
    """Return the settings that differ, by path."""
    before = _flatten(old.recipe.model_dump(mode="json"))
    after = _flatten(new.recipe.model_dump(mode="json"))
    changes = []
    for path in sorted(before.keys() | after.keys()):
        change = Change(path, before.get(path, "-"), after.get(path, "-"))
        if change.old != change.new:
            changes.append(change)
    return changes


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return found
