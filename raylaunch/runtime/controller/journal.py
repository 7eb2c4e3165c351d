"""What a controller must not forget: its phase, attempt, history and events.

The agents keep it, so that a controller that Ray starts again can go on where the last one was.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from typing import Any

from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import History, Phase, move

KEPT_EVENTS = 500
UNSAVED_EVENTS = 1000
"""More than can have been noted since the last copy was given away."""


@dataclass
class Journal:
    """The memory of a deployment. Times: seconds since the epoch on the controller's clock."""

    created_at: float
    phase: Phase = Phase.PENDING
    phase_since: float = 0.0
    attempt: int = 0
    plan: LaunchPlan | None = None
    history: History = field(default_factory=History)
    findings: tuple[Finding, ...] = ()
    events: list[Event] = field(default_factory=list)
    error: dict[str, str] | None = None
    restarts: int = 0
    diagnosis: Diagnosis | None = None
    """Of the last failed attempt."""
    ray_addresses: dict[str, str] = field(default_factory=dict)
    """Address of a node in a plan -> its address in Ray."""
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    """What was installed on each server's node when it was last probed."""
    number: int = 0
    """Grows with every change; the agents keep the newest."""

    def enter(self, phase: Phase, now: float) -> None:
        """Move to the next phase; an illegal step is a bug and raises AssertionError."""
        self.phase = move(self.phase, phase)
        self.phase_since = now
        self.note(now, "phase", str(phase))

    def note(self, now: float, kind: str, text: str, server: int | None = None) -> Event:
        """Add an event."""
        self.number += 1
        event = Event(self.number, now, self.attempt, kind, text, server)
        self.events.append(event)
        del self.events[:-KEPT_EVENTS]
        return event

    def has(self, kind: str, server: int) -> bool:
        """Whether this attempt has an event of that kind and server, also from before a take-over."""
        return any(
            (one.attempt, one.kind, one.server) == (self.attempt, kind, server)
            for one in self.events
        )

    def skip_lost(self) -> None:
        """After a take-over: never give a number again that the last controller may have given."""
        self.number += UNSAVED_EVENTS

    def dump(self) -> bytes:
        """The journal as the agents keep it. It holds no secrets."""
        return pickle.dumps(self)

    @staticmethod
    def load(data: bytes) -> Journal:
        """Restore what `dump` wrote. The data comes from our own agents, over Ray's own channel."""
        journal: Any = pickle.loads(data)  # noqa: S301 - Ray pickles every message between these actors anyway
        assert isinstance(journal, Journal)
        return journal

    def became_ready(self, now: float) -> None:
        """Remember when the current attempt became ready."""
        self.history = replace(self.history, ready_at=now)
