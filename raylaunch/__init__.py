"""raylaunch: starts data-parallel vLLM on Ascend NPUs over a Ray cluster, and keeps it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylaunch.api import attach, check, deploy, plan
    from raylaunch.deployment import Deployment
    from raylaunch.errors import RaylaunchError
    from raylaunch.recipe.model import Recipe

__all__ = ["Deployment", "RaylaunchError", "Recipe", "attach", "check", "deploy", "plan"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load the public names when they are first used: `raylaunch --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'raylaunch' has no attribute {name!r}")
    from importlib import import_module

    rooms = {
        "Deployment": "raylaunch.deployment",
        "RaylaunchError": "raylaunch.errors",
        "Recipe": "raylaunch.recipe.model",
    }
    return getattr(import_module(rooms.get(name, "raylaunch.api")), name)
