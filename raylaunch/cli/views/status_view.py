"""A deployment for people: the tables of `status` and of a start under way, what changed between two looks, events."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence

from raylaunch.cli.output import Style, error_lines, table, to_json
from raylaunch.cli.views.plan_view import compress, count, finding_lines
from raylaunch.errors import from_dict
from raylaunch.supervise.deployment_status import Event, ServerStatus, Status
from raylaunch.supervise.state import HttpSeen, Phase, RankSeen, ServerSeen

PHASE_KINDS = {
    Phase.READY: "good",
    Phase.FAILED: "bad",
    Phase.RESTARTING: "warn",
    Phase.STOPPED: "dim",
}
LOUD_EVENTS = frozenset({"exit", "failure", "restart", "waiting", "recovered", "adopted"})
"""Kinds of event that a person who waits wants to see; phases and stages are shown on their own."""

ASKED_WITH = "RAYLAUNCH_ASKED_WITH"
"""Set on the head of a cluster when somebody elsewhere asks with --cluster: the file that they named."""
RUNNING_HEADER = ("NAME", "PHASE", "SINCE", "ATTEMPT", "RESTARTS", "SERVERS", "RECIPE", "ENDPOINT")


def status_lines(status: Status, style: Style) -> Iterator[str]:
    """Lay out one deployment: where each server runs, the last observation of each kind, what is wrong."""
    yield from _head(status, style)
    yield ""
    yield from table([_place(server) for server in status.servers], style, header=_PLACE)
    yield ""
    yield from table(
        [_observed(server, status.now) for server in status.servers], style, header=_OBSERVED
    )
    ranks = [_rank(rank, status.now) for server in status.servers for rank in server.seen.ranks]
    if ranks:
        yield ""
        yield from table(ranks, style, header=_RANKS)
    yield from _troubles(status, style)


def running_row(status: Status) -> tuple[str, ...]:
    """One line of the list of deployments."""
    since = duration(status.now - status.phase_since)
    numbers = (str(status.attempt), str(status.restarts), str(len(status.servers)))
    return (status.deployment, status.phase.value, since, *numbers, status.recipe, status.endpoint)


def progress_lines(
    status: Status, stage_since: Mapping[int, float], now: float, style: Style
) -> Iterator[str]:
    """The table shown while a deployment starts or stops.

    Args:
        status: The newest look.
        stage_since: Server index -> when it was first seen in its present stage (controller's clock).
        now: The controller's clock, now.
        style: Where the lines go.
    """
    phase = style.paint(status.phase.value, PHASE_KINDS.get(status.phase, "title"))
    name, elapsed = style.paint(status.deployment, "title"), duration(now - status.created_at)
    yield f"{name}  {phase}  attempt {status.attempt}  {elapsed}"
    rows = [
        _progress(server, now - stage_since.get(server.index, now)) for server in status.servers
    ]
    if rows:
        yield from table(
            rows, style, header=("SERVER", "NODE", "PID", "STAGE", "FOR", "DETAIL"), indent=2
        )
    if status.waiting_for:
        yield f"  waiting for {', '.join(status.waiting_for)}"


def changes(before: Status | None, after: Status) -> Iterator[str]:
    """What happened between two looks, one line each, with the time since the deployment was made."""
    stamp = f"[{after.now - after.created_at:5.1f}s]"
    moved = before is None or (before.phase, before.attempt) != (after.phase, after.attempt)
    phase = f"{stamp} {after.phase.value}" + (
        f", attempt {after.attempt}" if after.attempt > 1 else ""
    )
    if moved and after.phase is not Phase.READY:
        yield phase
    told = {finding.id + finding.where for finding in before.findings} if before else set()
    for finding in after.findings:
        if finding.level != "info" and finding.id + finding.where not in told:
            yield f"{stamp} {finding.level}: {finding.what}"
            if (
                finding.todo and finding.level == "warning"
            ):  # those of an error come with the refusal
                yield f"{' ' * len(stamp)} next: {finding.todo}"
    seen = {server.index: _step(server.seen) for server in before.servers} if before else {}
    for server in after.servers:
        step = _step(server.seen)
        if step != seen.get(server.index):
            yield f"{stamp} server {server.index} {server.ip} {step}"
    last = before.events[-1].number if before and before.events else 0
    for event in after.events:
        if event.number > last and event.kind in LOUD_EVENTS:
            yield f"{stamp} {_whose(event)}{event.text}"
    if moved and after.phase is Phase.READY:
        yield phase


def ready_lines(status: Status, address: str | None, style: Style) -> Iterator[str]:
    """What a person needs once the deployment is ready: how long it took, the endpoint, a request, how to stop."""
    took = (status.ready_at if status.ready_at is not None else status.now) - status.created_at
    yield f"{style.paint(status.deployment, 'title')} is {style.paint('ready', 'good')} after {duration(took)}"
    yield f"  endpoint  {style.paint(status.endpoint, 'good')}  (model {status.served_name})"
    yield f"  try it    {curl(status)}"
    yield f"  look      {again('status', status.deployment, address)}"
    yield f"  stop      {again('stop', status.deployment, address)}"


def curl(status: Status) -> str:
    """A chat completion as one line for a shell."""
    message = [{"role": "user", "content": "Hello, who are you?"}]
    body = to_json({"model": status.served_name, "messages": message, "max_tokens": 50})
    kind = "-H 'Content-Type: application/json'"
    return f"curl -s {shlex.quote(status.endpoint + '/chat/completions')} {kind} -d {shlex.quote(body)}"


def again(verb: str, deployment: str, address: str | None) -> str:
    """The command line of another verb for the same deployment, as it would be asked from the same place."""
    file = os.environ.get(ASKED_WITH)
    where = ["--cluster", file] if file else ["--address", address] if address else []
    words = ["raylaunch", verb, deployment, *where]
    return shlex.join(words)


def event_line(event: Event, style: Style) -> str:
    """One event; the time is that of this machine's time zone."""
    at = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        + f".{int(event.at % 1 * 1000):03d}"
    )
    kind = {"failure": "bad", "exit": "warn", "recovered": "good"}.get(event.kind, "name")
    head = f"{style.paint(at, 'dim')}  {event.attempt}  {style.paint(event.kind.ljust(9), kind)}"
    return f"{head}  {_whose(event)}{event.text}"


def duration(seconds: float) -> str:
    """Seconds for people: "4.2 s", "3 min 12 s", "2 h 05 min"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


_PLACE = ("SERVER", "ROLE", "NODE", "INTERFACE", "RANKS", "NPUS", "PID", "LOG")
_OBSERVED = ("SERVER", "STAGE", "AGENT", "HEALTH", "CANARY")
_RANKS = ("RANK", "RUNNING", "WAITING", "TOKENS", "FINISHED", "PROGRESS")


def _head(status: Status, style: Style) -> Iterator[str]:
    phase = style.paint(status.phase.value, PHASE_KINDS.get(status.phase, "title"))
    since = f"for {duration(status.now - status.phase_since)}"
    numbers = f"attempt {status.attempt}, {count(status.restarts, 'restart')}"
    yield f"{style.paint(status.deployment, 'title')}  {phase} {since}  (recipe {status.recipe}, {numbers})"
    yield f"endpoint  {status.endpoint}  (model {status.served_name})"
    if status.waiting_for:
        yield f"waiting   for {', '.join(status.waiting_for)}"


def _progress(server: ServerStatus, elapsed: float) -> tuple[str, ...]:
    seen = server.seen
    detail = _trouble(seen) or seen.stage_detail
    return (str(server.index), server.ip, _text(seen.pid), seen.stage, duration(elapsed), detail)


def _place(server: ServerStatus) -> tuple[str, ...]:
    where = (server.ip, server.interface, compress(server.ranks), compress(server.devices))
    return (str(server.index), server.role, *where, _text(server.seen.pid), server.log)


def _observed(server: ServerStatus, now: float) -> tuple[str, ...]:
    seen = server.seen
    agent = "-" if seen.agent_at is None else f"{duration(now - seen.agent_at)} ago"
    return (str(server.index), _step(seen), agent, _health(seen.http, now), _canary(seen, now))


def _step(seen: ServerSeen) -> str:
    return _trouble(seen) or f"{seen.stage} {seen.stage_detail}".rstrip()


def _trouble(seen: ServerSeen) -> str:
    if seen.agent_lost:
        return f"lost: {seen.agent_lost}"
    return f"ended: {seen.exit}" if seen.exit else ""


def _health(http: HttpSeen, now: float) -> str:
    if http.at is None:
        return "-"
    failing = (
        "" if http.failing_since is None else f", failing for {duration(now - http.failing_since)}"
    )
    answer = "no answer" if http.status is None else str(http.status)
    latency = "" if http.latency_s is None else f" in {http.latency_s:.3f} s"
    return f"{answer}{latency}, {duration(now - http.at)} ago{failing}"


def _canary(seen: ServerSeen, now: float) -> str:
    canary = seen.canary
    if canary is None:
        return "-"
    if canary.ok:
        latency = "" if canary.latency_s is None else f" in {canary.latency_s:.3f} s"
        return f"ok{latency}, {duration(now - canary.at)} ago"
    since = "" if canary.failing_since is None else f" for {duration(now - canary.failing_since)}"
    return f"failed{since}" + (f": {canary.detail}" if canary.detail else "")


def _rank(rank: RankSeen, now: float) -> tuple[str, ...]:
    counts = tuple(
        f"{value:.0f}" for value in (rank.running, rank.waiting, rank.tokens, rank.finished)
    )
    still = "ok" if rank.still_since is None else f"still for {duration(now - rank.still_since)}"
    return (str(rank.rank), *counts, still)


def _troubles(status: Status, style: Style) -> Iterator[str]:
    for server in status.servers:
        if server.seen.hang_lines:
            lines = count(server.seen.hang_lines, "hang line")
            yield f"server {server.index}: {lines} in the log since tokens last moved"
    yield from _section(finding_lines(status.findings, style))
    yield from _section([event_line(event, style) for event in status.events])
    if status.error:
        yield from _section(error_lines(from_dict(status.error), style))


def _section(lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            yield ""
        yield line


def _whose(event: Event) -> str:
    return "" if event.server is None else f"server {event.server}: "


def _text(value: object) -> str:
    return "-" if value is None else str(value)
