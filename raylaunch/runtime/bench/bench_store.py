"""The stored benchmark runs: one JSON file each, in the home folder of the user of the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

from raylaunch.bench.result import Run, run_from_dict, run_to_dict
from raylaunch.errors import RaylaunchError


def save(home: Path, run: Run) -> Path:
    """Store a run and return its file.

    Raises:
        RaylaunchError: the file cannot be written.
    """
    path = file_of(home, run)
    text = json.dumps(run_to_dict(run), indent=1, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: `load` in another process never reads half a file.
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(f"{text}\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise RaylaunchError(f"cannot write the result to {path}", why=str(error)) from error
    return path


def load(home: Path, deployment: str) -> tuple[list[Run], list[str]]:
    """Return the stored runs of a deployment, oldest first, and the names of unreadable files."""
    runs: list[Run] = []
    unreadable: list[str] = []
    for path in sorted(_folder(home, deployment).glob("*.json")):
        try:
            runs.append(run_from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            unreadable.append(path.name)
    return sorted(runs, key=lambda run: run.at), unreadable


def file_of(home: Path, run: Run) -> Path:
    """Return the file of a stored run."""
    return _folder(home, run.deployment) / f"{run.id}.json"


def _folder(home: Path, deployment: str) -> Path:
    return home / "bench" / deployment
