"""The flags of `vllm serve`: from a node's own vLLM, or from a list; and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

RAYLAUNCH_KNOWS = ("0.23.", "0.32.")
"""vLLM versions whose flags the list holds completely."""


@dataclass(frozen=True)
class Option:
    """A flag of `vllm serve`.

    `takes` is the number of values: none, one, maybe (none or one) or many. Without `choices` any
    value is valid.
    """

    takes: str = "one"
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownFlags:
    """What a node's own vLLM reports: flags by long name without dashes, and other names it knows.

    Without vllm-ascend, `config_keys` and `vllm_versions` are empty.
    """

    flags: Mapping[str, Option]
    tool_parsers: tuple[str, ...] = ()
    reasoning_parsers: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    """Environment variables that vLLM and vllm-ascend read."""
    config_keys: tuple[str, ...] = ()
    """Keys of additional-config that vllm-ascend reads."""
    config_keys_below: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of additional-config -> the keys of its mapping, where they could be read."""
    vllm_versions: tuple[str, ...] = ()
    """Versions of vLLM that vllm-ascend itself tests for."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """The files that the report depends on, with their modification times (ns)."""


@dataclass(frozen=True)
class Lifetime:
    """The versions of vLLM that have a flag, as far as the list knows them; "" where it does not.

    `absent_in` is the last version that was found without it, `removed_in` the first after it.
    """

    absent_in: str = ""
    removed_in: str = ""


@cache
def read_flags() -> dict[str, Lifetime]:
    """Read the list of flags: names without dashes, with the versions that have them."""
    text = Path(__file__).with_name("vllm_flags.txt").read_text(encoding="utf-8")
    flags = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, mark = line.partition(" ")
        version = mark[1:]
        if mark.startswith("<"):
            flags[name] = Lifetime(removed_in=version)
        else:
            flags[name] = Lifetime(absent_in=version)
    return flags


def nearest(name: str, known: Collection[str]) -> str:
    """Say what to do about an unknown name, with the nearest known one if it is near."""
    # Similarity is quadratic in the length of the names; no flag is that long.
    close = difflib.get_close_matches(name[:100], sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "check the spelling, or take it out"
