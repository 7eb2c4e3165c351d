"""Limits of YAML texts, and a reader for any text within them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

MAX_FILE_BYTES = 1 << 20
"""A recipe file may have 1 MiB; the largest shipped one has 5 kB."""

MAX_VALUES = 50_000
"""Values of one document, an alias counted at each use. 20,000 flags are 40,001 values."""

MAX_DEPTH = 64
"""Nested mappings and lists. PyYAML recurses in C, and libyaml needs quadratic time:
20,000 `[` take 1.8 s (measured).
"""

MAX_SCALAR = 100
"""Characters of a number or date. Python converts long ones in quadratic time."""

MAX_MERGES = 32
"""Merge keys (`<<: *alias`) of a cluster file; recipes have none."""

_NUMERIC = re.compile(r"[-+]?[.0-9][0-9_:.]*$")
LIMITS = (
    f"at most {MAX_VALUES} values, {MAX_DEPTH} levels deep; an alias counts as what it stands for"
)


class TooLargeError(ValueError):
    """A YAML text with more values or levels than allowed."""


def load_plain(text: str) -> object:
    """Return the value of any YAML text, for files that are not recipes, within the same limits.

    Raises:
        yaml.YAMLError: Not YAML.
        ValueError: A value that its tag does not fit, too many values, or too deeply nested ones.
    """
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    _bound_cost(bounded(yaml.parse(text, Loader=loader)))
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader
    # PyYAML's constructors fail in these ways on a text that its tag does not fit (`!!bool x`,
    # `!!timestamp x`).
    except (KeyError, AttributeError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"a value does not fit its tag: {error}") from error


def _bound_cost(events: Iterator[yaml.Event]) -> None:
    """Refuse what PyYAML's constructors need too long for.

    A merge key copies the mapping it names, and a list of aliases below merge keys doubles it per
    line.
    """
    merges = 0
    follows_merge = False
    for event in events:
        if follows_merge and isinstance(event, yaml.SequenceStartEvent):
            raise ValueError(f"{line_of(event)}: merge one mapping per `<<`, not a list")
        follows_merge = False
        if not isinstance(event, yaml.ScalarEvent):
            continue
        is_plain = not event.style
        if is_plain and event.value == "<<":
            follows_merge = True
            merges += 1
        if merges > MAX_MERGES:
            raise ValueError(f"{line_of(event)}: more than {MAX_MERGES} merge keys")
        if len(event.value) > MAX_SCALAR and (event.tag or _NUMERIC.match(event.value)):
            raise ValueError(f"{line_of(event)}: a number of {len(event.value)} characters")


def bounded(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    """Pass `events` on; too many or too deep ones end in an error that names the line.

    Raises:
        TooLargeError: More than MAX_VALUES events or MAX_DEPTH levels.
    """
    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise TooLargeError(f"{line_of(event)}: {LIMITS}")
        yield event


def line_of(part: yaml.Event | yaml.Node) -> str:
    """Return "line 12" of an event or node."""
    return f"line {part.start_mark.line + 1}" if part.start_mark else "an unknown line"
