"""A recipe in the making: values by dotted path, where each came from, and what found no place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylaunch.checks.findings import Finding, Level
from raylaunch.importer.script_model import is_secret
from raylaunch.importer.shell.placeholders import unknowns
from raylaunch.recipe.layers import split_path

SECTIONS = (
    *(
        "description",
        "source",
        "model",
        "hardware",
        "parallel",
        "network",
        "args",
        "env",
        "secrets",
    ),
    *("features", "container", "tuning"),
)
"""Order of a recipe's sections."""


@dataclass(frozen=True)
class Placed:
    """Words of a script and the recipe field they went to."""

    where: str
    text: str
    target: str


@dataclass
class Draft:
    """Collects the recipe and the report."""

    values: dict[str, Any] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def put(self, path: str, value: Any, where: str, text: str) -> None:  # noqa: ANN401 - YAML holds anything
        """Write a value at a dotted path, and say where it is from."""
        self.set(path, value)
        self.placed_at(where, text, path)
        if isinstance(value, str) and not path.startswith("args.additional"):
            self.ask(path, value, where)

    def placed_at(self, where: str, text: str, target: str) -> None:
        """Say where words went."""
        self.placed.append(Placed(where, text, target))

    def set(self, path: str, value: Any) -> None:  # noqa: ANN401 - YAML holds anything
        """Write a value that follows from the scripts without being written in them."""
        keys = split_path(path)
        below = self.values
        for key in keys[:-1]:
            below = below.setdefault(key, {})
        below[keys[-1]] = value

    def get(self, path: str, default: Any = None) -> Any:  # noqa: ANN401 - YAML holds anything
        """Value at a dotted path."""
        below: Any = self.values
        for key in split_path(path):
            if not isinstance(below, Mapping) or key not in below:
                return default
            below = below[key]
        return below

    def ask(self, path: str, value: str, where: str) -> None:
        """Report what is still to be filled in by hand."""
        if found := unknowns(value):
            what = f"{path} holds a placeholder: {', '.join(dict.fromkeys(found))}"
            self.note(
                "placeholder",
                "warning",
                what,
                where,
                seen=value,
                todo=f"write the real value to {path}",
            )

    def drop(
        self, what: str, where: str, seen: str, todo: str = "", level: Level = "warning"
    ) -> None:
        """Report words that found no place."""
        self.note("not-placed", level, what, where, seen=seen, todo=todo)

    def own(self, what: str, where: str, seen: str) -> None:
        """Report words that are not needed because raylaunch sets it."""
        self.note("set-by-raylaunch", "info", what, where, seen=seen)

    def note(
        self, id_: str, level: Level, what: str, where: str, *, seen: str = "", todo: str = ""
    ) -> None:
        """Report something."""
        self.findings.append(Finding(id_, level, what, todo, where, seen))

    def whole_number(
        self,
        path: str,
        text: str | None,
        where: str,
        words: str,
        *,
        low: int = 1,
        high: int = 10**6,
    ) -> int | None:
        """Place a whole number; report what is none and leave the field to its default."""
        if (
            text is not None
            and text.isascii()
            and text.isdigit()
            and len(text) < 9
            and low <= int(text) <= high
        ):
            self.put(path, int(text), where, words)
            return int(text)
        what = (
            f"{path} wants a number from {low} to {high}"
            if text and not unknowns(text)
            else f"{path} is a placeholder"
        )
        self.note(
            "placeholder",
            "warning",
            f"{what}; left out",
            where,
            seen=words,
            todo=f"set {path} in the recipe",
        )
        return None

    def add_secret(self, name: str, where: str, text: str) -> None:
        """Name a secret; its value is never kept."""
        names = self.values.setdefault("secrets", [])
        if name not in names:
            names.append(name)
        self.placed.append(Placed(where, text, "secrets"))
        what = (
            f"{name} is a secret: the recipe only names it, its value comes from the environment "
            "`raylaunch start`"
        )
        self.note("secret", "info", what, where, seen=text)


def hides(name: str, value: str) -> bool:
    """Return whether a value must not be kept: a key, a token, or an address with a password."""
    head, found, rest = value.partition("://")
    return is_secret(name) or bool(found and head and "@" in rest and ":" in rest.split("@")[0])
