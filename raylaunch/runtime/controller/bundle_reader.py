"""Bundles of failed attempts, read again: the newest of a deployment, or one a person has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylaunch.errors import ClusterError, UnknownDeploymentError
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.diagnosis.root_cause import Diagnosis


def diagnose_bundle(folder: Path) -> Diagnosis | None:
    """The verdict that was written with a bundle.

    Raises:
        UnknownDeploymentError: the folder is not a bundle.
    """
    try:
        found = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnknownDeploymentError(
            f"{folder} holds no bundle",
            why="there is no diagnosis.json in it",
            todo="give the folder of one attempt",
        ) from error
    return Diagnosis(**{**found, "collateral": tuple(found["collateral"])})


def diagnose_deployment(name: str, attach: Callable[[], Any], home: Path) -> Diagnosis | None:
    """The verdict on the last failure of a deployment; None when it never failed and its logs show nothing wrong.

    A deployment that is there is asked; of one that is not, the newest bundle below `home` is read.

    Raises:
        UnknownDeploymentError: neither running nor remembered.
    """
    try:
        attach()
    except (UnknownDeploymentError, ClusterError):
        folders = sorted((home / "bundles" / name).glob("*"), key=lambda path: path.stat().st_mtime)
        if not folders:
            raise
        return diagnose_bundle(folders[-1])
    return require_controller(name).diagnosis()
