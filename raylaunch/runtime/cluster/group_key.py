"""The key of a group: what its reservation, its agents and its bundles are named after."""

from __future__ import annotations

from dataclasses import dataclass

from raylaunch.plan.launch_plan import LaunchPlan


@dataclass(frozen=True, order=True)
class GroupKey:
    """A deployment and one of its groups."""

    deployment: str
    group: str

    @classmethod
    def of(cls, plan: LaunchPlan) -> GroupKey:
        """Return the key of the group that a plan describes."""
        return cls(plan.deployment, plan.group)

    @classmethod
    def parse(cls, text: str) -> GroupKey:
        """Return the key that `str` wrote. No deployment has a slash in its name."""
        deployment, _, group = text.rpartition("/")
        return cls(deployment, group)

    def __str__(self) -> str:
        return f"{self.deployment}/{self.group}"
