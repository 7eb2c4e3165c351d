"""raylaunch: starts data-parallel vLLM on Ascend NPUs over a Ray cluster, and keeps it up.

The public names are the verbs of the command line as functions, and the types that they return.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylaunch.api import (
        attach,
        check,
        clean,
        cluster_file,
        deploy,
        deployments,
        diagnose,
        drill,
        import_scripts,
        load,
        make_plan,
        overview,
        plan,
        preflight,
        recipes,
        render_files,
        report,
        restart,
        scale,
        stop,
        tune,
        ui,
        upgrade,
        verify,
        weights,
    )
    from raylaunch.deployment import Deployment
    from raylaunch.errors import RaylaunchError
    from raylaunch.recipe.model import Recipe

__all__ = [
    "Deployment",
    "RaylaunchError",
    "Recipe",
    "attach",
    "check",
    "clean",
    "cluster_file",
    "deploy",
    "deployments",
    "diagnose",
    "drill",
    "import_scripts",
    "load",
    "make_plan",
    "overview",
    "plan",
    "preflight",
    "recipes",
    "render_files",
    "report",
    "restart",
    "scale",
    "stop",
    "tune",
    "ui",
    "upgrade",
    "verify",
    "weights",
]

_HOMES = {
    "Deployment": "raylaunch.deployment",
    "RaylaunchError": "raylaunch.errors",
    "Recipe": "raylaunch.recipe.model",
}
"""Modules of the public names that are not in `raylaunch.api`."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used: `raylaunch --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'raylaunch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "raylaunch.api")), name)


class _Package(ModuleType):
    """The package `raylaunch`, whose verbs are not hidden by its rooms of the same name.

    Importing a module of `raylaunch/plan/` binds the room to `raylaunch.plan`, which is the verb
    `plan`; the same holds for `verify`. The rooms stay importable, as they are in sys.modules.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
