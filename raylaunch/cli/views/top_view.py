"""The frames of `raylaunch top`: a deployment on one screen, with the recent speed of each rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.cli.output import Style, table
from raylaunch.cli.views.durations import countdowns, duration
from raylaunch.cli.views.plan_view import count
from raylaunch.cli.views.service_view import fallback_line
from raylaunch.cli.views.status_view import PHASE_KINDS, event_line, has_several, server_name
from raylaunch.plan.facts import Npu
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.supervise.deployment_status import ServerStatus, Status
from raylaunch.supervise.state import RankSeen

KEPT = 24
"""Speeds that a sparkline shows."""
KEPT_BESIDE_NPUS = 12
"""Speeds that a sparkline shows where a rank has its NPUs beside it: a row has 80 columns."""
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*%#"
FOOTER = "q quit   r ranks   e events   l log   d diagnosis   0-9 server of the log"
SERVERS_HEADER = ("SERVER", "NODE", "PID", "STAGE", "AGENT", "HEALTH")
RANKS_HEADER = ("RANK", "RUN", "WAIT", "TOK/S", "", "KV", "HITS", "STATE")
NPUS_HEADER = (*RANKS_HEADER[:-1], "HBM", "NPU", RANKS_HEADER[-1])
EVENTS_KEPT = 3
"""Events that stay on the screen when there are many ranks."""
Usage = Mapping[tuple[str, int], NodeUsage]
"""What servers and their nodes use, by group and server."""


@dataclass
class _Course:
    at: float
    tokens: float
    speeds: deque[float]


class TopHistory:
    """The speed of each rank over the last statuses, in tokens per second."""

    def __init__(self) -> None:
        self._courses: dict[tuple[str, int], _Course] = {}

    def update(self, status: Status) -> None:
        """Take the next status."""
        for server in status.servers:
            for rank in server.seen.ranks:
                self._update_rank((server.group, rank.rank), rank)

    def _update_rank(self, place: tuple[str, int], rank: RankSeen) -> None:
        if rank.at is None:
            return
        course = self._courses.get(place)
        if course is None or rank.tokens < course.tokens:
            # Its first reading, or that of a server that was started again.
            self._courses[place] = _Course(rank.at, rank.tokens, deque(maxlen=KEPT))
        elif rank.at > course.at:
            course.speeds.append((rank.tokens - course.tokens) / (rank.at - course.at))
            course.at = rank.at
            course.tokens = rank.tokens

    def speeds(self, group: str, rank: int) -> tuple[float, ...]:
        """Return the speeds that are known, oldest first."""
        course = self._courses.get((group, rank))
        return () if course is None else tuple(course.speeds)


def sparkline(speeds: Sequence[float], blocks: str = BLOCKS) -> str:
    """Return one character for each speed, the highest for the greatest."""
    top = max(speeds, default=0.0)
    if top <= 0:
        return blocks[0] * len(speeds)
    return "".join(blocks[round(speed / top * (len(blocks) - 1))] for speed in speeds)


def top_lines(
    status: Status,
    history: TopHistory,
    style: Style,
    height: int,
    blocks: str = BLOCKS,
    usage: Usage | None = None,
) -> list[str]:
    """Return a frame of at most `height` lines: head, servers, ranks, the newest events."""
    npus = _npus_of_ranks(status, usage or {})
    head = [*_head(status, style), ""]
    body = [*_servers(status, style), "", *_ranks(status, history, npus, style, blocks)]
    several = has_several(status)
    events = [event_line(event, style, several=several) for event in status.events]
    room = height - len(head) - 2
    shown = max(EVENTS_KEPT, room - len(body) - 1)
    last = ["", *events[-shown:]] if events else []
    kept = body[: max(0, room - len(last))]
    lines = [*head, *kept, *last]
    return [*lines[: height - 1], style.paint(FOOTER, "dim")]


def page_lines(title: str, text: Sequence[str], style: Style, height: int) -> list[str]:
    """Return a frame with the end of a text."""
    room = max(1, height - 3)
    return [style.paint(title, "title"), "", *text[-room:], style.paint(FOOTER, "dim")]


def _head(status: Status, style: Style) -> Iterator[str]:
    phase = style.paint(status.phase.value, PHASE_KINDS.get(status.phase, "title"))
    since = duration(status.now - status.phase_since)
    facts = f"attempt {status.attempt}, {count(status.restarts, 'restart')}"
    if has_several(status):
        ready = sum(group.phase == "ready" for group in status.groups)
        facts = f"{ready} of {len(status.groups)} groups ready, {count(status.restarts, 'restart')}"
    yield f"{style.paint(status.deployment, 'title')}  {phase} for {since}  {facts}"
    ranks = [rank for server in status.servers for rank in server.seen.ranks]
    running = sum(rank.running for rank in ranks)
    waiting = sum(rank.waiting for rank in ranks)
    yield f"{status.endpoint}  {running:.0f} running, {waiting:.0f} waiting"
    if status.fallback:
        yield f"  {fallback_line(status, style)}"
    for line in (status.operation, *countdowns(status), *status.waiting_for[:2]):
        if line:
            yield f"  {line}"


def _servers(status: Status, style: Style) -> Iterator[str]:
    several = has_several(status)
    rows = [_server_row(server, status.now, several=several) for server in status.servers]
    return table(rows, _unwrapped(style), header=SERVERS_HEADER)


def _server_row(server: ServerStatus, now: float, *, several: bool) -> tuple[str, ...]:
    seen = server.seen
    stage = seen.stage
    if seen.agent_lost:
        stage = seen.agent_lost
    elif seen.exit is not None:
        stage = f"exited: {seen.exit.status}"
    agent = "-" if seen.agent_at is None else f"{max(0.0, now - seen.agent_at):.0f} s"
    health = "-"
    if seen.http.at is not None:
        health = str(seen.http.status or "no answer")
    pid = "-" if seen.pid is None else str(seen.pid)
    return server_name(server, several=several), server.ip, pid, stage, agent, health


def _npus_of_ranks(status: Status, usage: Usage) -> dict[tuple[str, int], tuple[Npu, ...]]:
    """Return the NPUs of each rank whose state is known: equal shares of its server's, in order."""
    found = {}
    for server in status.servers:
        on_node = usage.get((server.group, server.index), NodeUsage()).npus
        by_id = {npu.id: npu for npu in on_node}
        share = len(server.devices) // max(1, len(server.ranks))
        for position, rank in enumerate(server.ranks):
            devices = server.devices[position * share : (position + 1) * share]
            npus = tuple(by_id[device] for device in devices if device in by_id)
            if npus:
                found[server.group, rank] = npus
    return found


def _ranks(
    status: Status,
    history: TopHistory,
    npus: Mapping[tuple[str, int], Sequence[Npu]],
    style: Style,
    blocks: str,
) -> Iterator[str]:
    several = has_several(status)
    width = KEPT_BESIDE_NPUS if npus else KEPT
    rows = []
    for server in status.servers:
        for rank in server.seen.ranks:
            speeds = history.speeds(server.group, rank.rank)
            name = f"{server.group}/{rank.rank}" if several else str(rank.rank)
            line = sparkline(speeds[-width:], blocks).rjust(width)
            *cells, state = _rank_cells(rank, speeds, line, status.now)
            if npus:
                of_rank = npus.get((server.group, rank.rank), ())
                cells += [_memory(of_rank), _utilisation(of_rank)]
                state = _ill_health(of_rank) or state
            rows.append((name, *cells, state))
    if not rows:
        return iter(())
    return table(rows, _unwrapped(style), header=NPUS_HEADER if npus else RANKS_HEADER)


def _memory(npus: Sequence[Npu]) -> str:
    """Return how full the fullest NPU's memory is: the one that runs out first."""
    ratios = [npu.hbm_used_mb / npu.hbm_total_mb for npu in npus if npu.hbm_total_mb]
    return f"{max(ratios):.0%}" if ratios else "-"


def _utilisation(npus: Sequence[Npu]) -> str:
    percents = [npu.aicore_percent for npu in npus if npu.aicore_percent is not None]
    return f"{sum(percents) / len(percents):.0f}%" if percents else "-"


def _ill_health(npus: Sequence[Npu]) -> str:
    return ", ".join(f"NPU {npu.id}: {npu.health}" for npu in npus if npu.health != "OK")


def _rank_cells(rank: RankSeen, speeds: Sequence[float], line: str, now: float) -> tuple[str, ...]:
    state = "ok"
    if rank.still_since is not None:
        state = f"still for {duration(now - rank.still_since)}"
    elif rank.canary_failing_since is not None:
        state = f"silent for {duration(now - rank.canary_failing_since)}"
    hits = f"{rank.prefix_hits / rank.prefix_queries:.0%}" if rank.prefix_queries else "-"
    return (
        f"{rank.running:.0f}",
        f"{rank.waiting:.0f}",
        f"{speeds[-1]:.0f}" if speeds else "-",
        line,
        f"{rank.kv_usage:.0%}",
        hits,
        state,
    )


def _unwrapped(style: Style) -> Style:
    """Return the style without a width: the screen cuts lines, and a row stays one line."""
    return Style(colour=style.colour)
