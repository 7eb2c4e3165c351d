"""Writes a recipe as YAML: sections in order, JSON values on one line, open questions on top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from raylaunch.checks.findings import Finding

MARK = "# Imported by `raylaunch import`"
"""First line of the file: raylaunch may overwrite what begins with it."""

_BLOCKS = (
    "tool_calling",
    "profiling",
    "speculative",
    "sources",
    "sysctl",
    "env",
    "devices",
    "mounts",
)


def write_recipe(values: Mapping[str, Any], findings: Iterable[Finding]) -> str:
    """Return the file's text; reading it gives `values` again."""
    return "\n".join([*_head(findings), "", *_mapping(values, 0, "")]).rstrip("\n") + "\n"


def _head(findings: Iterable[Finding]) -> Iterator[str]:
    yield f"{MARK}; nothing was executed. Check it with `raylaunch plan FILE`."
    warnings = [finding for finding in findings if finding.level == "warning"]
    if warnings:
        yield "# To look at:"
    for finding in warnings:
        yield _comment(f"- {finding.where}: {finding.what}")


def _comment(text: str) -> str:
    return "#   " + "".join(
        letter if letter.isprintable() else " " for letter in " ".join(text.split())
    )


def _mapping(values: Mapping[str, Any], depth: int, inside: str) -> Iterator[str]:
    indent = "  " * depth
    for key, value in values.items():
        free = inside in ("args", "env", "speculative", "sysctl")
        if isinstance(value, Mapping) and value and not free and (depth == 0 or key in _BLOCKS):
            yield f"{indent}{_scalar(key)}:"
            yield from _mapping(value, depth + 1, key)
        elif isinstance(value, list) and value and not free:
            yield f"{indent}{_scalar(key)}:"
            yield from (f"{indent}  - {_scalar(item)}" for item in value)
        else:
            yield f"{indent}{_scalar(key)}: {_scalar(value)}"
        if depth == 0 and key != "description":
            yield ""


def _scalar(value: object) -> str:
    # allow_unicode keeps names readable; safe_dump quotes and escapes whatever YAML would read as
    # something else.
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False
    )
    flat = text.removesuffix("\n").removesuffix("\n...")
    return flat if flat.isprintable() else _escaped(value)


def _escaped(value: object) -> str:
    """Write a value with line breaks or invisible letters on one line, in double quotes."""
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_escaped(key)}: {_escaped(inner)}" for key, inner in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_escaped, value)) + "]"
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_style=style, width=10**9, allow_unicode=False)
    return text.removesuffix("\n").removesuffix("\n...")
