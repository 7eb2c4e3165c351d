"""The flags `vllm serve` is known to have, and the nearest valid name for one that it has not."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import cache
from pathlib import Path

RAYLAUNCH_KNOWS = ("0.23.", "0.32.")
"""vLLM versions whose flags are in the list for sure."""


@cache
def read_flags() -> dict[str, str]:
    """Flag names without dashes; the value is the version that no longer has the flag, "" for a living one."""
    lines = Path(__file__).with_name("vllm_flags.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.partition(" <") for line in lines if line and not line.startswith("#"))
    return {name: until for name, _, until in rows}


def nearest(name: str, known: Collection[str]) -> str:
    """What to do about an unknown name: the nearest known one, when there is a near one."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "check the spelling, or take it out"
