"""Root cause of a failed or hung group: server, line, cause, remedy.

Pure: evidence in, verdict out.

The earliest failure by wall clock over all servers wins. Lines that only wrap another failure count
when nothing else is found. Lines that report a lost peer yield to the peer that failed first, even
if it logged nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylaunch.supervise.diagnosis.clues import Clue, find_clues
from raylaunch.supervise.diagnosis.edges import explained_ids
from raylaunch.supervise.diagnosis.exit_reasons import describe_exit
from raylaunch.supervise.diagnosis.inputs.carried_lines import split_lines
from raylaunch.supervise.diagnosis.inputs.server_evidence import ServerEvidence
from raylaunch.supervise.diagnosis.inputs.wrapped_lines import may_be_broken_once
from raylaunch.supervise.diagnosis.log_lines import ServerLog, last_full_time, read_log
from raylaunch.supervise.diagnosis.readings import Rank
from raylaunch.supervise.diagnosis.rules.general.start_waits import WAITING_ANCHOR as ENGINES_ANCHOR
from raylaunch.supervise.diagnosis.rules.memory_rules import KV_NEGATIVE_ANCHOR, KV_ZERO_ANCHOR
from raylaunch.supervise.diagnosis.rules.network_rules import ECHO_ANCHOR
from raylaunch.supervise.diagnosis.rules.ray_rules import WAITING_ANCHOR
from raylaunch.supervise.diagnosis.rules.tables.release_sets import name_set
from raylaunch.supervise.diagnosis.signatures import LINE_CHARS, Kind, Site, load_signatures

__all__ = ["Diagnosis", "ServerEvidence", "diagnose", "diagnose_logs", "diagnose_text"]

_DEVICE = re.compile(r"\bDevice:(\d+)|\b[Dd]evice[\[(](\d+)[\])]|\bNPU (\d+);|\bnpu:(\d+)")
_DEVICE_LINES = 6  # CANN names the device within a few lines of the error
_SAME_PLACE_LINES = 60
_YEAR = re.compile(r"\b20\d\d-\d\d-\d\d")
_YEAR_WITHIN = 200
_YEAR_LINES = 1000
_UNDECIDED = ("unknown", "unexplained-errors")
_EXCERPT_LINES = 200
_ALSO_POSSIBLE = "also possible: "
_SAME_TIME_S = 1.0  # vLLM stamps in whole seconds


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a failure.

    `id` is that of a signature, or of an exit reason: killed, crashed, exited-zero, agent-lost, ...
    """

    id: str
    kind: Kind
    root: int | None
    line: str
    line_number: int | None
    cause: str
    remedy: str
    source: str
    collateral: tuple[int, ...] = ()
    """Servers that failed because the root did."""
    detail: str = ""
    node: str = ""
    device: int | None = None
    """NPU that the log names, for the kind "device"."""
    certain: bool = True
    """False when only a wrapper or an exception without a signature was found."""
    file: str = ""
    """The log that the line is in, when several were read."""


@dataclass(frozen=True)
class _Case:
    """Evidence of one server with its log parsed and its clues."""

    server: ServerEvidence
    log: ServerLog
    clues: tuple[Clue, ...]

    def best(self) -> Clue | None:
        return min(self.clues, key=lambda clue: clue.order, default=None)


def diagnose(
    evidence: Sequence[ServerEvidence], *, at: float | None = None, site: Site | None = None
) -> Diagnosis:
    """Find the root cause of a failure of the group; "unknown" at worst.

    Args:
        evidence: One entry per server.
        at: When the failure was detected (epoch, controller's wall clock); it gives the log's
            stamps their year.
        site: The signatures of this site.
    """
    cases = _demote_explained(_open_cases(evidence, at, site or Site()))
    clue = _find_root(cases)
    if clue is None:
        return _without_evidence(evidence)
    return _verdict(clue, cases)


def diagnose_text(text: str, name: str = "log", site: Site | None = None) -> Diagnosis | None:
    """Diagnose a bare log; None when no known failure is in it."""
    lines, numbers = split_lines(text)
    return diagnose_logs([ServerEvidence(0, log_lines=lines, line_numbers=numbers)], name, site)


def diagnose_logs(
    logs: Sequence[ServerEvidence], name: str, site: Site | None = None
) -> Diagnosis | None:
    """Diagnose logs of which nothing else is known; None when no known failure is in them.

    Args:
        logs: One entry per server or process.
        name: What they are called in the detail.
        site: The signatures of this site.
    """
    at = max((time for log in logs if (time := _newest_year(log)) is not None), default=None)
    cases = _demote_explained(_open_cases(logs, at, site or Site()))
    clue = _root_or_note(cases)
    is_excerpt = sum(len(log.log_lines) for log in logs) <= _EXCERPT_LINES
    if is_excerpt and any(may_be_broken_once(case.log.raw) for case in cases):
        joined = _demote_explained(_open_cases(logs, at, site or Site(), once=True))
        whole = _root_or_note(joined)
        if _is_better(whole, joined, clue, cases):
            cases, clue = joined, whole
    if clue is None:
        return None
    found = _verdict(clue, cases)
    notes = [name, found.detail] if _has_rival(found) or len(logs) > 1 else [name]
    return replace(found, detail="; ".join(note for note in notes if note))


def _is_better(
    whole: Clue | None, joined: Sequence[_Case], clue: Clue | None, cases: Sequence[_Case]
) -> bool:
    """Whether the joined lines tell more: a cause at all, or that of a line which was cut."""
    if whole is None or whole.reason.id in _UNDECIDED:
        return False
    if clue is None or clue.reason.id in _UNDECIDED:
        return True
    if (whole.rank, not whole.certain) > (clue.rank, not clue.certain):
        return False  # the pieces were lines
    text, part = _text_of(whole, joined), _text_of(clue, cases)
    return part in text and part != text


def _text_of(clue: Clue, cases: Sequence[_Case]) -> str:
    log = next(case.log for case in cases if case.server is clue.server)
    return "" if clue.line is None else log.raw[clue.line]


def _root_or_note(cases: Sequence[_Case]) -> Clue | None:
    best = [best for case in cases if (best := case.best())]
    return _find_root(cases) or min(best, key=lambda clue: clue.order, default=None)


def find_anchors(site: Site | None = None) -> tuple[str, ...]:
    """Return the texts that matter in lines of any level, for the reduction of a large log."""
    signatures = (*load_signatures(), *(site.signatures if site else ()))
    of_rules = (WAITING_ANCHOR, ECHO_ANCHOR, KV_NEGATIVE_ANCHOR, KV_ZERO_ANCHOR, ENGINES_ANCHOR)
    return tuple(dict.fromkeys([each.anchor for each in signatures if each.anchor] + [*of_rules]))


def _newest_year(log: ServerEvidence) -> float | None:
    """Return the newest time with a year: it tells those of vLLM, without one, their year."""
    with_year = [line for line in log.log_lines if _YEAR.search(line, 0, _YEAR_WITHIN)]
    return last_full_time(with_year[-_YEAR_LINES:])


def _open_cases(
    evidence: Sequence[ServerEvidence], at: float | None, site: Site, *, once: bool = False
) -> list[_Case]:
    reference = at
    if reference is None:
        exits = [server.exit.at for server in evidence if server.exit]
        losses = [server.lost_at for server in evidence if server.lost_at]
        reference = max((*exits, *losses), default=None)
    return [_open_case(server, reference, site, once=once) for server in evidence]


def _open_case(server: ServerEvidence, reference: float | None, site: Site, *, once: bool) -> _Case:
    log = read_log(
        server.log_lines,
        reference=reference,
        offset_s=server.utc_offset_s + server.clock_offset_s,
        numbers=server.line_numbers,
        noise=site.noise,
        codes=server.cann_codes,
        once=once,
    )
    clues = tuple(find_clues(server, log, site))
    return _Case(server, log, clues)


def _demote_explained(cases: Sequence[_Case]) -> list[_Case]:
    """Rank a clue that another clue of the group explains behind what may explain it."""
    ids = sorted({clue.reason.id for case in cases for clue in case.clues})
    explained = explained_ids(ids)
    demoted = []
    for case in cases:
        clues = tuple(
            replace(clue, rank=_behind(clue.rank)) if clue.reason.id in explained else clue
            for clue in case.clues
        )
        demoted.append(replace(case, clues=clues))
    return demoted


def _behind(rank: Rank) -> Rank:
    """Return the rank of an explained clue: a wrapper, and of a wrapper one below."""
    return Rank.WRAPPER if rank < Rank.WRAPPER else max(rank, Rank.EXIT)


def _has_rival(found: Diagnosis) -> bool:
    return _ALSO_POSSIBLE in found.detail


def _rivals(root: Clue, cases: Sequence[_Case]) -> list[Clue]:
    """Return other first-hand causes of the same server at the same time, none explained."""
    return [
        clue
        for case in cases
        for clue in case.clues
        if clue.rank is Rank.CAUSE
        and root.rank is Rank.CAUSE
        and clue.server is root.server
        and clue.reason.id != root.reason.id
        and _is_same_time(clue, root, case.log)
    ]


def _is_same_time(clue: Clue, root: Clue, log: ServerLog) -> bool:
    if clue.at == root.at:
        # Also in a log without any time: there, only what stands near is of the same time.
        lines = [log.numbers[each.line] if each.line is not None else 0 for each in (clue, root)]
        return abs(lines[0] - lines[1]) <= _SAME_PLACE_LINES
    return abs(clue.at - root.at) <= _SAME_TIME_S


def _find_root(cases: Sequence[_Case]) -> Clue | None:
    best_of_each = [best for case in cases if (best := case.best())]
    failures = [clue for clue in best_of_each if clue.rank < Rank.QUALITY]
    clue = min(failures, key=lambda clue: clue.order, default=None)
    if clue is None or not clue.symptom:
        return clue
    return _peer_that_failed_before(clue, cases) or clue


def _peer_that_failed_before(symptom: Clue, cases: Sequence[_Case]) -> Clue | None:
    """Find a peer without a symptom of its own that failed no later than it was reported lost."""
    peers = [case for case in cases if not any(clue.symptom for clue in case.clues)]
    failures = [clue for case in peers for clue in case.clues if clue.rank < Rank.HANG]
    early = [clue for clue in failures if clue.at <= symptom.at + _SAME_TIME_S]
    return min(
        early,
        key=lambda clue: (clue.at, clue.rank, clue.server.index),
        default=None,
    )


def _silent_peer(symptom: Clue, cases: Sequence[_Case]) -> int | None:
    """Return the server whose log stops first, without an error, before the peer's report."""
    stopped = []
    for case in cases:
        failed = any(clue.rank < Rank.HANG for clue in case.clues)
        last = case.log.last_time
        if not failed and last is not None and last < symptom.at:
            stopped.append((last, case.server.index))
    if not stopped:
        return None
    _, index = min(stopped)
    return index


def _verdict(clue: Clue, cases: Sequence[_Case]) -> Diagnosis:
    silent = _silent_peer(clue, cases) if clue.symptom else None
    root = clue.server.index if silent is None else silent
    log = next(case.log for case in cases if case.server is clue.server)
    node = next(case.server.node_ip for case in cases if case.server.index == root)
    rivals = _rivals(clue, cases)
    line = ""
    line_number = None
    file = ""
    if clue.line is not None:
        line = log.raw[clue.line][:LINE_CHARS]
        file, line_number = clue.server.place(clue.line)
    return Diagnosis(
        id=clue.reason.id,
        kind=_kind(clue, rivals),
        root=root,
        line=line,
        line_number=line_number,
        cause=clue.reason.cause,
        remedy=f"{clue.reason.remedy}{name_set(clue.reason.id, log.raw)}",
        source=clue.reason.source,
        collateral=_collateral(root, cases),
        detail=_detail(clue, silent, rivals, cases),
        node=node,
        device=_device(log, clue) if clue.reason.kind == "device" else None,
        certain=clue.certain and not rivals,
        file=file,
    )


def _kind(clue: Clue, rivals: Sequence[Clue]) -> Kind:
    """Return the class of the failure; that of an unknown one if two causes are possible."""
    return "transient" if rivals else clue.reason.kind


def _collateral(root: int, cases: Sequence[_Case]) -> tuple[int, ...]:
    return tuple(
        case.server.index
        for case in cases
        if case.server.index != root and any(clue.rank <= Rank.EXIT for clue in case.clues)
    )


def _detail(clue: Clue, silent: int | None, rivals: Sequence[Clue], cases: Sequence[_Case]) -> str:
    index = clue.server.index
    notes = [
        f"{_ALSO_POSSIBLE}{rival.reason.cause} (remedy: {rival.reason.remedy})"
        for rival in rivals[:1]
    ]
    if silent is not None:
        notes.append(
            f"server {index} reports a lost peer, "
            f"but the log of server {silent} stops before that, without an error"
        )
    if clue.server.exit:
        notes.append(f"server {index} exited ({clue.server.exit})")
    all_ids = {each.reason.id for case in cases for each in case.clues}
    other_ids = sorted(all_ids - {clue.reason.id})
    if other_ids:
        notes.append(f"also found: {', '.join(other_ids)}")
    return "; ".join(notes)


def _without_evidence(evidence: Sequence[ServerEvidence]) -> Diagnosis:
    reason = describe_exit("no-evidence", "")
    return Diagnosis(
        id=reason.id,
        kind=reason.kind,
        root=evidence[0].index if len(evidence) == 1 else None,
        line="",
        line_number=None,
        cause=reason.cause,
        remedy=reason.remedy,
        source=reason.source,
        certain=False,
    )


def _device(log: ServerLog, clue: Clue) -> int | None:
    if clue.line is None:
        return None
    near = "\n".join(log.raw[clue.line : clue.line + _DEVICE_LINES])
    for match in _DEVICE.finditer(near):
        for number in match.groups():
            if number:
                return int(number)
    return None
