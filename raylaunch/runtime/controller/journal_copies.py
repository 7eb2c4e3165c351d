"""Copies of the journals with the agents of all groups, for the controller that may take over.

A group gives its journal to its own agents at every change. A group that failed has no agents any
more, and the deployment's journal belongs to no group: so the agents of the other groups keep
copies too, renewed whenever a group enters a phase.
"""

from __future__ import annotations

from raylaunch.runtime.controller.deployment_record import OWNER, DeploymentRecord
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.supervise.state import Phase


class JournalCopies:
    """Spreads the copies.

    Args:
        groups: The groups of the deployment.
    """

    def __init__(self, groups: GroupSet) -> None:
        self._groups = groups
        self._spread: dict[str, tuple[Phase, int]] = {}
        """Phase and attempt of each group when its journal was spread."""

    def spread_deployment(self, number: int, journal: bytes) -> None:
        """Give the deployment's journal to every agent."""
        for group in self._groups:
            group.backend.keep_copy(OWNER, number, journal)

    def spread_groups(self, record: DeploymentRecord) -> None:
        """Spread the journal of each group that has entered a phase."""
        for name, group in self._groups.by_name.items():
            state = (group.journal.phase, group.journal.attempt)
            if self._spread.get(name) == state:
                continue
            self._spread[name] = state
            self._give(group)
            # It has just got its agents, or some new ones.
            if group.journal.phase is Phase.CHECKING:
                self._complete(group, record)

    def _give(self, group: GroupSupervisor) -> None:
        """Give a group's journal to the agents of the others."""
        others = [one for one in self._groups if one is not group]
        if not others:
            return
        number, journal = group.copy()
        for other in others:
            other.backend.keep_copy(group.name, number, journal)

    def _complete(self, group: GroupSupervisor, record: DeploymentRecord) -> None:
        """Give the agents of a group what the others know already."""
        group.backend.keep_copy(OWNER, *record.copy())
        for other in self._groups:
            if other is not group:
                group.backend.keep_copy(other.name, *other.copy())
