"""The result of a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


def forgive(findings: Sequence[Finding], skipped: Mapping[str, str]) -> list[Finding]:
    """Make warnings of the errors whose ids are in `skipped`; its values, the reasons, are kept in the words."""
    return [
        replace(one, level="warning", what=f"{one.what} (skipped: {skipped[one.id]})")
        if one.level == "error" and one.id in skipped
        else one
        for one in findings
    ]
