"""The flags `vllm serve` is known to have: as a node's own vLLM says, or by a list; and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

RAYLAUNCH_KNOWS = ("0.23.", "0.32.")
"""vLLM versions whose flags are in the list for sure."""


@dataclass(frozen=True)
class Option:
    """A flag of `vllm serve`. `takes` none, one, maybe (none or one) or many values; no `choices`: any value."""

    takes: str = "one"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownFlags:
    """What a node's own vLLM knows: its flags by long name without dashes, and the parsers registered there."""

    flags: Mapping[str, Option]
    tool_parsers: tuple[str, ...] = ()
    reasoning_parsers: tuple[str, ...] = ()
    sources: Mapping[str, int] = field(default_factory=dict)
    """The files the answer rests on, with the times they were changed (ns)."""


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
