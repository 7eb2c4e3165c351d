"""Error blocks of CANN, in the three forms it writes, read into code, text, reason and solution.

    EJ0003: [PID: 159] 2025-03-26-17:01:02.816 Failed to bind. Reason: ... Solution: ... TraceBack
    Invalid_Input(EZ0004): Parameter x is required. Possible Cause: ... Solution: ...
    EE9999[PID: 17] 2026-04-17-09:16:39.992 (EE9999):  text[FUNC:Setup][FILE:stream.cc]

A block may be one line (its newlines lost) or one sentence a line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.error_codes import (
    ErrorCode,
    find_call,
    find_code,
    find_number,
    module_of,
)
from raylaunch.supervise.diagnosis.rules.npu.cann_texts import TEXTS, Text

_CODE = re.compile(
    r"(?<![\w.])(?:[A-Z]\w{2,40}(?:[/ ]\w{2,20})?\()?([EW](?:[A-Z]\d{4}|\d{5}))(?![\w.])"
    r"(?:\)?:|\)|(?=\[PID))"
)
_TBE_ERROR = re.compile(
    r"'errCode': '([E][\dA-Z]\w{4})'(?:, 'op_name': '([\w.]{1,80})')?[^\n]{0,400}?\}, "
    r"['\"]([^'\"\n]{1,400})"
)
"""TBE raises its errors as a Python tuple of a dictionary and a text."""
_SECTION = re.compile(
    r"(Possible Cause|Reason|Solution|TraceBack \(most recent call last\)|TraceBack)\s?: ?",
)
_STAMP = re.compile(
    r"\[PID: ?\d{1,9}\] ?|\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d[.\d]{0,12} ?|\(E[A-Z]?\d{4,5}\): ?"
)
_NAME_AND_CODE = re.compile(r"(?<=[a-z])\(E[A-Z]\d{4}\): ?")
_PLACE = re.compile(r"\[(?:FUNC|FILE|LINE|THREAD):[^\]\n]{0,120}\]")
_PLACE_OF_C = re.compile(r"\[FUNC:\w{1,80}\]\[FILE:[\w./-]{1,120}\]")
_PYTHON = re.compile(r"^(?:Traceback \(most|\s{0,40}File \"|During handling|The above exception)")
_BLOCK_LINES = 14
_WITHIN_LINES = 60
_TRACE_LINES = 2
_LINES_OF_THE_CALL = 5
_FALLBACK_CODES = ("EE1001", "EL0003", "EH0001")
"""CANN uses these where it has no code of its own for a failed call."""
_ONLY_AN_ARGUMENT = ("107", "100", "145")
"""Numbers of CANN that say no more than a fallback code: an argument is wrong."""
_REPORTERS_OWN = re.compile(r"rtGetDevMsg|GetDevErrMsg|rtGetErrorVerbose")
"""Calls by which torch_npu asks for an error's text: that they fail is no failure of the server."""


_NO_TEXT = re.compile(r"^(?:Inner Error!?[\s.]*)?$")
_REPEATED = re.compile(r"Inner Error!? ?|\b[EW][A-Z\d]\d{4}(?:: ?|(?=\[PID))")


@dataclass(frozen=True)
class CannBlock:
    """One error block."""

    code: str
    line: int
    lines: tuple[int, ...]
    """Indices in the log; lines of other processes stand between them."""
    text: str
    reason: str
    solution: str
    trace: tuple[str, ...]
    """Messages below the block, innermost first."""

    @property
    def is_inner_error(self) -> bool:
        """Whether it is an inner error of CANN (9000 to 9999, 8888) and not one of its user."""
        return self.code[-4] == "9" or self.code.endswith("8888")


def find_blocks(log: ServerLog) -> Iterator[CannBlock]:
    """Yield the error blocks of a log, in its order."""
    taken: set[int] = set()
    for index in log.errors.lines:
        if index in taken:
            continue
        found = _CODE.search(log.cleaned[index])
        if found is None:
            continue
        block = _read_block(log, index, found)
        taken.update(block.lines)
        yield block


def read_blocks(log: ServerLog) -> Iterator[Reading]:
    """Yield the failures that CANN's own error blocks name."""
    for line, match in log.errors.find(_TBE_ERROR):
        yield _tbe_error(line, match)
    yield from _orphans(log, {line for block in find_blocks(log) for line in block.lines})
    for block in find_blocks(log):
        known = find_code(block.code, log.codes)
        call = ""
        if block.is_inner_error:
            # The number of the call says more than "inner error".
            first = max(0, block.line - _LINES_OF_THE_CALL)
            near = [*log.cleaned[first : block.line], *(log.cleaned[line] for line in block.lines)]
            known = find_number(near, log.codes) or known
            call = find_call(near)
        elif block.code.startswith("EZ"):
            call = find_call(log.cleaned[max(0, block.line - _LINES_OF_THE_CALL) : block.line + 1])
        elif block.code in _FALLBACK_CODES:
            number = _number_near(log, block)
            said_more = number is not None and not number.code.startswith(_ONLY_AN_ARGUMENT)
            known = number if said_more else known
        if known is None:
            known = find_number([log.cleaned[line] for line in block.lines], log.codes)
        if known is None and not (block.text or block.reason or block.trace):
            continue
        if _REPORTERS_OWN.search(block.reason or block.text) and _text_of(block) is None:
            continue
        yield _reading(block, known, call)


def _number_near(log: ServerLog, block: CannBlock) -> ErrorCode | None:
    """Return what the number of the failed call says: in the block, else in the lines above it."""
    own = find_number([log.cleaned[line] for line in block.lines], log.codes)
    if own is not None or block.reason:
        return own
    first = max(0, block.line - _LINES_OF_THE_CALL)
    return find_number(log.cleaned[first : block.line], log.codes)


def _orphans(log: ServerLog, taken: Collection[int]) -> Iterator[Reading]:
    """Yield the trace lines of CANN that have lost the head of their block, as one failure."""
    lines = [line for line, _ in log.errors.find(_PLACE_OF_C) if line not in taken]
    texts = {line: _clean(log.cleaned[line]) for line in lines}
    telling = [line for line in lines if not _REPORTERS_OWN.search(texts[line])]
    if not telling:
        return
    first = telling[0]
    block = CannBlock("EE9999", first, tuple(lines), texts[first], "", "", ())
    quoted = "; ".join(texts[line] for line in telling[:3])
    found = next((each for each in TEXTS if re.search(each.words, quoted)), None)
    if found is not None:
        reading = _by_text(block, found, shorten(quoted, 300))
        yield replace(reading, reason=replace(reading.reason, id="cann-trace"))
        return
    known = find_number([log.cleaned[line] for line in lines], log.codes)
    yield Reading(
        reason(
            "cann-trace",
            f"CANN reports, without the head of the block: {shorten(quoted, 300)}."
            + (f" {known.cause}." if known else ""),
            (known.remedy if known else "")
            or "Read the plog of this process (`~/ascend/log/debug/plog/plog-PID_*.log`) at that "
            "time, and `npu-smi info` for the state of the NPU.",
            "CANN's trace lines",
            known.kind if known else "transient",
        ),
        first,
        covers=frozenset(lines),
        rank=Rank.HINT,
        certain=False,
    )


def _tbe_error(line: int, match: re.Match[str]) -> Reading:
    operator = f" for operator {match[2]}" if match[2] else ""
    return Reading(
        reason(
            f"cann-{match[1]}",
            f"The operator compiler (TBE) refused its input{operator} ({match[1]}): "
            f"{shorten(match[3])}.",
            "The operator of this CANN does not accept what the model gives it: use another "
            "release of vllm-ascend and its CANN, or switch off the feature that calls it.",
            "CANN tbe errormgr",
            "deterministic",
        ),
        line,
    )


def _read_block(log: ServerLog, first: int, found: re.Match[str]) -> CannBlock:
    code = found[1]
    parts = [log.cleaned[first][found.end() :]]
    lines = [first]
    last = min(first + _WITHIN_LINES, len(log.cleaned))
    process = log.processes[first]
    for index in range(first + 1, last):
        line = log.cleaned[index]
        if len(lines) == _BLOCK_LINES:
            break
        if log.processes[index] != process and log.processes[index]:
            continue
        other = _CODE.search(line)
        if _PYTHON.match(line) or (other is not None and other[1] != code):
            break
        parts.append(line)
        lines.append(index)
    sections = _sections("\n".join(parts))
    trace = [_clean(line) for line in sections.get("TraceBack", "").splitlines()]
    return CannBlock(
        code=code,
        line=first,
        lines=tuple(lines),
        text=_clean(sections[""]),
        reason=_clean(sections.get("Reason", sections.get("Possible Cause", ""))),
        solution=_clean(sections.get("Solution", "")),
        trace=tuple(line for line in trace if line)[:_TRACE_LINES],
    )


def _sections(text: str) -> dict[str, str]:
    """Split a block at its headings; the text before the first heading is called ""."""
    pieces = _SECTION.split(text)
    sections = {"": pieces[0]}
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        name = "TraceBack" if heading.startswith("TraceBack") else heading
        sections.setdefault(name, body)
    return sections


def _clean(text: str) -> str:
    named = _NAME_AND_CODE.sub(": ", text)
    bare = _REPEATED.sub("", _PLACE.sub("", _STAMP.sub("", named)))
    stripped = shorten(bare).strip(" .:|")
    # A lost opening of a parenthesis is noise; a closing one may belong to a range.
    return stripped.lstrip(")") if "(" in stripped or "[" in stripped else stripped.strip("()")


def _reading(block: CannBlock, known: ErrorCode | None, call: str) -> Reading:
    quoted = quote_block(block)
    module = module_of(block.code)
    by_text = _text_of(block)
    if by_text is not None:
        return _by_text(block, by_text, quoted, call)
    if known is not None and known.cause:
        where = f" in `{call}`" if call and call not in quoted else ""
        number = "" if known.code == block.code else f", code {known.code}"
        cause = f"{known.cause}{where} ({block.code}{number}: {quoted})"
    else:
        cause = f"{module} reports {block.code}: {quoted}."
    remedy = known.remedy if known and known.remedy else ""
    remedy = remedy.removeprefix("Read the EZ block beside it. ")
    if not remedy and block.solution:
        remedy = f"CANN suggests: {block.solution}."
    if not remedy:
        remedy = (
            "Search the quoted text in the release notes of CANN and vllm-ascend; "
            "`~/ascend/log/debug/plog/plog-PID_*.log` of this process has the calls before it."
        )
    symptom = bool(known and known.symptom)
    rank = Rank.HINT if symptom or block.is_inner_error else Rank.CAUSE
    return Reading(
        reason=reason(
            f"cann-{block.code}",
            cause,
            remedy,
            known.source if known else "the block itself",
            known.kind if known else "transient",
        ),
        line=block.line,
        covers=frozenset(block.lines),
        rank=rank,
        symptom=symptom,
        certain=known is not None
        and not symptom
        and not block.is_inner_error
        and (known.first_hand or known.code == block.code)
        and (block.code not in _FALLBACK_CODES or bool(block.reason or block.trace)),
    )


def _text_of(block: CannBlock) -> Text | None:
    quoted = quote_block(block)
    return next((each for each in TEXTS if re.search(each.words, quoted)), None)


def _by_text(block: CannBlock, found: Text, quoted: str, call: str = "") -> Reading:
    where = f" in `{call}`" if call and call not in quoted else ""
    return Reading(
        reason=reason(
            f"cann-{block.code}",
            f"{found.cause}{where} ({block.code}: {quoted}).",
            found.remedy,
            "the block itself",
            "deterministic",
        ),
        line=block.line,
        covers=frozenset(block.lines),
        rank=Rank.HINT if block.is_inner_error else Rank.CAUSE,
        certain=not block.is_inner_error,
    )


def quote_block(block: CannBlock) -> str:
    """Return text, reason and first trace message of a block, without repeating any."""
    quoted: list[str] = []
    for part in (block.text, block.reason, *block.trace):
        if not part or _NO_TEXT.match(part) or any(part in other for other in quoted):
            continue
        quoted.append(part)
    return shorten("; ".join(quoted[:3]), 480)
