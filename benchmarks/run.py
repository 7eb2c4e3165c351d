"""Every benchmark, one after the other, then which goals were missed.

`--short` takes a few minutes and prints its tables; without it an hour or two, and docs/benchmarks.md is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from report import RESULTS, SHORT

HERE = Path(__file__).parent
WHOLE = (
    ("peers.py", "--serving", "3"),
    ("peers.py", "--model", "moe", "--serving", "3"),
    ("launch.py",),
    ("weights.py",),
    ("recovery.py",),
    ("recovery.py", "--standin", "--servers", "64"),
    ("saturation.py",),
    ("scale.py",),
    ("commands.py",),
    ("chaos.py",),
    ("availability.py",),
    ("availability.py", "--vllm"),
    ("gateway.py", "--vllm"),
    ("diagnose.py",),
    ("alerts.py",),
    ("dry_run.py",),
    ("power_cut.py",),
)
BRIEF = (
    ("peers.py", "--short"),
    ("scale.py", "--short"),
    ("commands.py", "--short"),
    ("chaos.py", "--short"),
    ("diagnose.py", "--short"),
)


def shortfalls(folder: Path, since: float) -> Iterator[str]:
    """The missed goals in the results that were written since then."""
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_mtime >= since:
            yield from json.loads(path.read_text()).get("missed", ())


def run_all(programs: Iterable[tuple[str, ...]]) -> int:
    """Run the programs; the worst exit code."""
    return max(
        subprocess.run([sys.executable, HERE / name, *words], check=False).returncode
        for name, *words in programs
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    began = time.time()
    code = run_all(BRIEF if short else WHOLE)
    missed = list(shortfalls(SHORT if short else RESULTS, began))
    print(
        "\n".join(["missed goals:", *(f"  {one}" for one in missed)])
        if missed
        else "every goal was met"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
