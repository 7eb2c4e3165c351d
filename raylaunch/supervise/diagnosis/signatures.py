"""The known failures, read from signatures.yaml once and compiled once; what each field means is told there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Kind = Literal["deterministic", "transient", "device", "harmless"]
"""Failure class: fails again the same way; may pass; belongs to one node; never a reason to restart."""

Level = Literal["fatal", "hang", "warning", "quality"]


@dataclass(frozen=True)
class Signature:
    """One known failure. `cause` and `remedy` may hold `{0}`, `{1}`: the groups that took part in the match."""

    id: str
    pattern: re.Pattern[str]
    level: Level
    kind: Kind
    cause: str
    remedy: str
    source: str
    sample: str
    wrapper: bool = False
    """Only says that something else failed."""
    symptom: bool = False
    """Says that a peer is gone or late."""


@cache
def load_signatures() -> tuple[Signature, ...]:
    """All signatures, in the order of the file."""
    import yaml

    loader = getattr(
        yaml, "CSafeLoader", yaml.SafeLoader
    )  # libyaml is about ten times as fast, but not always built in
    text = files(__package__).joinpath("signatures.yaml").read_text(encoding="utf-8")
    return tuple(_signature(entry) for entry in yaml.load(text, Loader=loader))  # noqa: S506 - a safe loader either way


def _signature(entry: dict[str, Any]) -> Signature:
    parts = {**entry, "kind": entry["class"], "pattern": re.compile(entry["pattern"], re.MULTILINE)}
    del parts["class"]
    return Signature(**parts)
