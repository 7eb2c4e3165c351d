"""What a deployment must not forget beyond its groups: which ones it has, and its own events.

The agents of all groups keep a copy of this journal, as of those of the groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raylaunch.recipe.groups import GroupSpec
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.group.journal import (
    KEPT_EVENTS,
    EventNumbers,
    complete,
    seal,
    unseal,
)
from raylaunch.supervise.degradation import Degradation
from raylaunch.supervise.deployment_status import Event

log = logging.getLogger(__name__)

OWNER = ""
"""The name under which agents keep this journal: no group has it."""


@dataclass
class DeploymentJournal:
    """The memory of a deployment. Times are seconds since the epoch, for display."""

    loaded: LoadedRecipe
    """The whole recipe that is served now."""
    specs: tuple[GroupSpec, ...]
    """The groups that the deployment has, in the order in which they are shown."""
    generation: int = 1
    """Counts upgrades; part of the names of the groups that they start."""
    restore: tuple[GroupSpec, ...] | None = None
    """The groups to return to if the upgrade under way fails; None without one."""
    operation: str = ""
    """The command that changes the deployment at this moment; "" for none."""
    key_hashes: Mapping[str, str] = field(default_factory=dict)
    """API keys of the gateway that were replaced since the start: SHA-256 -> name of the secret."""
    degradation: Degradation = field(default_factory=Degradation)
    """Whether a fallback serves, or is about to."""
    lost_nodes: tuple[str, ...] = ()
    """Ray's ids of the nodes that were lost. Ray itself may count them for another minute."""
    removed: tuple[str, ...] = ()
    """Groups that a switch has removed. A server of theirs may live on a node out of reach."""
    endpoint: str = ""
    """Where the gateway was last up; "" without one."""
    stopping: bool = False
    events: list[Event] = field(default_factory=list)
    number: int = 0
    """That of the newest change; the agents keep the newest journal."""

    @staticmethod
    def load(data: bytes) -> DeploymentJournal:
        """Restore a copy that an agent kept.

        Raises:
            ValueError: the copy is damaged, or another version of raylaunch wrote it.
        """
        journal = unseal(data)
        if not isinstance(journal, DeploymentJournal):
            raise ValueError("the deployment's journal cannot be read: it holds something else")
        complete(journal)
        return journal


class DeploymentRecord:
    """The journal of a deployment. Saves it, and reports each change.

    Args:
        journal: To begin with.
        clock: Its wall clock stamps events.
        numbers: Numbers the events, over all groups.
        save: Takes the number of the journal and a copy.
        on_change: Called after each change.
    """

    def __init__(
        self,
        journal: DeploymentJournal,
        clock: Clock,
        numbers: EventNumbers,
        save: Callable[[int, bytes], None],
        on_change: Callable[[], None],
    ) -> None:
        self.journal = journal
        self._clock = clock
        self._numbers = numbers
        self._save = save
        self._on_change = on_change

    def note(self, kind: str, text: str) -> Event:
        """Add an event of the whole deployment."""
        number = self._numbers.draw()
        attempt = 0
        event = Event(number, self._clock.wall(), attempt, kind, text)
        self.journal.events.append(event)
        del self.journal.events[:-KEPT_EVENTS]
        log.info("%s: %s", kind, text)
        self.changed()
        return event

    def changed(self) -> None:
        """Save the journal after a change of it."""
        self.journal.number = self._numbers.draw()
        self._save(self.journal.number, seal(self.journal))
        self._on_change()

    def remember_endpoint(self, endpoint: str) -> None:
        """Keep the gateway's endpoint for the next controller; "" changes nothing."""
        if endpoint and endpoint != self.journal.endpoint:
            self.journal.endpoint = endpoint
            self.changed()

    def copy(self) -> tuple[int, bytes]:
        """Return the number of the newest change and a copy, for an agent that has none yet."""
        return self.journal.number, seal(self.journal)
