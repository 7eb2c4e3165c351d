"""What a value leaves open: placeholders, unknown variables, outputs of commands."""

from __future__ import annotations

import re


def is_open(value: str) -> bool:
    """Return whether a value still holds an expansion or a placeholder."""
    return re.search(r"\$[\w{(@*#]|`|\{\{|<[A-Za-z_]", value) is not None


def needs_a_run(value: str) -> bool:
    """Return whether a value holds a command substitution: only a run could tell it."""
    return re.search(r"\$\(|`", value) is not None


def unknowns(text: str) -> list[str]:
    """Return what is to be filled in by hand.

    `$NAME`, `{NAME}`, `<name>`, `|name|`, `xxxx`, `x.x.x.1`, `your_...`, `/path/to`.
    """
    is_json = text.startswith(("{", "[")) and len(text) > 2
    if is_json and not re.match(r"\{\w+\}|\{\{[^{}]+\}\}", text):
        # The braces of JSON are its own.
        return re.findall(r"\$\{?\w+\}?|\{\{ *\w[^{}\"]*\}\}|/path/to\b", text)
    found = re.findall(
        r"\$\([^)]*\)|`[^`]*`|\$\{[^}]*\}|\$\w+|\{\{[^{}]+\}\}|\{[A-Za-z_]\w*\}"
        r"|<[^<>\s][^<>]*>|\|\w+\|",
        text,
    )
    return found or re.findall(
        r"(?i)\b(?:x{2,}|(?:[\dx]+\.){1,3}x+(?:\.[\dx/]+)*|your_\w+)(?![\w])|/path/to\b", text
    )
