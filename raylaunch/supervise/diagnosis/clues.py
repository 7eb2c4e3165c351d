"""Clues to a failure in the evidence of one server: log lines, exit status, lost agent.

Pure: evidence in, ranked clues out; `root_cause` compares them over all servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from raylaunch.supervise.diagnosis.exit_reasons import ExitReason, describe_exit, name_exit
from raylaunch.supervise.diagnosis.inputs.server_evidence import ServerEvidence
from raylaunch.supervise.diagnosis.last_exception import explain_exception
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, shorten
from raylaunch.supervise.diagnosis.rules.all_rules import RULES
from raylaunch.supervise.diagnosis.rules.cann_blocks import find_blocks, quote_block
from raylaunch.supervise.diagnosis.signatures import (
    LINE_CHARS,
    Signature,
    Site,
    fill_text,
    load_signatures,
)
from raylaunch.supervise.diagnosis.survival import Life, read_life, read_unexplained
from raylaunch.supervise.diagnosis.tracebacks import (
    EXCEPTION,
    FOLLOWS,
    is_half_made,
    is_passed_on,
    read_exception,
)

_CAUSED = re.compile(r"direct cause of the following exception")
_CHAIN_LINES = 4
_BELOW_ITS_EXCEPTION = (
    "cann-",
    "hccl-",
    "npu-",
    "collective-timeout",
    "op-compile",
    "graph-streams",
)
"""Readings of what CANN writes below the exception that torch_npu raises for it."""
_SAYS_WHY_NO_LINK = ("cann-EI0003", "cann-EI0005", "cann-EI0008")
_BLOCK_WITHIN_LINES = 10
_SECOND_HAND = (Rank.CODE, Rank.WRAPPER)
_UNKNOWN_WITHIN_S = 60.0
_SURVIVED_S = 600.0
"""A server that fails exits within its time-outs: seconds, or HANDSHAKE_TIMEOUT_MINS = 5
in vLLM 0.32."""


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


def find_clues(server: ServerEvidence, log: ServerLog, site: Site) -> Iterator[Clue]:
    """Yield the clues in the evidence of one server: signatures, rules, exceptions, its exit."""
    life = read_life(log)
    by_line = _match_signatures(log, site)
    readings = _select_readings(log, by_line)
    replaced = {(reading.reason.id, reading.line) for reading in readings}
    explained_lines: set[int] = {line for line, _, _ in by_line}
    found: list[Clue] = []
    for reading in readings:
        explained_lines |= {reading.line, *reading.covers}
        follows = reading.symptom or reading.rank in _SECOND_HAND
        if not _is_no_failure(server, log, life, reading.line, symptom=follows):
            found.append(_reading_clue(reading, server, log))
    found = _first_of_each(found)
    blocks = {block.line: quote_block(block) for block in find_blocks(log)}
    seen = {clue.reason.id for clue in found}
    for line, signature, match in by_line:
        if signature.id in seen or (signature.id, line) in replaced:
            continue
        hang = signature.level == "hang"
        if hang and life.progressed > line:
            continue
        follows = signature.symptom or signature.wrapper
        if _is_no_failure(server, log, life, line, symptom=follows):
            continue
        seen.add(signature.id)  # the first match is the earliest; the rest are repetitions
        fullest = _fullest(by_line, signature, line, match)
        clue = _signature_clue(signature, server, log, line, fullest)
        found.append(_with_block(clue, blocks.get(line, "")))
    yield from found
    if unknown := _unknown_exception(server, log, explained_lines, found, life):
        yield unknown
    if exited := _exit_clue(server, log, found):
        yield exited
    for reading in read_unexplained(log, life, explained_lines):
        yield _reading_clue(reading, server, log)


def _fullest(
    by_line: Sequence[tuple[int, Signature, re.Match[str]]],
    signature: Signature,
    first: int,
    match: re.Match[str],
) -> re.Match[str]:
    """Return the match near the first one that has the most values: one failure, several lines."""
    near = [
        other
        for line, each, other in by_line
        if each is signature and first <= line <= first + _BLOCK_WITHIN_LINES
    ]
    return max((match, *near), key=lambda each: sum(group is not None for group in each.groups()))


def _match_signatures(log: ServerLog, site: Site) -> list[tuple[int, Signature, re.Match[str]]]:
    """Return the lines that signatures know. A site's signature wins over ours on its line."""
    matches = [found for each in site.signatures for found in _match(log, each)]
    sites_own = {line for line, _, _ in matches}
    for signature in load_signatures():
        matches += [found for found in _match(log, signature) if found[0] not in sites_own]
    return sorted(matches, key=lambda found: found[0])


def _match(log: ServerLog, signature: Signature) -> Iterator[tuple[int, Signature, re.Match[str]]]:
    text = log.errors if signature.level == "fatal" else log.warnings
    if signature.anchor:
        text = log.everything
    for line, match in text.find(signature.pattern):
        yield line, signature, match


def _select_readings(
    log: ServerLog, by_line: Sequence[tuple[int, Signature, re.Match[str]]]
) -> list[Reading]:
    """Return what the rules read on lines that no signature explains better."""
    signatures: dict[int, list[Signature]] = {}
    for line, signature, _ in by_line:
        signatures.setdefault(line, []).append(signature)
    taken: set[int] = set()
    selected: list[Reading] = []
    for rule in RULES:
        for reading in rule(log):
            lines = {reading.line, *reading.covers}
            if not taken.isdisjoint(lines):
                continue
            rivals = [each for line in lines for each in signatures.get(line, ())]
            if any(_is_preferred(rival, reading) for rival in rivals):
                continue
            taken |= lines
            selected.append(reading)
    return selected


def _is_preferred(signature: Signature, reading: Reading) -> bool:
    """Whether a signature on the same line says more than the reading of a rule."""
    if signature.file:
        return True
    if signature.level != "fatal" or signature.id == reading.reason.id:
        return False
    if signature.wrapper:
        return reading.rank in _SECOND_HAND
    if signature.id == "bad-config-value":
        return False  # it only repeats the message of another check
    if not signature.symptom:
        return True
    if reading.reason.id.startswith("cann-"):
        return not reading.reason.id.startswith(_SAYS_WHY_NO_LINK)
    names_the_address = reading.reason.id.startswith("rendezvous-")
    return not (names_the_address or reading.rank is Rank.CAUSE)


def _first_of_each(clues: Sequence[Clue]) -> list[Clue]:
    """Return the earliest clue of each id: the rest are repetitions by other processes."""
    first: dict[str, Clue] = {}
    for clue in sorted(clues, key=lambda clue: (clue.at, clue.line or 0)):
        first.setdefault(clue.reason.id, clue)
    return list(first.values())


def _reading_clue(reading: Reading, server: ServerEvidence, log: ServerLog) -> Clue:
    return Clue(
        rank=reading.rank,
        at=_time_of(log, reading.line, server),
        server=server,
        reason=reading.reason,
        line=reading.line,
        symptom=reading.symptom,
        certain=reading.certain and not reading.symptom and reading.rank not in _SECOND_HAND,
    )


def _is_no_failure(
    server: ServerEvidence, log: ServerLog, life: Life, line: int, *, symptom: bool
) -> bool:
    """Whether the server survived this line, or a peer left after an ordered stop."""
    if _was_survived(server, log, line):
        return True
    if server.exit is not None or server.agent_lost:
        return False
    return life.survived(log, line) or (symptom and life.after_stop(line))


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
        cause=fill_text(signature.cause, groups),
        remedy=fill_text(signature.remedy, groups),
        source=signature.source,
    )
    return Clue(
        rank=_rank(signature),
        at=_time_of(log, line, server),
        server=server,
        reason=reason,
        line=line,
        symptom=signature.symptom,
        certain=signature.certain and not (signature.wrapper or signature.symptom),
    )


def _with_block(clue: Clue, quoted: str) -> Clue:
    """Add what CANN's block on the same line says: it has the values that a code alone lacks."""
    if not quoted or quoted in clue.reason.cause:
        return clue
    cause = f"{clue.reason.cause} CANN reports: {shorten(quoted)}."
    return replace(clue, reason=replace(clue.reason, cause=cause))


def _rank(signature: Signature) -> Rank:
    if signature.level != "fatal":
        return {"hang": Rank.HANG, "quality": Rank.QUALITY, "warning": Rank.NOTE}[signature.level]
    if signature.wrapper:
        return Rank.WRAPPER
    return Rank.HINT if signature.symptom else Rank.CAUSE


def _unknown_exception(
    server: ServerEvidence,
    log: ServerLog,
    explained_lines: set[int],
    found: Sequence[Clue],
    life: Life,
) -> Clue | None:
    """Return the last exception without a signature, from shortly before the server failed.

    "Failed" is its first second-hand report, or its exit. A server that has run for long also logs
    exceptions of single requests; those explain nothing.
    """
    second_hand = [clue for clue in found if clue.rank in (Rank.HINT, *_SECOND_HAND)]
    matches = {
        line: match
        for line, match in log.errors.find(EXCEPTION)
        if (line not in explained_lines or is_passed_on(match))
        and not FOLLOWS.search(match[0])
        and not is_half_made(log, line, match)
        and not _is_explained_below(log, line, found)
        and not _is_no_failure(server, log, life, line, symptom=True)
    }
    near = [line for line in matches if _is_near_the_failure(log, line, server, second_hand)]
    second_hand_lines = [clue.line for clue in second_hand if clue.line is not None]
    first_report = min(second_hand_lines, default=len(log.raw))
    before = [line for line in near if line < first_report or is_passed_on(matches[line])]
    has_hint = any(clue.rank is Rank.HINT for clue in found)
    if before:
        # The worker's own report has its frames; the engine's may have lost them.
        own = [line for line in before if not is_passed_on(matches[line])]
        line = (own or before)[-1]
    elif near and near[-1] == max(matches) and not has_hint:
        line = near[-1]
    else:
        return None
    line = _first_of_chain(log, line, matches)
    raised = read_exception(log, line, matches[line])
    shown = log.cleaned[line].strip()[:LINE_CHARS]
    reason = explain_exception(raised, shown, serving=-1 < life.served < line)
    if reason.id == "unknown" and is_passed_on(matches[line]):
        return None  # the engine's report says as much
    at = _time_of(log, line, server)
    return Clue(Rank.HINT, at, server, reason, line, certain=False)


def _first_of_chain(log: ServerLog, line: int, matches: Mapping[int, re.Match[str]]) -> int:
    """Return the exception that began a chain of "was the direct cause of" ending on `line`."""
    for before in sorted((each for each in matches if each < line), reverse=True):
        between = log.cleaned[before + 1 : line]
        if not any(_CAUSED.search(text) for text in between[:_CHAIN_LINES]):
            return line
        if not matches[before][2]:
            return line  # one without a message says less than what it caused
        line = before
    return line


def _is_explained_below(log: ServerLog, line: int, found: Sequence[Clue]) -> bool:
    """Whether CANN's own block follows: torch_npu appends it to its exception."""
    return any(
        clue.reason.id.startswith(_BELOW_ITS_EXCEPTION)
        and 0 <= log.numbers[clue.line or 0] - log.numbers[line] <= _BLOCK_WITHIN_LINES
        for clue in found
    )


def _is_near_the_failure(
    log: ServerLog, line: int, server: ServerEvidence, second_hand: Sequence[Clue]
) -> bool:
    failed_at = [clue.at for clue in second_hand]
    if server.exit:
        failed_at.append(server.exit.at)
    if not failed_at:
        return True
    at = _time_of(log, line, server)
    if at == inf:
        return True  # a log without any time
    return min(failed_at) - at <= _UNKNOWN_WITHIN_S


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
