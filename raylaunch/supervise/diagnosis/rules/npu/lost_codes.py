"""Texts of CANN whose code a log has lost: the text stands for the code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.error_codes import find_code
from raylaunch.supervise.diagnosis.rules.kv_rules import GLOG_KV

_CODES = {
    "Failed to bind the IP port": "EJ0003",
    "The network port is down": "EJ0002",
    "An error CQE occurred during operator execution": "EI0013",
    "The CANN versions are inconsistent": "EI0008",
    "Device does not exist or is abnormal": "EL0001",
}
_TEXT = re.compile("|".join(re.escape(text) for text in _CODES))
_HAS_CODE = re.compile(r"\b[EW][A-Z]\d{4}\b")
_ABOVE = 3
_CALL = re.compile(
    r"\b(acl(?:rt|mdl|op|tdt)?[A-Z]\w{3,60})\b[^\n]{0,24}?(?:[Rr]eturn|[Ff]ail|[Ee]rror)[^\n]{0,24}?"
    r"(?:code|ret)(?: is)? ?[:=]? ?([1-5]\d{5})(?!\d)"
)
# acl_base_rt.h: ranges of AscendCL's own numbers.
_RANGES = {
    "100": "AscendCL got a parameter or a state that it does not accept, as of a device that is "
    "not set or a function that this driver does not have",
    "145": "AscendCL got a file or a model that it does not accept",
    "148": "AscendCL was called in the wrong state",
    "200": "AscendCL found no memory or a resource that is used up",
    "500": "AscendCL failed inside",
}


def read_lost_codes(log: ServerLog) -> Iterator[Reading]:
    """Yield what CANN's texts mean where no code stands beside them, and bare calls of AscendCL."""
    for line, match in log.errors.find(_TEXT):
        near = "\n".join(log.cleaned[max(0, line - _ABOVE) : line + 1])
        known = find_code(_CODES[match[0]], log.codes)
        if known is None or _HAS_CODE.search(near):
            continue
        yield Reading(
            reason(
                f"cann-{known.code}",
                f"{known.cause}: {shorten(log.cleaned[line].strip(), 200)}.",
                known.remedy,
                known.source,
                known.kind,
            ),
            line,
            rank=Rank.HINT,
            symptom=known.symptom,
            certain=False,
        )
    for line, match in log.errors.find(_CALL):
        known = find_code(match[2], log.codes)
        cause = known.cause if known else _RANGES.get(match[2][:3], "")
        if not cause or GLOG_KV.match(log.cleaned[line]):  # Mooncake says more than its call
            continue
        yield Reading(
            reason(
                "acl-call",
                f"{cause}: `{match[1]}` returned {match[2]}.",
                (f"{known.remedy} " if known and known.remedy else "")
                + "Compare the driver (`npu-smi info`), CANN and torch_npu with the release's "
                "image: an older driver or CANN lacks some functions. The newest "
                "`~/ascend/log/debug/plog/plog-PID_*.log` of this process names the argument.",
                "CANN acl_base_rt.h",
                known.kind if known else "transient",
            ),
            line,
            rank=Rank.CODE,
            certain=False,
        )
