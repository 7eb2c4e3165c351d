"""The parallel sizes that would fit, where a message says that a number is not divisible."""

from __future__ import annotations

import re

_NOT_DIVISIBLE = re.compile(
    r"\b(\d{1,7})\)? ?(?:is not|is n't|isn't|must be|should be|not|to be)(?: evenly)? divisible by "
    r"(?:[a-z][\w ]{0,40}?)?[=(: ]{0,2}(\d{1,5})\b"
)
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 64)
_MOST_RANKS = 512
"""What is divided by more is no number of ranks but a block or group."""
_FOR_BLOCKS = re.compile(r"(?i)group[_ ]?size|block|tile|alignment|page|chunk|bytes|per_partition")


def find_divisors(message: str) -> str:
    """Return a clause with the sizes that divide the number of a message; "" without one."""
    found = _NOT_DIVISIBLE.search(message)
    if found is None or _FOR_BLOCKS.search(message):
        return ""
    number, by = int(found[1]), int(found[2])
    if not 1 < by <= _MOST_RANKS or number % by == 0:
        return ""
    fitting = [str(size) for size in _SIZES if size < number and number % size == 0]
    return f"{number} can be split into {', '.join(fitting)}" if fitting else ""
