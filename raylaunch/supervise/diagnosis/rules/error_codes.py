"""Numbers and codes of CANN, its runtime, HCCL and torch_npu, read from error_codes.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.signatures import Kind

_MODULES = {
    "EI": "HCCL (collective communication)",
    "EJ": "HCCP (the NPU's communication service)",
    "EL": "the NPU driver",
    "EE": "the CANN runtime",
    "EZ": "an NPU operator",
    "EH": "AscendCL",
    "ER": "the RoCE or rank-table layer of HCCL",
    "EP": "the CANN profiler",
    "EK": "the CANN profiler",
    "EF": "the CANN data-flow engine",
    "EC": "the CANN compiler's cache",
    "E1": "the graph engine (GE)",
    "E2": "the graph engine (FE)",
    "E4": "the operator compiler (TE)",
    "E5": "the operator compiler (TBE)",
}
_NUMBER = re.compile(
    r"(?:error code(?: is ?:?|:)|result ?=|ret(?:urn)?(?:Code)? ?[=:]|status:|errno:|ErrCode=|"
    r"failed ?:|\bret\[|retCode=0x7[\da-f]{6} \() ?([1-5]\d{5})(?!\d)"
)
_REASON = re.compile(r"(?:reason|desc)=\[?((?:driver error: ?)?[a-z][a-z ]{3,40})")
# The runtime's words for its numbers (rt_error_codes.h); a block often has only these.
_BY_REASON = {
    "device id error": "107001",
    "task timeout": "107020",
    "feature not support": "207000",
    "driver error:out of memory": "207001",
    "driver error:no valid device": "207004",
    "the model stream execute failed": "507011",
    "aicore timeout": "507014",
    "aicore exception": "507015",
    "aicpu timeout": "507017",
    "aicpu exception": "507018",
    "vector core timeout": "507034",
    "vector core exception": "507035",
    "stream sync timeout": "507046",
    "event sync timeout": "507047",
    "suspect remote error": "507057",
    "driver error:internal error": "507899",
}
_ONLY_FAILED = "5000"
_OPERATOR = re.compile(r"call (aclnn\w{1,60}) failed, error code is (\d{6})")
_CALL = re.compile(r"(?:NPU function error:? ?(?:call )?|call )((?:\w{1,30}::){0,3}\w{3,60})")


@dataclass(frozen=True)
class ErrorCode:
    """One code of CANN."""

    code: str
    cause: str
    remedy: str
    kind: Kind
    source: str
    symptom: bool = False
    first_hand: bool = True
    """False when the code only repeats that something failed."""


@cache
def load_codes() -> dict[str, ErrorCode]:
    """Return the table by code."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files(__package__).joinpath("error_codes.yaml").read_text(encoding="utf-8")
    entries = yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader either way
    return {
        str(entry["code"]): ErrorCode(**{**entry, "code": str(entry["code"])}) for entry in entries
    }


def find_code(code: str, on_node: Mapping[str, CannEntry]) -> ErrorCode | None:
    """Return what is known about a code.

    Args:
        code: A code, or a number as text.
        on_node: The table of the node's own CANN, which wins: it is of the release that wrote the
            log. Whether a failure comes again is not in it.
    """
    known = load_codes().get(code)
    own = on_node.get(code)
    if own is None:
        return known
    if known is None:
        return ErrorCode(code, own.cause, _of_cann(own), "transient", _TABLE, first_hand=True)
    return replace(
        known,
        cause=own.cause or known.cause,
        remedy=_of_cann(own) or known.remedy,
        source=_TABLE,
    )


_TABLE = "the node's own CANN: error_code.json"


def _of_cann(entry: CannEntry) -> str:
    return f"CANN on this node suggests: {entry.remedy}." if entry.remedy else ""


def find_number(
    lines: Sequence[str], on_node: Mapping[str, CannEntry] | None = None
) -> ErrorCode | None:
    """Return what is known about the numeric codes in these lines, or about their words.

    The first one, unless it only reports that a call failed.
    """
    numbers = [match[1] for line in lines for match in _NUMBER.finditer(line)]
    words = [match[1].strip() for line in lines for match in _REASON.finditer(line)]
    numbers += [_BY_REASON[each] for each in words if each in _BY_REASON]
    known = [code for number in numbers if (code := find_code(number, on_node or {}))]
    telling = [code for code in known if not code.code.startswith(_ONLY_FAILED)]
    return next(iter(telling or known), None)


def _family(number: str, text: str) -> ErrorCode | None:
    """Return what the first digits of a number of CANN mean that is in no table."""
    cause = _FAMILIES.get(number[:3])
    if cause is None or not _OF_CANN.search(text):
        return None
    return ErrorCode(
        code=number,
        cause=cause,
        remedy="The newest `~/ascend/log/debug/plog/plog-PID_*.log` of this process names the "
        "step. If an allocation or a copy fails, start once with `env.PYTORCH_NPU_ALLOC_CONF: "
        "expandable_segments:False`; compare driver, CANN and torch_npu with the release's image.",
        kind="transient",
        source="CANN acl_base.h: ranges of its numbers",
        first_hand=False,
    )


_OF_CANN = re.compile(r"NPU function error|\bacl(?:rt|nn|mdl|op)?[A-Z]|\bAclrt|ACL ")
_FAMILIES = {
    "107": "A call of CANN's runtime got an argument or a state that it does not accept",
    "161": "An operator of CANN got an argument that it does not accept",
    "207": "A resource of CANN's runtime (memory, stream, event, device) is used up or not there",
    "361": "An operator of CANN could not call the runtime",
    "507": "CANN's runtime, the driver or the NPU's task scheduler failed inside",
    "561": "An operator of CANN failed inside",
}


def _operator(line: int, name: str, known: ErrorCode | None) -> Reading | None:
    """Read the failed call of an operator whose number says why."""
    if known is None or name.startswith("aclnnMoeDistribute"):
        return None  # those wait for peers, whatever the number is
    remedy = known.remedy.removeprefix("Read the EZ block beside it. ")
    return Reading(
        reason(
            "aclnn-failed",
            f"{known.cause}: {name} (code {known.code}).",
            f"{remedy} {for_experts(name)}The newest `~/ascend/log/debug/plog/plog-PID_*.log` of "
            "this process names the argument.",
            known.source,
            known.kind,
        ),
        line,
        rank=Rank.CODE,
        certain=False,
    )


def for_experts(name: str) -> str:
    """Return a sentence on the split of experts, for an operator of MoE; "" for any other."""
    if not re.search(r"Moe[A-Z]", name):
        return ""
    return (
        "An operator of MoE takes certain numbers of experts a rank only: use the split of the "
        "model's page (`parallel.tensor`, `parallel.data`), or `parallel.expert: false`. "
    )


def find_call(lines: Sequence[str]) -> str:
    """Return the call that failed by these lines, as in `aclnnMatmul`; "" when none is named."""
    calls = [match[1] for line in lines for match in _CALL.finditer(line)]
    return next((call for call in calls if call.startswith("aclnn")), "")


def module_of(code: str) -> str:
    """Return the part of CANN that a code such as EI0006 belongs to."""
    return _MODULES.get(code[:2], "CANN")


def read_numbers(log: ServerLog) -> Iterator[Reading]:
    """Yield what the numeric error codes of the CANN runtime mean.

    They stand beside a message that is usually more exact, so most are wrappers.
    """
    for line, match in log.errors.find(_OPERATOR):
        if reading := _operator(line, match[1], find_code(match[2], log.codes)):
            yield reading
    for line, match in log.errors.find(_NUMBER):
        known = find_code(match[1], log.codes) or _family(match[1], log.cleaned[line])
        if known is None:
            continue
        call = _CALL.search(log.cleaned[line])
        where = f" in `{call[1]}`" if call else ""
        yield Reading(
            reason=reason(
                f"cann-{known.code}",
                f"{known.cause} (code {known.code}{where}).",
                known.remedy,
                known.source,
                known.kind,
            ),
            line=line,
            rank=Rank.CAUSE if known.first_hand else Rank.CODE,
            symptom=known.symptom,
            certain=known.first_hand,
        )
