"""The request that creates a controller, and the part of each of its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.node.process.process_markers import new_instance
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.group_key import GroupKey


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
    adopts: bool = False
    """Whether `start` has found servers of this instance that run without a controller."""
    instance: str = field(default_factory=new_instance)
    """Random id of this start, kept over restarts and by a controller that Ray restarts."""

    def of_group(self, spec: GroupSpec) -> GroupRequest:
        """Return what is asked of one group. Only the first has a say about its primary's node."""
        is_first = spec.name == expand_groups(self.loaded)[0].name
        return GroupRequest(
            key=GroupKey(self.deployment, spec.name),
            spec=spec,
            primary=self.primary if is_first else None,
            skipped=self.skipped or {},
            dry_run=self.dry_run,
            # Its own: the group's processes are found without those of its siblings.
            instance=group_instance(self.instance, spec.name),
        )


def group_instance(start: str, group: str) -> str:
    """Return the id in the marker of a group's processes; `start` is that of the deployment."""
    return f"{start}.{group}"


@dataclass(frozen=True)
class GroupRequest:
    """What `raylaunch start` asks for, for one group."""

    key: GroupKey
    spec: GroupSpec
    primary: str | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = True
    instance: str = field(default_factory=new_instance)
    """Id in the marker of the group's processes."""
