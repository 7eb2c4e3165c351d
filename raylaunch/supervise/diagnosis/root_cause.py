"""Names the failure behind a dead or stuck group: root server, line, cause and remedy. Pure: evidence in, verdict out.

The earliest failure by wall clock over all servers wins. Lines that only wrap another failure count when nothing else
is found; lines that complain about a lost peer yield to the peer that ended first, with or without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from raylaunch.plan.launch_plan import Role
from raylaunch.supervise.diagnosis.exit_reasons import Ending, describe_ending
from raylaunch.supervise.diagnosis.log_lines import Log, read_log
from raylaunch.supervise.diagnosis.signatures import Kind, Signature, load_signatures
from raylaunch.supervise.state import Exit

_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure|Timeout)(?:: [^\n]*)?$", re.MULTILINE
)
_NOISE = re.compile(r"(?:^|\.)(?:CancelledError|BrokenPipeError|ConnectionResetError)\b")
_DEVICE = re.compile(r"\bDevice:(\d+)|\b[Dd]evice[\[(](\d+)[\])]|\bNPU (\d+);|\bnpu:(\d+)")
_DEVICE_LINES = 6  # CANN names the device within a few lines of the error
_SAME_TIME_S = 1.0  # vLLM stamps in whole seconds
_LINE_CHARS = 500
_UNKNOWN_WITHIN_S = 60.0
_SURVIVED_S = 600.0
"""A server that fails exits within its time-outs: seconds, or HANDSHAKE_TIMEOUT_MINS = 5 in vLLM 0.32."""

# Ranks of evidence, best first.
_CAUSE, _HINT, _WRAPPER, _ENDED, _HANG, _QUALITY, _NOTE = range(7)


@dataclass(frozen=True)
class ServerEvidence:
    """What one server left behind.

    `log_lines` is the log or its tail, beginning with line `first_line` of the file. `exit.at` and `lost_at` are on the
    controller's clock. `clock_offset_s` is the node's clock minus the controller's, `utc_offset_s` the node's time zone
    (seconds east of UTC): vLLM stamps in local time.
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
class Diagnosis:
    """The verdict. `id` is a signature's, or of an ending without one: killed, crashed, exited-zero, agent-lost, ..."""

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
    """NPU the failure names, for the kind "device"."""
    certain: bool = True
    """False when only a wrapper or an unknown exception was found: the same again is then no surprise."""


@dataclass(frozen=True)
class _Sign:
    """One thing that speaks for a failure of one server."""

    rank: int
    at: float
    server: ServerEvidence
    ending: Ending
    line: int | None = None
    symptom: bool = False
    certain: bool = True


@dataclass(frozen=True)
class _Case:
    """One server's evidence, read."""

    server: ServerEvidence
    log: Log
    signs: tuple[_Sign, ...]

    def best(self) -> _Sign | None:
        return min(self.signs, key=_order, default=None)


def diagnose(evidence: Sequence[ServerEvidence], *, at: float | None = None) -> Diagnosis:
    """Find the root of a failure of the group; always gives a verdict, "unknown" at worst.

    Args:
        evidence: One entry per server.
        at: When the failure was noticed (epoch, controller's clock); it gives the logs' stamps their year.
    """
    cases = _read(evidence, at)
    sign = _root(cases)
    if sign is None:
        return _without_evidence(evidence)
    return _verdict(sign, cases)


def diagnose_text(text: str, name: str = "log") -> Diagnosis | None:
    """Diagnose a bare log. None: it shows nothing known to be wrong."""
    case = _read([ServerEvidence(0, log_lines=text.splitlines())], None)[0]
    sign = case.best()
    if sign is None:
        return None
    return replace(_verdict(sign, [case]), detail=name)


def _read(evidence: Sequence[ServerEvidence], at: float | None) -> list[_Case]:
    ends = [server.exit.at for server in evidence if server.exit] + [
        s.lost_at for s in evidence if s.lost_at
    ]
    reference = at if at is not None else max(ends, default=None)
    return [_read_server(server, reference) for server in evidence]


def _read_server(server: ServerEvidence, reference: float | None) -> _Case:
    offset = server.utc_offset_s + server.clock_offset_s
    log = read_log(server.log_lines, reference=reference, offset_s=offset)
    return _Case(server, log, tuple(_signs(server, log)))


def _signs(server: ServerEvidence, log: Log) -> Iterator[_Sign]:
    claimed: set[int] = set()
    found: list[_Sign] = []
    for signature in load_signatures():
        page = log.loud if signature.level == "fatal" else log.everything
        matches = list(page.find(signature.pattern))
        claimed.update(line for line, _ in matches)
        matches = [(line, match) for line, match in matches if not _was_survived(server, log, line)]
        if matches:
            found.append(_signature_sign(signature, server, log, *matches[0]))
    yield from found
    if unknown := _unknown_exception(server, log, claimed, found):
        yield unknown
    if ended := _end_sign(server, log, found):
        yield ended


def _was_survived(server: ServerEvidence, log: Log, line: int) -> bool:
    """The server went on for long after this line before it ended: one request suffered, not the server."""
    at, last = log.times[line], log.last_time
    return (
        server.exit is not None and at is not None and last is not None and last - at > _SURVIVED_S
    )


def _signature_sign(
    signature: Signature, server: ServerEvidence, log: Log, line: int, match: re.Match[str]
) -> _Sign:
    groups = [group for group in match.groups() if group is not None]
    ending = Ending(
        signature.id,
        signature.kind,
        _fill(signature.cause, groups),
        _fill(signature.remedy, groups),
        signature.source,
    )
    return _Sign(
        _rank(signature),
        _when(log, line, server),
        server,
        ending,
        line,
        signature.symptom,
        not signature.wrapper,
    )


def _rank(signature: Signature) -> int:
    if signature.level != "fatal":
        return {"hang": _HANG, "quality": _QUALITY, "warning": _NOTE}[signature.level]
    if signature.wrapper:
        return _WRAPPER
    return _HINT if signature.symptom else _CAUSE


def _fill(text: str, groups: Sequence[str]) -> str:
    def group(match: re.Match[str]) -> str:
        number = int(match[1])
        return groups[number].strip() if number < len(groups) else "not stated"

    return re.sub(r"\{(\d)\}", group, text)


def _unknown_exception(
    server: ServerEvidence, log: Log, claimed: set[int], found: Sequence[_Sign]
) -> _Sign | None:
    """The last exception no signature knows, from shortly before the server's first second-hand report or its end.

    A server that has run for long also logs exceptions of single requests; those explain nothing.
    """
    echoes = [sign for sign in found if sign.rank in (_HINT, _WRAPPER)]
    matches = log.loud.find(_EXCEPTION)
    lines = [line for line, match in matches if line not in claimed and not _NOISE.search(match[0])]
    first_echo = min((sign.line for sign in echoes if sign.line is not None), default=len(log.raw))
    before = [
        line for line in lines if line < first_echo and _is_near_the_end(log, line, server, echoes)
    ]
    if before:
        line = before[-1]
    elif (
        lines
        and not any(sign.rank == _HINT for sign in found)
        and _is_near_the_end(log, lines[-1], server, echoes)
    ):
        line = lines[-1]
    else:
        return None
    ending = describe_ending("unknown", log.cleaned[line].strip()[:_LINE_CHARS])
    return _Sign(_HINT, _when(log, line, server), server, ending, line, certain=False)


def _is_near_the_end(log: Log, line: int, server: ServerEvidence, echoes: Sequence[_Sign]) -> bool:
    ends = [sign.at for sign in echoes] + ([server.exit.at] if server.exit else [])
    return not ends or min(ends) - _when(log, line, server) <= _UNKNOWN_WITHIN_S


def _end_sign(server: ServerEvidence, log: Log, found: Sequence[_Sign]) -> _Sign | None:
    """The end of the process itself, when its log does not explain it."""
    explained = any(sign.rank == _CAUSE for sign in found)
    last = len(log.raw) - 1 if log.raw else None
    if server.agent_lost and not explained:
        name = "agent-lost" if server.agent_lost == "agent died" else "node-lost"
        return _Sign(
            _CAUSE, server.lost_at or inf, server, describe_ending(name, server.agent_lost), last
        )
    if server.exit is None or explained:
        return None
    name, argument = name_exit(server.exit)
    if name == "unknown" and last is not None:
        argument = f"{argument}, after `{log.cleaned[last].strip()[:_LINE_CHARS]}`"
    rank = _CAUSE if name in ("killed", "crashed", "member-ended") else _ENDED
    return _Sign(
        rank,
        server.exit.at,
        server,
        describe_ending(name, argument),
        last,
        certain=name != "unknown",
    )


def name_exit(ended: Exit) -> tuple[str, str]:
    """Name of an end that no log line explains, and the signal or code it came with."""
    signal, code = ended.signal, ended.code or 0
    if signal is None and ended.code is None and ended.process:
        return "member-ended", ended.process
    if signal is None and (
        code < 0 or code > 128
    ):  # a shell reports signal n as 128 + n, Python's Popen as -n
        signal = -code if code < 0 else code - 128
    if signal is not None:
        return ("killed" if signal in (1, 2, 9, 15) else "crashed"), str(signal)
    return {0: "exited-zero", 2: "bad-usage", 126: "not-executable", 127: "not-executable"}.get(
        code, "unknown"
    ), (f"exit code {code}")


def _order(sign: _Sign) -> tuple[int, float, int, int]:
    return sign.rank, sign.at, sign.server.index, sign.line or 0


def _root(cases: Sequence[_Case]) -> _Sign | None:
    bests = [best for case in cases if (best := case.best()) and best.rank < _QUALITY]
    sign = min(bests, key=_order, default=None)
    if sign is None or not sign.symptom:
        return sign
    return _ended_before(sign, cases) or sign


def _ended_before(symptom: _Sign, cases: Sequence[_Case]) -> _Sign | None:
    """A peer without a symptom of its own that failed or ended no later than the complaint about it."""
    peers = [case for case in cases if not any(sign.symptom for sign in case.signs)]
    onsets = [sign for case in peers for sign in case.signs if sign.rank < _HANG]
    early = [sign for sign in onsets if sign.at <= symptom.at + _SAME_TIME_S]
    return min(early, key=lambda sign: (sign.at, sign.rank, sign.server.index), default=None)


def _silent_peer(symptom: _Sign, cases: Sequence[_Case]) -> int | None:
    """The server whose log stops first, without an error, before a peer complains."""
    quiet = [case for case in cases if not any(sign.rank < _HANG for sign in case.signs)]
    stopped = [
        (case.log.last_time, case.server.index) for case in quiet if case.log.last_time is not None
    ]
    return min(((at, index) for at, index in stopped if at < symptom.at), default=(0.0, None))[1]


def _verdict(sign: _Sign, cases: Sequence[_Case]) -> Diagnosis:
    log = next(case.log for case in cases if case.server is sign.server)
    silent = _silent_peer(sign, cases) if sign.symptom else None
    root = sign.server.index if silent is None else silent
    others = [case for case in cases if case.server.index != root]
    failed = tuple(
        case.server.index for case in others if any(s.rank <= _ENDED for s in case.signs)
    )
    node = next(case.server.node_ip for case in cases if case.server.index == root)
    return Diagnosis(
        id=sign.ending.id,
        kind=sign.ending.kind,
        root=root,
        line=log.raw[sign.line][:_LINE_CHARS] if sign.line is not None else "",
        line_number=sign.server.first_line + sign.line if sign.line is not None else None,
        cause=sign.ending.cause,
        remedy=sign.ending.remedy,
        source=sign.ending.source,
        collateral=failed,
        detail=_detail(sign, silent, cases),
        node=node,
        device=_device(log, sign) if sign.ending.kind == "device" else None,
        certain=sign.certain,
    )


def _detail(sign: _Sign, silent: int | None, cases: Sequence[_Case]) -> str:
    notes = []
    if silent is not None:
        notes.append(
            f"server {sign.server.index} complains, but the log of server {silent} stopped before, without an error"
        )
    if sign.server.exit:
        notes.append(f"server {sign.server.index} ended with {sign.server.exit}")
    seen = sorted({s.ending.id for case in cases for s in case.signs} - {sign.ending.id})
    if seen:
        notes.append(f"also seen: {', '.join(seen)}")
    return "; ".join(notes)


def _without_evidence(evidence: Sequence[ServerEvidence]) -> Diagnosis:
    ending = describe_ending("no-evidence", "")
    root = evidence[0].index if len(evidence) == 1 else None
    return Diagnosis(
        ending.id,
        ending.kind,
        root,
        "",
        None,
        ending.cause,
        ending.remedy,
        ending.source,
        certain=False,
    )


def _device(log: Log, sign: _Sign) -> int | None:
    if sign.line is None:
        return None
    near = "\n".join(log.raw[sign.line : sign.line + _DEVICE_LINES])
    return next(
        (int(group) for match in _DEVICE.finditer(near) for group in match.groups() if group), None
    )


def _when(log: Log, line: int, server: ServerEvidence) -> float:
    """Time of a line; a log without any time counts from the end of its process."""
    stamp = log.times[line]
    if stamp is not None:
        return stamp
    return server.exit.at if server.exit else inf
