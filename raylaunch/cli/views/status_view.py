"""A deployment for people: `status`, the table of a start in progress, changes, events."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping

from raylaunch.checks.findings import Finding
from raylaunch.cli.output import Style, error_lines, table, to_json
from raylaunch.cli.views.durations import countdowns, duration
from raylaunch.cli.views.plan_view import compress, count, finding_lines
from raylaunch.cli.views.service_view import fallback_line, gateway_counts
from raylaunch.errors import from_dict
from raylaunch.supervise.deployment_status import Event, GroupStatus, ServerStatus, Status
from raylaunch.supervise.state import HttpSeen, Phase, RankSeen, ServerSeen

PHASE_KINDS = {
    Phase.READY: "good",
    Phase.DEGRADED: "warn",
    Phase.FAILED: "bad",
    Phase.RESTARTING: "warn",
    Phase.STOPPED: "dim",
}
EVENT_KINDS = {"failure": "bad", "exit": "warn", "recovered": "good"}
LOUD_EVENTS = frozenset(
    {"exit", "failure", "restart", "waiting", "recovered", "adopted", "degraded"}
)
"""Kinds of event shown during `start`; phases and stages are shown on their own."""

ASKED_WITH = "RAYLAUNCH_ASKED_WITH"
"""Set on the head of a cluster by --cluster: the file that was named on the other machine."""

RUNNING_HEADER = ("NAME", "PHASE", "SINCE", "ATTEMPT", "RESTARTS", "SERVERS", "RECIPE", "ENDPOINT")
PROGRESS_HEADER = ("SERVER", "NODE", "PID", "STAGE", "FOR", "DETAIL")
PLACE_HEADER = ("SERVER", "ROLE", "NODE", "INTERFACE", "RANKS", "NPUS", "PID", "LOG")
OBSERVED_HEADER = ("SERVER", "STAGE", "AGENT", "HEALTH", "CANARY")
GROUPS_HEADER = ("GROUP", "PHASE", "SINCE", "ATTEMPT", "RESTARTS", "SERVERS", "ENDPOINT")
RANKS_HEADER = ("RANK", "RUNNING", "WAITING", "TOKENS", "FINISHED", "PROGRESS")


def status_lines(status: Status, style: Style) -> Iterator[str]:
    """Lay out one deployment: its servers, the last observation of each kind, what is wrong."""
    several = has_several(status)
    yield from _head(status, style)
    yield ""
    if several:
        groups = [_group_row(group, status.now) for group in status.groups]
        yield from table(groups, style, header=GROUPS_HEADER)
        yield ""
    places = [_place_row(server, several=several) for server in status.servers]
    yield from table(places, style, header=PLACE_HEADER)
    yield ""
    observed = [_observed_row(server, status.now, several=several) for server in status.servers]
    yield from table(observed, style, header=OBSERVED_HEADER)
    ranks: list[tuple[str, ...]] = []
    for server in status.servers:
        group = server.group if several else ""
        ranks.extend(_rank_row(rank, group, status.now) for rank in server.seen.ranks)
    if ranks:
        yield ""
        yield from table(ranks, style, header=RANKS_HEADER)
    yield from _problems(status, style)


def has_several(status: Status) -> bool:
    """Return whether the deployment has several groups: of a single one no name is shown."""
    return len(status.groups) > 1


def server_name(server: ServerStatus, *, several: bool) -> str:
    """Return the name of a server: "0", or "serve-1/0" where there are several groups."""
    return f"{server.group}/{server.index}" if several else str(server.index)


def running_row(status: Status) -> tuple[str, ...]:
    """Return one row of the list of deployments."""
    return (
        status.deployment,
        status.phase.value,
        duration(status.now - status.phase_since),
        str(status.attempt),
        str(status.restarts),
        str(len(status.servers)),
        status.recipe,
        status.endpoint,
    )


def progress_lines(
    status: Status, stage_since: Mapping[tuple[str, int], float], now: float, style: Style
) -> Iterator[str]:
    """Lay out the table that is shown while a deployment starts or stops.

    Args:
        status: The newest status.
        stage_since: Group and index of a server -> when its present stage was first seen
            (controller's clock).
        now: The controller's clock, now.
        style: Style of the stream that the lines are for.
    """
    phase = style.paint(status.phase.value, PHASE_KINDS.get(status.phase, "title"))
    name = style.paint(status.deployment, "title")
    elapsed = duration(now - status.created_at)
    yield f"{name}  {phase}  attempt {status.attempt}  {elapsed}"
    rows = []
    for server in status.servers:
        in_stage = now - stage_since.get((server.group, server.index), now)
        rows.append(_progress_row(server, in_stage, several=has_several(status)))
    if rows:
        yield from table(rows, style, header=PROGRESS_HEADER, indent=2)
    if status.waiting_for:
        yield f"  waiting for {', '.join(status.waiting_for)}"


def changes(before: Status | None, after: Status, *, show_findings: bool = True) -> Iterator[str]:
    """Yield what changed between two statuses, one line each, with the time since creation.

    With `show_findings` off, findings are left out.
    """
    stamp = f"[{after.now - after.created_at:5.1f}s]"
    moved = before is None or (before.phase, before.attempt) != (after.phase, after.attempt)
    # "ready" comes last: the observations that led to it stand above it.
    is_ready = after.phase is Phase.READY
    if moved and not is_ready:
        yield _phase_line(after, stamp)
    if show_findings:
        yield from _new_findings(before, after, stamp)
    yield from _new_stages(before, after, stamp)
    yield from _new_events(before, after, stamp)
    if moved and is_ready:
        yield _phase_line(after, stamp)


def ready_lines(status: Status, address: str | None, style: Style) -> Iterator[str]:
    """Yield what is needed once a deployment is ready: endpoint, a request, how to stop it."""
    ready_at = status.now if status.ready_at is None else status.ready_at
    elapsed = duration(ready_at - status.created_at)
    name = style.paint(status.deployment, "title")
    yield f"{name} is {style.paint('ready', 'good')} after {elapsed}"
    if status.fallback:
        yield f"  {fallback_line(status, style)}"
    yield f"  endpoint  {style.paint(status.endpoint, 'good')}  (model {status.served_name})"
    yield f"  try it    {curl(status)}"
    yield f"  look      {again('status', status.deployment, address)}"
    yield f"  stop      {again('stop', status.deployment, address)}"


def curl(status: Status) -> str:
    """Return a chat completion as one line for a shell."""
    body = {
        "model": status.served_name,
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
        "max_tokens": 50,
    }
    url = shlex.quote(f"{status.endpoint}/chat/completions")
    data = shlex.quote(to_json(body))
    return f"curl -s {url} -H 'Content-Type: application/json' -d {data}"


def again(verb: str, deployment: str, address: str | None) -> str:
    """Return the command line of another verb for the same deployment, for the same machine."""
    words = ["raylaunch", verb, deployment]
    if file := os.environ.get(ASKED_WITH):
        words += ["--cluster", file]
    elif address:
        words += ["--address", address]
    return shlex.join(words)


def event_line(event: Event, style: Style, *, several: bool = False) -> str:
    """Lay out one event; the time is in the time zone of this machine.

    With `several` groups the event's own is named.
    """
    milliseconds = int(event.at % 1 * 1000)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at)) + f".{milliseconds:03d}"
    kind = style.paint(event.kind.ljust(9), EVENT_KINDS.get(event.kind, "name"))
    return (
        f"{style.paint(at, 'dim')}  {event.attempt}  {kind}  {_event_text(event, several=several)}"
    )


def _phase_line(status: Status, stamp: str) -> str:
    attempt = f", attempt {status.attempt}" if status.attempt > 1 else ""
    return f"{stamp} {status.phase.value}{attempt}"


def _new_findings(before: Status | None, after: Status, stamp: str) -> Iterator[str]:
    known = {_identity(finding) for finding in before.findings} if before else set()
    for finding in after.findings:
        if finding.level == "info" or _identity(finding) in known:
            continue
        yield f"{stamp} {finding.level}: {finding.what}"
        # What to do about an error is part of the refusal that follows.
        if finding.todo and finding.level == "warning":
            yield f"{' ' * len(stamp)} next: {finding.todo}"


def _identity(finding: Finding) -> tuple[str, str]:
    return finding.id, finding.where


def _new_stages(before: Status | None, after: Status, stamp: str) -> Iterator[str]:
    known: dict[tuple[str, int], str] = {}
    for server in before.servers if before else ():
        known[server.group, server.index] = _stage(server.seen)
    for server in after.servers:
        stage = _stage(server.seen)
        if stage != known.get((server.group, server.index)):
            name = server_name(server, several=has_several(after))
            yield f"{stamp} server {name} {server.ip} {stage}"


def _new_events(before: Status | None, after: Status, stamp: str) -> Iterator[str]:
    last = before.events[-1].number if before and before.events else 0
    for event in after.events:
        if event.number > last and event.kind in LOUD_EVENTS:
            yield f"{stamp} {_event_text(event, several=has_several(after))}"


def _head(status: Status, style: Style) -> Iterator[str]:
    name = style.paint(status.deployment, "title")
    phase = style.paint(status.phase.value, PHASE_KINDS.get(status.phase, "title"))
    in_phase = duration(status.now - status.phase_since)
    first = f"attempt {status.attempt}"
    if has_several(status):
        first = count(len(status.groups), "group")
    numbers = f"{first}, {count(status.restarts, 'restart')}"
    yield f"{name}  {phase} for {in_phase}  (recipe {status.recipe}, {numbers})"
    yield f"endpoint  {status.endpoint}  (model {status.served_name})"
    if status.fallback:
        yield fallback_line(status, style)
    for node in status.gateway.nodes if status.gateway else ():
        yield f"gateway   on {node.ip}: {gateway_counts(node.counters)}"
    if status.waiting_for:
        yield f"waiting   for {', '.join(status.waiting_for)}"
    for line in countdowns(status):
        yield f"back-off  {line}"


def _group_row(group: GroupStatus, now: float) -> tuple[str, ...]:
    return (
        group.name,
        group.phase.value,
        duration(now - group.phase_since),
        str(group.attempt),
        str(group.restarts),
        str(len(group.servers)),
        group.endpoint,
    )


def _progress_row(server: ServerStatus, in_stage: float, *, several: bool) -> tuple[str, ...]:
    seen = server.seen
    return (
        server_name(server, several=several),
        server.ip,
        _text(seen.pid),
        seen.stage,
        duration(in_stage),
        _failure(seen) or seen.stage_detail,
    )


def _place_row(server: ServerStatus, *, several: bool) -> tuple[str, ...]:
    return (
        server_name(server, several=several),
        server.role,
        server.ip,
        server.interface,
        compress(server.ranks),
        compress(server.devices),
        _text(server.seen.pid),
        server.log,
    )


def _observed_row(server: ServerStatus, now: float, *, several: bool) -> tuple[str, ...]:
    seen = server.seen
    agent = "-" if seen.agent_at is None else f"{duration(now - seen.agent_at)} ago"
    name = server_name(server, several=several)
    return (name, _stage(seen), agent, _health(seen.http, now), _canary(seen, now))


def _stage(seen: ServerSeen) -> str:
    return _failure(seen) or f"{seen.stage} {seen.stage_detail}".rstrip()


def _failure(seen: ServerSeen) -> str:
    if seen.agent_lost:
        return f"lost: {seen.agent_lost}"
    if seen.exit:
        return f"exited: {seen.exit}"
    return ""


def _health(http: HttpSeen, now: float) -> str:
    if http.at is None:
        return "-"
    text = "no answer" if http.status is None else str(http.status)
    if http.latency_s is not None:
        text += f" in {http.latency_s:.3f} s"
    text += f", {duration(now - http.at)} ago"
    if http.failing_since is not None:
        text += f", failing for {duration(now - http.failing_since)}"
    return text


def _canary(seen: ServerSeen, now: float) -> str:
    canary = seen.canary
    if canary is None:
        return "-"
    if canary.ok:
        latency = "" if canary.latency_s is None else f" in {canary.latency_s:.3f} s"
        return f"ok{latency}, {duration(now - canary.at)} ago"
    text = "failed"
    if canary.failing_since is not None:
        text += f" for {duration(now - canary.failing_since)}"
    if canary.detail:
        text += f": {canary.detail}"
    return text


def _rank_row(rank: RankSeen, group: str, now: float) -> tuple[str, ...]:
    progress = "ok"
    if rank.still_since is not None:
        progress = f"still for {duration(now - rank.still_since)}"
    return (
        f"{group}/{rank.rank}" if group else str(rank.rank),
        f"{rank.running:.0f}",
        f"{rank.waiting:.0f}",
        f"{rank.tokens:.0f}",
        f"{rank.finished:.0f}",
        progress,
    )


def _problems(status: Status, style: Style) -> Iterator[str]:
    for server in status.servers:
        if server.seen.hang_lines:
            lines = count(server.seen.hang_lines, "hang line")
            name = server_name(server, several=has_several(status))
            yield f"server {name}: {lines} in the log since tokens last moved"
    several = has_several(status)
    yield from _section(finding_lines(status.findings, style))
    yield from _section(event_line(event, style, several=several) for event in status.events)
    if status.error:
        yield from _section(error_lines(from_dict(status.error), style))
    elif several:
        for group in status.groups:
            if group.error:
                yield from _section(error_lines(from_dict(group.error), style))


def _section(lines: Iterable[str]) -> Iterator[str]:
    """Yield `lines` below an empty line; nothing when there are none."""
    for number, line in enumerate(lines):
        if number == 0:
            yield ""
        yield line


def _event_text(event: Event, *, several: bool) -> str:
    group = event.group if several else ""
    if event.server is None:
        return f"{group}: {event.text}" if group else event.text
    name = f"{group}/{event.server}" if group else str(event.server)
    return f"server {name}: {event.text}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
