"""The environment variables of vLLM, vllm-ascend and CANN, from a list; a node knows its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from raylaunch.plan.spelling import closest

LIST = "raylaunch's list of vLLM 0.23 and 0.32, vllm-ascend 0.18 to 0.26 and CANN"
"""Where the names come from, for findings that rest on them."""
_SHORT = 12
"""Up to this length names that differ by two characters may be two names (HCCL_RDMA_TC, _SL)."""


@cache
def read_variables() -> dict[str, tuple[str, ...]]:
    """Read the list: name -> its readers, as "cann", "vllm" or "ascend:0.18,0.23"."""
    text = Path(__file__).with_name("variables.txt").read_text(encoding="utf-8")
    variables = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, *readers = line.split()
            variables[name] = tuple(readers)
    return variables


def probably_meant(name: str, known: tuple[str, ...] = ()) -> str:
    """Return the variable that a misspelt name probably means; "" for a known or a distant name.

    Args:
        name: The name as written.
        known: Names that a node's own packages read, beside the list.
    """
    names = {*read_variables(), *known}
    if name in names:
        return ""
    return closest(name, names, limit=1 if len(name) <= _SHORT else 2)
