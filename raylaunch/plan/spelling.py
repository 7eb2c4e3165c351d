"""The nearest known name of a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LENGTH = 100
"""The comparison is quadratic in the length of the names; no flag or variable is that long."""


def distance(one: str, other: str, limit: int) -> int:
    """Return how many edits make one text of the other; anything above `limit` is `limit` + 1.

    An edit adds, removes or replaces a character, or swaps two neighbours (optimal string
    alignment).
    """
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, character in enumerate(one, 1):
        line = [row]
        for column, opposite in enumerate(other, 1):
            cost = min(
                last[column] + 1,
                line[column - 1] + 1,
                last[column - 1] + (character != opposite),
            )
            swapped = (
                row > 1
                and column > 1
                and (one[row - 2], character)
                == (
                    opposite,
                    other[column - 2],
                )
            )
            line.append(min(cost, before[column - 2] + 1) if swapped else cost)
        if min(line) > limit:
            return limit + 1
        before, last = last, line
    return min(last[-1], limit + 1)


def closest(name: str, known: Iterable[str], limit: int | None = None) -> str:
    """Return the known name that takes the fewest edits; "" when none is near.

    Names of equal distance: the one that shares more of its beginning.

    Args:
        name: The name as written.
        known: The names that exist.
        limit: The most edits; by default one for each four characters, at least 1, at most 3.
    """
    written = name[:MAX_LENGTH]
    if limit is None:
        limit = min(3, max(1, len(written) // 4))
    best: tuple[int, int, str] | None = None
    for other in known:
        edits = distance(written, other[:MAX_LENGTH], limit)
        if edits <= limit:
            candidate = (edits, -_shared_start(written, other), other)
            best = candidate if best is None else min(best, candidate)
    return best[2] if best else ""


def _shared_start(one: str, other: str) -> int:
    length = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        length += 1
    return length
