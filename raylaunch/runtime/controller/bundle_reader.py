"""Bundles read again: the newest one of a deployment, or one that a person has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylaunch.errors import ClusterError, UnknownDeploymentError
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.diagnosis.root_cause import Diagnosis


def diagnose_bundle(folder: Path) -> Diagnosis | None:
    """Return the diagnosis that was written with a bundle.

    Raises:
        UnknownDeploymentError: the folder is not a bundle.
    """
    try:
        text = (folder / "diagnosis.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UnknownDeploymentError(
            f"{folder} holds no bundle",
            why="there is no diagnosis.json in it",
            todo="give the folder of one attempt",
        ) from error
    found = json.loads(text)
    return Diagnosis(**{**found, "collateral": tuple(found["collateral"])})


def diagnose_deployment(name: str, attach: Callable[[], Any], home: Path) -> Diagnosis | None:
    """Return the diagnosis of the last failure; None if there was none and the logs look fine.

    A deployment that runs is asked; of one that does not, the newest bundle below `home` is read.

    Raises:
        UnknownDeploymentError: it neither runs nor left a bundle.
    """
    try:
        attach()
    except (UnknownDeploymentError, ClusterError):
        folders = (home / "bundles" / name).glob("*")
        newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise
        return diagnose_bundle(newest)
    return require_controller(name).diagnosis()
