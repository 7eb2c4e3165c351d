"""The request that creates a controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.node.process.process_markers import new_instance
from raylaunch.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class Request:
    """What `raylaunch start` asks for.

    Secrets come separately: Ray keeps the arguments that an actor was created with.
    """

    deployment: str
    loaded: LoadedRecipe
    primary: str | None = None
    skipped: Mapping[str, str] | None = None
    """Ids of checks whose errors do not count, with the reason given."""
    dry_run: bool = True
    """Whether the nodes' vLLM builds the engine configuration beside the start."""
    instance: str = field(default_factory=new_instance)
    """Random id of this start, kept over restarts and by a controller that Ray restarts."""
