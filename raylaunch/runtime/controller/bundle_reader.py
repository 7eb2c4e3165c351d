"""Bundles read again: the newest one of a deployment, or one that a person has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from raylaunch.errors import ClusterError, NodeError, UnknownDeploymentError
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.diagnosis.root_cause import Diagnosis

MAX_BYTES = 1_000_000
"""A diagnosis.json has a few thousand bytes."""


def diagnose_bundle(folder: Path) -> Diagnosis | None:
    """Return the diagnosis that was written with a bundle.

    Raises:
        UnknownDeploymentError: the folder is not a bundle.
        NodeError: its diagnosis.json cannot be read, or is damaged.
    """
    path = folder / "diagnosis.json"
    if not path.exists():
        raise UnknownDeploymentError(
            f"{folder} holds no bundle",
            why="there is no diagnosis.json in it",
            todo="give the folder of one attempt",
        )
    try:
        return _read_diagnosis(path)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise NodeError(
            f"{path} is damaged",
            why=str(error),
            todo="`raylaunch diagnose` reads the server logs beside it, each by its path",
        ) from error


def _read_diagnosis(path: Path) -> Diagnosis | None:
    # A FIFO or a device would block, or never end.
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is not a file of at most {MAX_BYTES} bytes")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values is None:
        return None
    found = Diagnosis(**{**values, "collateral": tuple(values["collateral"])})
    for field in fields(Diagnosis):
        value = getattr(found, field.name)
        if field.type in ("str", "Kind") and not isinstance(value, str):
            raise TypeError(f"{field.name} is no text")
    return found


def diagnose_deployment(
    name: str, group: str | None, attach: Callable[[], Any], home: Path
) -> Diagnosis | None:
    """Return the diagnosis of the last failure; None if there was none and the logs look fine.

    A deployment that runs is asked; of one that does not, the newest bundle below `home` is read.

    Args:
        name: The deployment.
        group: Only of this group.
        attach: Connects to the cluster, and refuses a deployment that does not run.
        home: Where bundles are kept.

    Raises:
        UnknownDeploymentError: it neither runs nor left a bundle.
    """
    try:
        attach()
    except (UnknownDeploymentError, ClusterError):
        newest = _newest_bundle(home / "bundles" / name / (group or ""))
        if newest is None:
            raise
        return diagnose_bundle(newest)
    return require_controller(name).diagnosis(group)


def _newest_bundle(folder: Path) -> Path | None:
    """Return the newest bundle below `folder`; None without one that can be read."""
    try:
        found = folder.rglob("diagnosis.json")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return None if newest is None else newest.parent
    except OSError:  # RAYLAUNCH_HOME is too long, or a bundle is being removed
        return None
