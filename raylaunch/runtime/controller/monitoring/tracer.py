"""Makes spans of the events of a deployment's groups, and hands them to the exporter."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from raylaunch.checks.findings import Finding
from raylaunch.checks.monitoring.tracing_checks import check_tracing
from raylaunch.monitoring.attempt_spans import GroupHistory, complete_pieces, without_secrets
from raylaunch.monitoring.otlp import is_installed
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.runtime.controller.monitoring.span_exporter import SpanExporter
from raylaunch.supervise.deployment_status import Event

NOTE = "tracing"
"""Kind of the events about it."""


@dataclass
class _Followed:
    """A group whose events have been read up to a number."""

    journal: Journal
    read: int = -1
    sent: frozenset[bytes] = field(default_factory=frozenset)
    """Keys of the pieces that the exporter has."""


class Tracer:
    """The traces of one deployment.

    Args:
        deployment: Its name.
        loaded: Its recipe, with an endpoint in `tracing`.
        clock: Of this process.
        note: Adds an event, by kind and text.
    """

    def __init__(
        self,
        deployment: str,
        loaded: LoadedRecipe,
        clock: Clock,
        note: Callable[[str, str], object],
    ) -> None:
        settings = loaded.recipe.tracing
        self._deployment = deployment
        self._settings = settings
        self._clock = clock
        self._note = note
        self._secrets: Mapping[str, str] = {}
        self._followed: dict[str, _Followed] = {}
        self._exporter = SpanExporter(settings, _resource(deployment), clock, self._report)
        self._is_on = is_installed()
        self.findings: tuple[Finding, ...] = ()
        """Why nothing is sent."""
        if not self._is_on:
            self.findings = tuple(check_tracing(loaded, installed=False))

    def start(
        self, groups: Iterable[GroupSupervisor], secrets: Mapping[str, str], tasks: TaskOwner
    ) -> None:
        """Begin to send what becomes complete from now on.

        Args:
            groups: What is complete of them was the business of an earlier controller.
            secrets: Values by name, for the headers.
            tasks: Owns the task that sends.
        """
        for finding in self.findings:
            self._note(NOTE, f"{finding.what}: {finding.todo}")
        if not self._is_on:
            return
        now = self._clock.wall()
        for group in groups:
            pieces = complete_pieces(self._history(group.journal, group.name), now)
            sent = frozenset(piece.key for piece in pieces)
            self._followed[group.name] = _Followed(group.journal, sent=sent)
        self.take_secrets(secrets)
        if missing := self._missing():
            self._note(NOTE, f"no spans are sent: {', '.join(missing)} has no value")
        tasks.keep_running("tracing", self._exporter.run)

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the values of the headers later than at the start."""
        self._secrets = secrets
        if not self._missing():
            headers = self._settings.headers
            self._exporter.use_headers({name: secrets[key] for name, key in headers.items()})

    def take(self, groups: Iterable[GroupSupervisor]) -> None:
        """Queue what has become complete; returns without waiting."""
        if not self._is_on:
            return
        present = {group.name: group.journal for group in groups}
        for name, followed in list(self._followed.items()):
            journal = present.get(name)
            if journal is None or journal.created_at != followed.journal.created_at:
                self._send(name, followed, removed=True)
                del self._followed[name]
        for name, journal in present.items():
            followed = self._followed.setdefault(name, _Followed(journal))
            followed.journal = journal
            # A stage alone completes nothing, and a start has many.
            if any(one.kind != "stage" for one in _newer(journal.events, followed.read)):
                self._send(name, followed)
            followed.read = journal.number

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything is sent, at most `timeout_s`."""
        if self._is_on:
            await self._exporter.flush(timeout_s)

    def _send(self, name: str, followed: _Followed, *, removed: bool = False) -> None:
        history = self._history(followed.journal, name)
        keys = set()
        for piece in complete_pieces(history, self._clock.wall(), removed=removed):
            keys.add(piece.key)
            if piece.key not in followed.sent:
                values = self._secrets.values()
                self._exporter.put([without_secrets(span, values) for span in piece.spans])
        followed.sent = frozenset(keys)

    def _history(self, journal: Journal, group: str) -> GroupHistory:
        return GroupHistory(self._deployment, group, journal.created_at, journal.events)

    def _report(self, problem: str) -> None:
        self._note(NOTE, problem)

    def _missing(self) -> list[str]:
        """Return the secrets of the headers that have no value."""
        wanted = dict.fromkeys(self._settings.headers.values())
        return [name for name in wanted if not self._secrets.get(name)]


def _newer(events: Sequence[Event], number: int) -> Iterator[Event]:
    """Yield the events after a number, newest first."""
    return itertools.takewhile(lambda event: event.number > number, reversed(events))


def _resource(deployment: str) -> dict[str, str]:
    """Return the attributes that all spans of a deployment have in common."""
    found = {"service.name": "raylaunch", "raylaunch.deployment": deployment}
    # With `--cluster` raylaunch runs from its files, and has no version there.
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["service.version"] = metadata.version("raylaunch")
    return found
