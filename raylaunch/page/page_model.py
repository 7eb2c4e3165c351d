"""The model of the page: three parts, by how often they change, each plain JSON when encoded.

`live` changes all the time, `history` with each event, `facts` with each attempt or benchmark. A
frozen page has all three and the ends of the logs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from raylaunch.bench.charts import Figure, make_figure
from raylaunch.bench.result import Run
from raylaunch.checks.findings import Finding
from raylaunch.checks.secret_checks import mask_group_secrets
from raylaunch.page.foreign_text import clean
from raylaunch.page.live_part import LiveView
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.failure_timeline import FailureTimeline, build_failures
from raylaunch.supervise.start_timeline import StartTimeline, build_starts

SCHEMA = 1
SHOWN_EVENTS = 500
SHOWN_FIGURES = 12
"""Benchmarks of so many scenarios are drawn, those with the newest runs."""


@dataclass(frozen=True)
class HistoryView:
    """What happened. `events` are the newest, oldest first."""

    starts: tuple[StartTimeline, ...]
    failures: tuple[FailureTimeline, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True)
class DiagnosisView:
    """The diagnosis of a group's last failure, or of its present logs."""

    group: str
    id: str
    kind: str
    server: int | None
    line: str
    cause: str
    remedy: str
    detail: str
    certain: bool


@dataclass(frozen=True)
class ErrorView:
    """Why a group, or the last command on the deployment, failed."""

    about: str
    what: str
    why: str
    todo: str
    evidence: str


@dataclass(frozen=True)
class PlanView:
    """The plan of a group as JSON values, and the versions on the node of each server."""

    group: str
    plan: Mapping[str, object]
    versions: Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class FactsView:
    """What is known of the present attempt, and what was measured."""

    findings: tuple[Finding, ...]
    diagnoses: tuple[DiagnosisView, ...]
    errors: tuple[ErrorView, ...]
    plans: tuple[PlanView, ...]
    figures: tuple[Figure, ...]
    unread: tuple[str, ...]
    """What could not be read, with the reason."""


@dataclass(frozen=True)
class LogView:
    """The end of a server's log."""

    group: str
    server: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class FrozenPage:
    """The whole page at one moment."""

    live: LiveView
    history: HistoryView
    facts: FactsView
    logs: tuple[LogView, ...]
    version: str
    """Of raylaunch."""
    schema: int = SCHEMA


def view_history(status: Status, events: Sequence[Event]) -> HistoryView:
    """Return the timelines of a deployment.

    Args:
        status: Says when the groups were created, and what the time is.
        events: All that are kept, oldest first.
    """
    created_at = {group.name: group.created_at for group in status.groups}
    return HistoryView(
        starts=build_starts(events, created_at, status.now),
        failures=build_failures(events, status.now),
        events=tuple(events[-SHOWN_EVENTS:]),
    )


def view_diagnosis(group: str, found: Diagnosis) -> DiagnosisView:
    """Return the view of a diagnosis."""
    return DiagnosisView(
        group=group,
        id=found.id,
        kind=found.kind,
        server=found.root,
        line=found.line,
        cause=found.cause,
        remedy=found.remedy,
        detail=found.detail,
        certain=found.certain,
    )


def view_errors(status: Status) -> tuple[ErrorView, ...]:
    """Return the errors in a status: of its groups, and of the last command."""
    errors = [(group.name, group.error) for group in status.groups]
    errors.append(("the last command", status.operation_error))
    return tuple(
        ErrorView(
            about=about,
            what=error.get("what", ""),
            why=error.get("why", ""),
            todo=error.get("todo", ""),
            evidence=error.get("evidence", ""),
        )
        for about, error in errors
        if error
    )


def view_plan(plan: LaunchPlan, versions: Mapping[int, Mapping[str, str]]) -> PlanView:
    """Return the view of a group's plan, without what looks like a secret."""
    return PlanView(plan.group, plan_to_dict(mask_group_secrets(plan)), versions)


def view_benchmarks(runs: Iterable[Run]) -> tuple[Figure, ...]:
    """Return a figure for each scenario and shape of load, the one with the newest run first."""
    by_shape: dict[tuple[object, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.at):
        by_shape.setdefault(run.shape, []).append(run)
    newest_first = sorted(by_shape.values(), key=lambda of_shape: of_shape[-1].at, reverse=True)
    return tuple(make_figure(of_shape) for of_shape in newest_first[:SHOWN_FIGURES])


Part = LiveView | HistoryView | FactsView | FrozenPage | LogView


def encode(part: Part, secrets: Collection[str] = ()) -> str:
    """Return a part as JSON in ASCII, without escape sequences and secrets in its texts.

    Args:
        part: A part of the page.
        secrets: Values that must not be in it.
    """
    return encode_value(asdict(part), secrets)


def encode_value(value: object, secrets: Collection[str] = ()) -> str:
    """Return a JSON value as `encode` does."""
    # One line: a server-sent event may not hold a line break.
    return json.dumps(clean(value, secrets), separators=(",", ":"))


def failed_groups(events: Iterable[Event]) -> Iterator[str]:
    """Yield each group that has a failure among its events, once."""
    yield from dict.fromkeys(
        event.group for event in events if event.kind == "failure" and event.group
    )
