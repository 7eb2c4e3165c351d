"""Checks of the recipes under `fallback`: one that is wrong shall not be found out at night."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from raylaunch.checks.findings import Finding
from raylaunch.recipe.load import LoadedRecipe

Judge = Callable[[LoadedRecipe], Iterable[Finding]]
"""The checks of a recipe without nodes."""


def check_fallbacks(loaded: LoadedRecipe, judge: Judge) -> Iterator[Finding]:
    """Find what would keep a fallback from its start, and mention which there are."""
    after_s = loaded.recipe.health.degrade_after_s
    for entry, fallback in zip(loaded.recipe.fallback, loaded.fallbacks, strict=True):
        yield Finding(
            id="fallback",
            level="info",
            what=f"while a node is lost, {entry.title} serves after {after_s:g} s",
            todo="see that its weights are on every node",
            where=loaded.origin("fallback"),
        )
        for found in judge(fallback):
            if found.level == "error":
                yield _cannot_start(entry.title, found)


def _cannot_start(title: str, found: Finding) -> Finding:
    """Warn only: the recipe itself can be started."""
    return Finding(
        id="fallback-refused",
        level="warning",
        what=f"the fallback {title} would be refused: {found.what} [{found.id}]",
        todo=found.todo,
        where=found.where,
        seen=found.seen,
    )
