"""Which failure explains which: the edges of explains.yaml, applied to the clues of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Edge:
    """Any of `causes` explains any of `explain`."""

    causes: tuple[str, ...]
    explain: tuple[str, ...]


@cache
def load_edges() -> tuple[Edge, ...]:
    """Return the edges, in the order of the file."""
    import yaml

    text = files(__package__).joinpath("explains.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)
    return tuple(Edge(tuple(entry["causes"]), tuple(entry["explain"])) for entry in entries)


def explained_ids(found: Sequence[str]) -> dict[str, str]:
    """Return the ids among `found` that another one explains, each with that cause.

    Two that explain each other are both kept.
    """
    direct = {
        (cause, effect)
        for cause in found
        for effect in found
        if cause != effect and _explains(cause, effect)
    }
    return {effect: cause for cause, effect in sorted(direct) if (effect, cause) not in direct}


@cache
def _explains(cause: str, effect: str) -> bool:
    return any(
        any(fnmatchcase(cause, pattern) for pattern in edge.causes)
        and any(fnmatchcase(effect, pattern) for pattern in edge.explain)
        for edge in load_edges()
    )
