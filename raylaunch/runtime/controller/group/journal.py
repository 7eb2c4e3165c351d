"""What a group must not forget: its phase, attempt, plan, history and events.

The agents keep a copy, so that a controller that Ray restarted continues where the last one was.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING

from raylaunch.checks.findings import Finding
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.clock import Clock, ClockReading
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.detect import FailureSeen
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.health_config import GroupShape
from raylaunch.supervise.policy import Restart
from raylaunch.supervise.state import Failure, History, Phase, ServerSeen, move
from raylaunch.supervise.tally import Tally, fault_began, stage_seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

LOUD = ("failure", "restart", "bundle-failed", "log-failed", "internal")
"""Kinds of events that the log shows as warnings."""
DIGEST_BYTES = 32
KEPT_EVENTS = 500
UNSAVED_EVENTS = 1000
"""More than can have been noted since the last copy was given away."""


@dataclass
class Journal:
    """The memory of one group.

    `history` and `waiting_since` have monotonic times of the controller's machine: ages and
    deadlines are made of them.
    All other times are for display: seconds since the epoch.
    """

    created_at: float
    group: str = ""
    phase: Phase = Phase.PENDING
    phase_since: float = 0.0
    attempt: int = 0
    plan: LaunchPlan | None = None
    history: History = field(default_factory=History)
    findings: tuple[Finding, ...] = ()
    events: list[Event] = field(default_factory=list)
    error: dict[str, str] | None = None
    restarts: int = 0
    served: bool = False
    """Whether any attempt became ready."""
    diagnosis: Diagnosis | None = None
    """Of the last failed attempt."""
    ray_addresses: dict[str, str] = field(default_factory=dict)
    """Address of a node in a plan -> its address in Ray."""
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    """What was installed on each server's node when it was last probed."""
    tally: Tally = field(default_factory=Tally)
    """Counts for the metrics."""
    waiting_since: float | None = None
    """Since when the group waits for a lost node (monotonic); None if it does not."""
    number: int = 0
    """That of the newest event; the agents keep the newest journal."""
    saved_at: ClockReading | None = None

    def enter(self, phase: Phase, now: float, number: int) -> None:
        """Move to the next phase; an illegal step is a bug and raises AssertionError."""
        self.phase = move(self.phase, phase)
        self.phase_since = now
        self.note(now, "phase", str(phase), number=number)

    def note(
        self, now: float, kind: str, text: str, server: int | None = None, *, number: int
    ) -> Event:
        """Add an event; `number` is greater than that of every earlier one."""
        self.number = number
        event = Event(number, now, self.attempt, kind, text, server, self.group)
        self.events.append(event)
        del self.events[:-KEPT_EVENTS]
        return event

    def has(self, kind: str, server: int) -> bool:
        """Return whether this attempt has an event of that kind and server."""
        wanted = (self.attempt, kind, server)
        return any((one.attempt, one.kind, one.server) == wanted for one in self.events)

    def dump(self, clock: Clock) -> bytes:
        """Return the journal as the agents keep it, behind its digest. It holds no secrets."""
        self.saved_at = ClockReading.of(clock)
        return seal(self)

    @staticmethod
    def load(data: bytes, clock: Clock) -> Journal:
        """Restore what `dump` wrote, with its monotonic times on this machine's clock.

        Raises:
            ValueError: the copy is damaged, or another version of raylaunch wrote it.
        """
        journal = unseal(data)
        if not isinstance(journal, Journal) or journal.saved_at is None:
            raise ValueError("the journal cannot be read: it holds something else")
        complete(journal)
        shift_s = ClockReading.of(clock).shift_from(journal.saved_at)
        journal.history = _shift(journal.history, shift_s)
        if journal.waiting_since is not None:
            journal.waiting_since += shift_s
        return journal

    def became_ready(self, now: float) -> None:
        """Remember when the current attempt became ready; `now` is monotonic."""
        self.history = replace(self.history, ready_at=now)
        self.served = True

    @property
    def start_s(self) -> float | None:
        """How long the current attempt took to become ready; None if it is not."""
        if self.history.ready_at is None:
            return None
        return self.history.ready_at - self.history.started_at


def seal(journal: object) -> bytes:
    """Return a copy of a journal behind its digest."""
    data = pickle.dumps(journal)
    return hashlib.sha256(data).digest() + data


def unseal(data: bytes) -> object:
    """Restore what `seal` wrote.

    Raises:
        ValueError: the copy is damaged, or another version of raylaunch wrote it.
    """
    digest, data = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    # Damaged bytes may unpickle to a journal that lacks fields, or has others.
    if hashlib.sha256(data).digest() != digest:
        raise ValueError("the journal cannot be read: it is damaged")
    # The data comes from our own agents over Ray's channel, which pickles every message anyway.
    try:
        return pickle.loads(data)  # noqa: S301
    except Exception as error:  # of another version: pickle raises whatever that leads to
        raise ValueError(f"the journal cannot be read: {error!r}") from error


def complete(journal: DataclassInstance) -> None:
    """Give a journal that an earlier version wrote the fields that it lacks.

    Raises:
        ValueError: one of them has no default.
    """
    for one in fields(journal):
        if one.name in vars(journal):
            continue
        if one.default_factory is not MISSING:
            setattr(journal, one.name, one.default_factory())
        elif one.default is not MISSING:
            setattr(journal, one.name, one.default)
        else:
            raise ValueError(f"the journal cannot be read: it has no {one.name}")


class EventNumbers:
    """Numbers the events of a deployment, over all of its groups."""

    def __init__(self) -> None:
        self._last = 0

    def draw(self) -> int:
        """Return the next number."""
        self._last += 1
        return self._last

    def skip_lost(self, newest: int) -> None:
        """After a take-over: do not reuse a number that the last controller may have given.

        Args:
            newest: The greatest number that was found.
        """
        self._last = max(self._last, newest + UNSAVED_EVENTS)


class GroupRecord:
    """Journal, last observations and shape of one group. Saves the journal, reports each change.

    Args:
        name: Of the group.
        clock: Its wall clock stamps events.
        save: Takes the number of the journal and a copy, to keep for the next controller.
        on_change: Called after each change.
        numbers: Numbers the events.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        save: Callable[[int, bytes], None],
        on_change: Callable[[], None],
        numbers: EventNumbers | None = None,
    ) -> None:
        self.journal = Journal(clock.wall(), name, phase_since=clock.wall())
        self.shape = GroupShape((), ())
        self.seen: dict[int, ServerSeen] = {}
        self.unreachable: dict[int, str] = {}
        """Servers of this attempt on nodes out of reach, where nothing can be verified."""
        self.is_failing = False
        """A failure was detected, and what follows from it is not carried out yet."""
        self._stages_began: dict[tuple[int, str], float] = {}
        """When each server of this attempt entered each stage, by the monotonic clock."""
        self._drilled_attempt: int | None = None
        """The attempt that a drill is about to break."""
        self._name = name
        self._clock = clock
        self._save = save
        self._on_change = on_change
        self._numbers = numbers or EventNumbers()

    def enter(self, phase: Phase) -> None:
        """Move to the next phase."""
        log.info("group %s: %s -> %s", self._name, self.journal.phase, phase)
        self.is_failing = False
        now = self._clock.wall()
        tally = self.journal.tally.settled()
        if phase is Phase.READY:
            stages = stage_seconds(self._stages_began, self._clock.monotonic())
            tally = tally.became_ready(now, stages, self.journal.attempt)
        self.journal.tally = tally
        self.journal.enter(phase, now, self._numbers.draw())
        self._give_copy()
        self._on_change()

    def note(
        self, kind: str, text: str, server: int | None = None, at: float | None = None
    ) -> Event:
        """Add an event to the journal; `at` is on the wall clock."""
        now = self._clock.wall() if at is None else at
        event = self.journal.note(now, kind, text, server, number=self._numbers.draw())
        place = "" if server is None else f", server {server}"
        level = logging.WARNING if kind in LOUD else logging.INFO
        log.log(level, "group %s%s: %s: %s", self._name, place, kind, text)
        # A controller that takes over learns the stages again from its agents.
        if kind != "stage":
            self._give_copy()
        self._on_change()
        return event

    def note_failure(self, failure: FailureSeen) -> None:
        """Note that a failure was detected, and count it."""
        self.is_failing = True
        began = fault_began(failure, list(self.seen.values()))
        detection_s = None if began is None else self._clock.monotonic() - began
        now = self._clock.wall()
        tally, attempt = self.journal.tally, self.journal.attempt
        self.journal.tally = tally.failed(failure, now, detection_s, attempt)
        self.note("failure", failure.reason, failure.root)

    def note_diagnosis(self, diagnosis: Diagnosis, root: int | None) -> None:
        """Note the diagnosis of the failure that was noted last."""
        self.journal.diagnosis = diagnosis
        self.journal.tally = self.journal.tally.diagnosed(diagnosis, root)
        self.note("diagnosis", f"{diagnosis.id}: {diagnosis.cause}", root)

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Add what a dry run found beside the start, with an event for each error.

        It changes no decision: the server itself refuses what its dry run refused.
        """
        self.journal.findings = (*self.journal.findings, *findings)
        for finding in findings:
            if finding.level == "error":
                self.note(finding.id, finding.what)
        self._on_change()

    def show_reserved(self, servers: Iterable[int]) -> None:
        """Show servers that have an agent, and nothing more yet."""
        for index in servers:
            self.observe(ServerSeen(index))

    def begin_attempt(self, servers: Iterable[int]) -> int:
        """Count the next attempt, of which nothing is observed yet, and return its number."""
        self.journal.attempt += 1
        attempt = self.journal.attempt
        started_at = self._clock.monotonic()
        history = replace(self.journal.history, started_at=started_at, ready_at=None)
        self.journal.history = history
        self.unreachable = {}
        self._stages_began = {}
        self.seen = {index: ServerSeen(index, attempt=attempt) for index in servers}
        return attempt

    def observe(self, seen: ServerSeen) -> None:
        """Take an observation of a server, and note what changed."""
        index = seen.index
        before = self.seen.get(index)
        if before is not None and seen.attempt < before.attempt:
            # An agent that died before it reported this attempt is lost all the same.
            seen = replace(before, agent_lost=before.agent_lost or seen.agent_lost)
        if seen == before:
            return
        self.seen[index] = seen
        self._note_changes(before or ServerSeen(index, stage=""), seen)
        self._on_change()

    def _note_changes(self, last: ServerSeen, seen: ServerSeen) -> None:
        """Note what differs between two observations of one server."""
        index = seen.index
        if seen.agent_lost == "node unreachable":
            self.unreachable[index] = self.shape.nodes[index]
        if self.journal.phase is Phase.STARTING:
            self._stages_began.setdefault((index, seen.stage), self._clock.monotonic())
        if (last.stage, last.stage_detail) != (seen.stage, seen.stage_detail):
            self.note("stage", f"{seen.stage} {seen.stage_detail}".rstrip(), index)
        if seen.read_ahead and not self.journal.has("read-ahead", index):
            self.note("read-ahead", seen.read_ahead, index)
        if seen.log_error and not last.log_error:
            self.note("log-failed", f"cannot write the server's log: {seen.log_error}", index)
        if last.log_error and not seen.log_error and seen.attempt == last.attempt:
            self.note("log-recovered", "the server's log can be written again", index)
        if seen.agent_error and seen.agent_error != last.agent_error:
            self.note("internal", f"the agent: {seen.agent_error}", index)
        if seen.exit is not None and last.exit is None:
            self.note("exit", f"exited: {seen.exit}", index)

    def expect_drill(self) -> None:
        """Do not count the failure of the current attempt: a drill causes it."""
        self._drilled_attempt = self.journal.attempt

    def judged_history(self) -> History:
        """Return the history for the policy: what a drill breaks is restarted in any case."""
        history = self.journal.history
        if self._drilled_attempt != self.journal.attempt:
            return history
        device_faults = tuple(old for old in history.failures if old.kind == "device")
        return replace(history, failures=device_faults)

    def forget_failures(self) -> None:
        """Begin the restart budget again. Device faults are kept: their nodes stay excluded."""
        history = self.journal.history
        device_faults = tuple(old for old in history.failures if old.kind == "device")
        self.journal.history = replace(history, failures=device_faults, ready_at=None)
        self._drilled_attempt = None

    def remember(self, decision: Restart) -> None:
        """Add the failure that a restart answers to the history, unless a drill caused it."""
        history = self.journal.history
        self.journal.tally = self.journal.tally.restarted(decision.cause, decision.kind)
        failure = Failure(
            self.journal.attempt,
            self._clock.monotonic(),
            decision.cause,
            decision.kind,
            decision.root,
            was_ready=history.ready_at is not None,
            node="" if decision.root is None else self.shape.nodes[decision.root],
        )
        if self._drilled_attempt == self.journal.attempt:
            self.journal.history = replace(history, ready_at=None)
        else:
            self.journal.history = history.remember(failure)
        # A second fault in the restart after a drill does count.
        self._drilled_attempt = None

    def _give_copy(self) -> None:
        self._save(self.journal.number, self.journal.dump(self._clock))


def _shift(history: History, by_s: float) -> History:
    def shift(failure: Failure) -> Failure:
        return replace(failure, at=failure.at + by_s)

    ready_at = history.ready_at
    if ready_at is not None:
        ready_at += by_s
    return replace(
        history,
        started_at=history.started_at + by_s,
        ready_at=ready_at,
        failures=tuple(shift(failure) for failure in history.failures),
    )
