"""The kept benchmarks: one JSON file per run, below this user's folder, on the machine of the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

from raylaunch.bench.result import Run, run_from_dict, run_to_dict
from raylaunch.errors import RaylaunchError


def save(home: Path, run: Run) -> Path:
    """Keep a run; returns its file.

    Raises:
        RaylaunchError: the file cannot be written.
    """
    path = _folder(home, run.deployment) / f"{run.id}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.tmp")
        half.write_text(
            json.dumps(run_to_dict(run), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        half.replace(path)
    except OSError as error:
        raise RaylaunchError(f"the result cannot be kept in {path}", why=str(error)) from error
    return path


def load(home: Path, deployment: str) -> tuple[list[Run], list[str]]:
    """The kept runs of a deployment, oldest first, and the names of files that are none."""
    runs, strange = [], []
    for path in sorted(_folder(home, deployment).glob("*.json")):
        try:
            runs.append(run_from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            strange.append(path.name)
    return sorted(runs, key=lambda run: run.at), strange


def file_of(home: Path, run: Run) -> Path:
    """Where a run is kept."""
    return _folder(home, run.deployment) / f"{run.id}.json"


def _folder(home: Path, deployment: str) -> Path:
    return home / "bench" / deployment
