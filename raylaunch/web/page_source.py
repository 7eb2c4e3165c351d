"""Reads a running deployment for its page. Every method blocks: a thread calls it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from raylaunch.deployment import Deployment, kept_runs
from raylaunch.errors import RaylaunchError
from raylaunch.page.live_part import view_live
from raylaunch.page.page_model import (
    DiagnosisView,
    FactsView,
    FrozenPage,
    LogView,
    PlanView,
    encode,
    encode_value,
    failed_groups,
    view_benchmarks,
    view_diagnosis,
    view_errors,
    view_history,
    view_plan,
)
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.state import Phase

KEPT_EVENTS = 2000
FACTS_PERIOD_S = 60.0
"""Benchmarks and versions change without an event."""


@dataclass(frozen=True)
class PageParts:
    """Parts of the page as JSON. One that has not changed since the last reading is None."""

    live: str
    history: str | None = None
    facts: str | None = None
    is_stopped: bool = False
    """The deployment was stopped: its controller is about to exit."""


class PageSource:
    """The deployment of a page.

    Args:
        deployment: All of it, or one group.
        environ: Where the values of the recipe's secrets may be found, to be masked.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self, deployment: Deployment, environ: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._deployment = deployment
        self._environ = environ
        self._clock = clock
        self._version = -1
        self._events: list[Event] = []
        self._newest_event = 0
        self._secrets: dict[str, str] = {}
        self._history = ""
        self._facts_key: object = None
        self._facts_at = 0.0
        self.unsearched: tuple[str, ...] = ()
        """Secrets whose values are not in this environment, so that they cannot be searched for."""

    @property
    def title(self) -> str:
        """The name of the deployment, or NAME/GROUP."""
        return self._deployment.title

    @property
    def secrets(self) -> Collection[str]:
        """Values that no part of the page may hold."""
        return self._secrets.values()

    def poll(self) -> PageParts:
        """Wait for a change, at most 2 s, and return what is different from the last call.

        Raises:
            UnknownDeploymentError: the deployment was stopped.
            RaylaunchError: the controller does not answer.
        """
        if self._facts_key is None:
            self._read_secrets()
        self._version, status = self._deployment.wait_change(self._version)
        self._read_events()
        history = encode(view_history(status, self._events), self.secrets)
        facts = None
        if self._facts_are_old(status):
            self._read_secrets()
            failed = list(failed_groups(self._events))
            facts = encode(self._read_facts(status, failed), self.secrets)
        changed = history if history != self._history else None
        self._history = history
        live = encode(view_live(status), self.secrets)
        return PageParts(live, changed, facts, status.phase is Phase.STOPPED)

    def forget(self) -> None:
        """Make the next `poll` return every part, at once."""
        self._version = -1
        self._history = ""
        self._facts_key = None

    def follow_log(self, group: str, server: int, lines: int) -> Iterator[str]:
        """Yield new lines of a server's log as a JSON list, "" after 2 s without any.

        Args:
            group: Its group.
            server: Its index.
            lines: So many old ones come first.

        Raises:
            RaylaunchError: there is no such server, or the controller does not answer.
        """
        if not self._secrets:
            self._read_secrets()
        for piece in self._deployment.of_group(group).poll_logs(server, lines):
            yield encode_value(piece, self.secrets) if piece else ""

    def freeze(self, lines: int) -> str:
        """Return the whole page as JSON, with the last `lines` of each server's log.

        Raises:
            RaylaunchError: the controller does not answer.
        """
        self._read_secrets()
        status = self._deployment.status()
        self._read_events()
        unread: list[str] = []
        logs = tuple(self._read_logs(status, lines, unread))
        page = FrozenPage(
            live=view_live(status),
            history=view_history(status, self._events),
            facts=self._read_facts(status, [group.name for group in status.groups], unread),
            logs=logs,
            version=_own_version(),
        )
        return encode(page, self.secrets)

    def _read_secrets(self) -> None:
        recipe = self._deployment.recipe().recipe
        names = dict.fromkeys((*recipe.secrets, *recipe.gateway.api_keys))
        self._secrets = {name: self._environ[name] for name in names if self._environ.get(name)}
        self.unsearched = tuple(name for name in names if name not in self._secrets)

    def _read_events(self) -> None:
        for event in self._deployment.events(self._newest_event):
            self._newest_event = max(self._newest_event, event.number)
            self._events.append(event)
        del self._events[:-KEPT_EVENTS]

    def _facts_are_old(self, status: Status) -> bool:
        groups = [(group.name, group.attempt, group.phase) for group in status.groups]
        diagnosed = [event.number for event in self._events if event.kind == "diagnosis"]
        key = (groups, status.findings, status.operation_error, diagnosed[-1:])
        now = self._clock()
        if key == self._facts_key and now - self._facts_at < FACTS_PERIOD_S:
            return False
        self._facts_key = key
        self._facts_at = now
        return True

    def _read_facts(
        self, status: Status, diagnosed: Iterable[str], unread: Iterable[str] = ()
    ) -> FactsView:
        problems = list(unread)
        plans = tuple(self._read_plans(status, problems))
        present = {group.name for group in status.groups}
        wanted = [group for group in diagnosed if group in present]
        diagnoses = tuple(self._read_diagnoses(wanted, problems))
        runs, damaged = kept_runs(self._deployment.name)
        problems += [f"benchmark {name}" for name in damaged]
        return FactsView(
            findings=status.findings,
            diagnoses=diagnoses,
            errors=view_errors(status),
            plans=plans,
            figures=view_benchmarks(runs),
            unread=tuple(problems),
        )

    def _read_plans(self, status: Status, problems: list[str]) -> Iterator[PlanView]:
        for group in status.groups:
            try:
                _, plan, versions = self._deployment.of_group(group.name).describe()
            except RaylaunchError as error:
                problems.append(f"plan of {group.name}: {error.what}")
                continue
            if plan is not None:
                yield view_plan(plan, versions)

    def _read_diagnoses(
        self, groups: Iterable[str], problems: list[str]
    ) -> Iterator[DiagnosisView]:
        for group in groups:
            try:
                found = self._deployment.of_group(group).diagnosis()
            except RaylaunchError as error:
                problems.append(f"diagnosis of {group}: {error.what}")
                continue
            if found is not None:
                yield view_diagnosis(group, found)

    def _read_logs(self, status: Status, lines: int, problems: list[str]) -> Iterator[LogView]:
        if not lines:
            return
        for server in status.servers:
            handle = self._deployment.of_group(server.group)
            try:
                text = handle.logs(server.index, lines)
            except RaylaunchError as error:
                problems.append(f"log of {server.group}/{server.index}: {error.what}")
                continue
            yield LogView(server.group, server.index, tuple(text.splitlines()))


def _own_version() -> str:
    try:
        return version("raylaunch")
    except PackageNotFoundError:  # run from its files, as on the head of --cluster
        return "(not installed: version unknown)"
