"""Bundles of failed attempts, read again: the newest of a deployment, or one a person has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylaunch.errors import UnknownDeploymentError
from raylaunch.supervise.diagnose import Diagnosis


def diagnose_bundle(folder: Path) -> Diagnosis | None:
    """The verdict that was written with a bundle.

    Raises:
        UnknownDeploymentError: the folder is not a bundle.
    """
    try:
        found = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnknownDeploymentError(
            f"{folder} holds no bundle", why="there is no diagnosis.json in it", todo="give the folder of one attempt"
        ) from error
    return Diagnosis(**{**found, "collateral": tuple(found["collateral"])})


def diagnose_deployment(name: str, attach: Callable[[], Any], home: Path) -> Diagnosis | None:
    """The verdict on the newest failed attempt of a deployment; None when it is known and never failed.

    Raises:
        UnknownDeploymentError: neither running nor remembered.
    """
    folders = sorted((home / "bundles" / name).glob("*"), key=lambda path: path.stat().st_mtime)
    if folders:
        return diagnose_bundle(folders[-1])
    attach()
    return None
