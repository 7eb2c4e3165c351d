"""Write cluster/*.yaml, the shipped files for `ray up`, from the recipes (`--check` compares).

Their addresses are those set aside for documentation (RFC 5737).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from raylaunch.recipe.catalog import read
from raylaunch.render.ray_cluster import render_cluster

FOLDER = Path(__file__).resolve().parent.parent / "cluster"
HEAD, WORKER = "192.0.2.10", "192.0.2.11"
LOGIN = {"ssh_user": "root", "ssh_key": "~/.ssh/id_ed25519"}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "a2-dual.yaml": ("a2-dual", {"workers": [WORKER]}),
    "a3-single.yaml": ("a3-single", {"workers": []}),
    "bare.yaml": ("a2-dual", {"workers": [WORKER], "bare": True, "name": "bare"}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a file is stale"
    )
    if parser.parse_args().check:
        stale = [name for name, text in render().items() if not is_current(FOLDER / name, text)]
        print(
            f"stale: {', '.join(stale)}: run python tools/cluster_files.py"
            if stale
            else "cluster/ is current"
        )
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


def render() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {
        name: render_cluster(read(recipe), head=HEAD, **LOGIN, **more)  # type: ignore[arg-type]
        for name, (recipe, more) in FILES.items()
    }


def is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
