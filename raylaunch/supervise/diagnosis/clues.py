"""Clues to a failure in the evidence of one server: log lines, exit status, lost agent.

Pure: evidence in, ranked clues out; `root_cause` compares them over all servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf

from raylaunch.plan.launch_plan import Role
from raylaunch.supervise.diagnosis.exit_reasons import ExitReason, describe_exit, name_exit
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.signatures import Signature, load_signatures
from raylaunch.supervise.state import Exit

LINE_CHARS = 500
"""Longest part of a log line that a diagnosis quotes."""
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure|Timeout)(?:: [^\n]*)?$", re.MULTILINE
)
# Exceptions of a connection that the peer closed: they follow a failure and never explain one.
_NOISE = re.compile(r"(?:^|\.)(?:CancelledError|BrokenPipeError|ConnectionResetError)\b")
_PLACEHOLDER = re.compile(r"\{(\d)\}")
_UNKNOWN_WITHIN_S = 60.0
_SURVIVED_S = 600.0
"""A server that fails exits within its time-outs: seconds, or HANDSHAKE_TIMEOUT_MINS = 5
in vLLM 0.32."""


class Rank(IntEnum):
    """Strength of a clue, best first."""

    CAUSE = 0
    HINT = 1
    """Points to a peer, or is an exception without a signature."""
    WRAPPER = 2
    """Only reports that something else failed."""
    EXIT = 3
    """Exit status without a signal: it names no cause."""
    HANG = 4
    QUALITY = 5
    NOTE = 6


@dataclass(frozen=True)
class ServerEvidence:
    """Evidence of one server, frozen at the time of the failure.

    Clocks: `exit.at` and `lost_at` are in seconds since the epoch on the controller's wall clock,
    because they are compared with time stamps of log lines. The caller converts them from the
    monotonic clock with one offset, read once for all servers. `clock_offset_s` is the node's wall
    clock minus the controller's, `utc_offset_s` the node's time zone (seconds east of UTC): vLLM
    stamps in local time.

    `log_lines` is the log or its tail, beginning with line `first_line` of the file.
    """

    index: int
    role: Role = "primary"
    ranks: tuple[int, ...] = ()
    node_ip: str = ""
    log_lines: Sequence[str] = ()
    exit: Exit | None = None
    agent_lost: str | None = None
    lost_at: float | None = None
    clock_offset_s: float = 0.0
    utc_offset_s: float = 0.0
    first_line: int = 1


@dataclass(frozen=True)
class Clue:
    """One clue to a failure of one server."""

    rank: Rank
    at: float
    """Seconds since the epoch; infinite when it is unknown."""
    server: ServerEvidence
    reason: ExitReason
    line: int | None = None
    """Index in the log."""
    symptom: bool = False
    """Reports that a peer is gone or late."""
    certain: bool = True

    @property
    def order(self) -> tuple[int, float, int, int]:
        """Sort key: the strongest clue first, then the earliest."""
        return self.rank, self.at, self.server.index, self.line or 0


def find_clues(server: ServerEvidence, log: ServerLog) -> Iterator[Clue]:
    """Yield the clues in the evidence of one server: signatures, unknown exceptions, its exit."""
    explained_lines: set[int] = set()
    found: list[Clue] = []
    for signature in load_signatures():
        text = log.errors if signature.level == "fatal" else log.everything
        matches = list(text.find(signature.pattern))
        explained_lines.update(line for line, _ in matches)
        for line, match in matches:
            if not _was_survived(server, log, line):
                found.append(_signature_clue(signature, server, log, line, match))
                break  # the first match is the earliest; the rest are repetitions
    yield from found
    if unknown := _unknown_exception(server, log, explained_lines, found):
        yield unknown
    if exited := _exit_clue(server, log, found):
        yield exited


def _was_survived(server: ServerEvidence, log: ServerLog, line: int) -> bool:
    """Whether the server ran on for long after this line before it exited.

    Then one request failed, not the server.
    """
    at = log.times[line]
    last = log.last_time
    if server.exit is None or at is None or last is None:
        return False
    return last - at > _SURVIVED_S


def _signature_clue(
    signature: Signature, server: ServerEvidence, log: ServerLog, line: int, match: re.Match[str]
) -> Clue:
    groups = [group for group in match.groups() if group is not None]
    reason = ExitReason(
        id=signature.id,
        kind=signature.kind,
        cause=_fill(signature.cause, groups),
        remedy=_fill(signature.remedy, groups),
        source=signature.source,
    )
    return Clue(
        rank=_rank(signature),
        at=_time_of(log, line, server),
        server=server,
        reason=reason,
        line=line,
        symptom=signature.symptom,
        certain=not signature.wrapper,
    )


def _rank(signature: Signature) -> Rank:
    if signature.level != "fatal":
        return {"hang": Rank.HANG, "quality": Rank.QUALITY, "warning": Rank.NOTE}[signature.level]
    if signature.wrapper:
        return Rank.WRAPPER
    return Rank.HINT if signature.symptom else Rank.CAUSE


def _fill(text: str, groups: Sequence[str]) -> str:
    def group(match: re.Match[str]) -> str:
        number = int(match[1])
        if number >= len(groups):
            return "not stated"
        return groups[number].strip()[:LINE_CHARS]

    return _PLACEHOLDER.sub(group, text)


def _unknown_exception(
    server: ServerEvidence, log: ServerLog, explained_lines: set[int], found: Sequence[Clue]
) -> Clue | None:
    """Return the last exception without a signature, from shortly before the server failed.

    "Failed" is its first second-hand report, or its exit. A server that has run for long also logs
    exceptions of single requests; those explain nothing.
    """
    second_hand = [clue for clue in found if clue.rank in (Rank.HINT, Rank.WRAPPER)]
    lines = [
        line
        for line, match in log.errors.find(_EXCEPTION)
        if line not in explained_lines and not _NOISE.search(match[0])
    ]
    near = [line for line in lines if _is_near_the_failure(log, line, server, second_hand)]
    second_hand_lines = [clue.line for clue in second_hand if clue.line is not None]
    first_report = min(second_hand_lines, default=len(log.raw))
    before = [line for line in near if line < first_report]
    has_hint = any(clue.rank is Rank.HINT for clue in found)
    if before:
        line = before[-1]
    elif near and near[-1] == lines[-1] and not has_hint:
        line = lines[-1]
    else:
        return None
    reason = describe_exit("unknown", log.cleaned[line].strip()[:LINE_CHARS])
    at = _time_of(log, line, server)
    return Clue(Rank.HINT, at, server, reason, line, certain=False)


def _is_near_the_failure(
    log: ServerLog, line: int, server: ServerEvidence, second_hand: Sequence[Clue]
) -> bool:
    failed_at = [clue.at for clue in second_hand]
    if server.exit:
        failed_at.append(server.exit.at)
    if not failed_at:
        return True
    return min(failed_at) - _time_of(log, line, server) <= _UNKNOWN_WITHIN_S


def _exit_clue(server: ServerEvidence, log: ServerLog, found: Sequence[Clue]) -> Clue | None:
    """Return the exit of the process or the loss of its agent, if its log does not explain it."""
    if any(clue.rank is Rank.CAUSE for clue in found):
        return None
    last_line = len(log.raw) - 1 if log.raw else None
    if server.agent_lost:
        name = "agent-lost" if server.agent_lost == "agent died" else "node-lost"
        at = server.lost_at or inf
        reason = describe_exit(name, server.agent_lost)
        return Clue(Rank.CAUSE, at, server, reason, last_line)
    if server.exit is None:
        return None
    name, argument = name_exit(server.exit)
    if name == "unknown" and last_line is not None:
        argument = f"{argument}, after `{log.cleaned[last_line].strip()[:LINE_CHARS]}`"
    # A signal is the cause by itself; an exit code only shows that there was one.
    rank = Rank.CAUSE if name in ("killed", "crashed", "member-ended") else Rank.EXIT
    return Clue(
        rank=rank,
        at=server.exit.at,
        server=server,
        reason=describe_exit(name, argument),
        line=last_line,
        certain=name != "unknown",
    )


def _time_of(log: ServerLog, line: int, server: ServerEvidence) -> float:
    """Return the time of a line; in a log without any time, that of the process's exit."""
    stamp = log.times[line]
    if stamp is not None:
        return stamp
    return server.exit.at if server.exit else inf
