"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing a check saw: how bad, what, where, and what to do about it."""

    id: str
    level: Level
    what: str
    todo: str = ""
    where: str = ""
    """Host address, recipe field or "" for the whole deployment."""
    seen: str = ""
    """The raw value or line the finding rests on."""


def worst(findings: tuple[Finding, ...] | list[Finding]) -> Level | None:
    """The gravest level among `findings`; None when there are none."""
    present = {finding.level for finding in findings}
    return next((level for level in LEVELS if level in present), None)
