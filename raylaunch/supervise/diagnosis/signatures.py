"""Known failure signatures, read once from the files of `known/` and compiled once.

`known/fields.txt` explains each field. A site adds its own (`inputs/site_signatures.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Kind = Literal["deterministic", "transient", "device", "harmless"]
"""Failure class: fails again the same way; may pass; is a fault of one node; is no failure."""

Level = Literal["fatal", "hang", "warning", "quality"]


@dataclass(frozen=True)
class Signature:
    """One known failure.

    `cause` and `remedy` may hold `{0}`, `{1}`: the groups that took part in the match, in order.
    """

    id: str
    pattern: re.Pattern[str]
    level: Level
    kind: Kind
    cause: str
    remedy: str
    source: str
    sample: str
    wrapper: bool = False
    """Only reports that something else failed."""
    symptom: bool = False
    """Reports that a peer is gone or late."""
    certain: bool = True
    """False when the line has several plausible causes."""
    anchor: str = ""
    """Text of each match. With it a line that was logged below WARNING is searched too."""
    file: str = ""
    """The site's file that it comes from; "" for one of raylaunch's own."""


@dataclass(frozen=True)
class Site:
    """What a site adds to the signatures."""

    signatures: tuple[Signature, ...] = ()
    noise: tuple[re.Pattern[str], ...] = ()
    """Lines that match report no failure, whatever their level."""


LINE_CHARS = 500
"""Longest part of a log line that a diagnosis quotes."""
_PLACEHOLDER = re.compile(r"\{(\d)\}")
# Of two signatures that match one line, the one of the earlier file answers.
_FILES = (
    "start_up",
    "wrappers",
    "ports",
    "hccl",
    "npus",
    "sizes",
    "sleep_and_graphs",
    "ascend_options",
    "installation",
    "command_line",
    "host_limits",
    "ray_checks",
    "torch_groups",
    "ray_start",
    "ray",
    "hangs",
    "notes",
    "python_packages",
    "model_files",
    "adapters",
    "launchers",
    "platforms",
    "containers",
    "kv_transfer",
    "kv_checks",
    "requests",
)


@cache
def load_signatures() -> tuple[Signature, ...]:
    """Return all signatures, in the order of the files."""
    import yaml

    # libyaml is about ten times as fast, but it is not built into every PyYAML.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folder = files(__package__) / "known"
    entries: list[Mapping[str, Any]] = []
    for name in _FILES:
        text = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        entries += yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader either way
    return tuple(make_signature(entry) for entry in entries)


def make_signature(entry: Mapping[str, Any]) -> Signature:
    """Return the signature that an entry of such a file describes."""
    fields = {name: value for name, value in entry.items() if name not in ("class", "pattern")}
    pattern = re.compile(entry["pattern"], re.MULTILINE)
    return Signature(**fields, kind=entry["class"], pattern=pattern)


def fill_text(text: str, groups: Sequence[str]) -> str:
    """Insert the groups that took part; leave out what surrounds a group that did not."""
    missing = [n for n in _PLACEHOLDER.findall(text) if int(n) >= len(groups)]
    for number in missing:
        hole = re.escape(f"{{{number}}}")
        # A parenthesis, else a clause, else the sentence that needs the value.
        for piece in (
            rf" \([^()]*{hole}[^()]*\)",
            rf"[:,;] [^.:,;()]*{hole}[^.,;()]*(?=[.,;])",
            rf"(?:(?<=\. )|^)[^.]*{hole}[^.]*\. ?",
        ):
            shorter = re.sub(piece, "", text)
            if shorter != text and shorter.strip():
                text = shorter
                break

    def group(match: re.Match[str]) -> str:
        number = int(match[1])
        value = groups[number].strip()[:LINE_CHARS] if number < len(groups) else "?"
        return value.rstrip(".") if text[match.end() :].startswith(".") else value

    return _PLACEHOLDER.sub(group, text).strip()
