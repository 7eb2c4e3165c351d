"""The API key of a running service, as the user of a command has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raylaunch.errors import RecipeError

if TYPE_CHECKING:
    from raylaunch.plan.launch_plan import LaunchPlan


def read_key(plan: LaunchPlan) -> str | None:
    """Return the API key of the service from this environment; None if it requires none.

    Raises:
        RecipeError: it is not set.
    """
    from raylaunch.verify.verification import key_variable

    name = key_variable(plan)
    if not name:
        return None
    if name not in os.environ:
        raise RecipeError(
            f"{plan.deployment} requires an API key, and {name} is not set",
            why="its value is taken from the environment of this command",
            todo=f"export {name}=... and try again",
        )
    return os.environ[name]
