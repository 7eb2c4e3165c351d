"""Patterns that a long line of a foreign log could keep busy for hours, found by their form."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"(?P<escape>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[\s\S]))"
    # Also without its end: to search for that again from each bracket takes quadratic time.
    r"|(?P<set>\[\^?\]?(?:\\[\s\S]|[^\]\\])*+(?P<end>\]?))"
    r"|(?P<repeat>[*+]|\{\d*,\d*\}|\{\d+\}|\?)[?+]?"
    r"|(?P<other>[\s\S])"
)
_ENDLESS = re.compile(r"^(?:[*+]|\{\d*,\})$")
_LARGEST = 10_000
_BROAD_ESCAPES = ("\\S", "\\D", "\\W")


def find_costly(pattern: str) -> str:
    r"""Return what makes a pattern slow; "" when nothing does.

    Lines are cut to 8192 characters, so one endless repetition behind a literal text is cheap, and
    `\s+` or `\d+` meet few characters in a row. A second one of nearly any character, or one of a
    group, needs quadratic or exponential time.
    """
    before = ""
    broad = 0
    for found in _TOKEN.finditer(pattern):
        if found["end"] == "":
            return "a `[` has no `]`"
        repeat = found["repeat"]
        if repeat is None:
            before = found[0]
            broad = 0 if before == "|" else broad  # only one alternative takes part
            continue
        if any(int(number) > _LARGEST for number in re.findall(r"\d+", repeat)):
            return f"`{repeat}` repeats more than {_LARGEST} times"
        if not _ENDLESS.match(repeat):
            continue
        if before == ")":
            return f"a group is repeated without an end (`){repeat}`)"
        if before == "." or before.startswith("[^") or before in _BROAD_ESCAPES:
            broad += 1
            if broad > 1 or found.start() == len(before):
                return f"`{before}{repeat}` has no end: write `{before}{{0,200}}`"
    return ""
