"""Values that CANN, or a kernel on the NPU, refuses: which one, and what it takes.

Invalid_Argument(EE1003): value 0 for parameter userDevId is invalid. Expected value: [0, 0).
Index 1048576 out of range[0 1048576)!
[ERROR] ... ERR01003 OPS invalid value
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_VALUE = re.compile(
    r"[Vv]alue \[?([^\]\s]{1,60})\]? for (?:parameter|argument) \[?(\w{2,60})\]? is invalid\.? ?"
    r"(?:Expected value|Valid range|Expected range|Expect)s?:? ?([^\n]{1,120})"
)
_DEVICE = re.compile(r"(?i)dev(?:ice)?_?id|phy_?id|logic_?id")
_RANGE = re.compile(r"\[0, ?(\d{1,4})\)")
_INDEX = re.compile(
    r"\b[Ii]nd(?:ex|ices|exes)(?: value)? (-?\d{1,12}) (?:is )?out of (?:range|bounds?)[ :]{0,2}"
    r"[\[(](-?\d{1,12})[ ,]{1,2}(\d{1,12})[\])]"
)
_CHECK = re.compile(
    r"\bERR0[0-4]0(0[1-47]) (?:PTA|OPS|DIST|GRAPH|PROF) "
    r"(?:invalid (?:parameter|type|value|pointer)|feature not supported)"
)
"""What torch_npu and its operators (op-plugin) write below the text of a check that failed."""
_REFUSED = {
    "01": "a parameter",
    "02": "a data type",
    "03": "a value",
    "04": "a missing tensor",
    "07": "a feature",
}
_STYLE = re.compile(
    r"\b(?:dim|dims|dtype|shape|size|num|axis|rank)\b[^\n]{0,100}(?:should|need|must) be"
    r"[^\n]{0,120}please check (?!the stack)\w"
)
"""How op-plugin words its checks, in a log that has lost the line with the code."""
_CALL = re.compile(r"\b(?:torch_npu|torch\.ops\.\w{2,20}|torch\.npu)\.(\w{3,80})\(")
_LINES_ABOVE = 5


def read_arguments(log: ServerLog) -> Iterator[Reading]:
    """Yield the values that are refused with what would be valid."""
    for line, match in log.errors.find(_VALUE):
        yield _device(line, match) if _DEVICE.search(match[2]) else _value(line, match)
    for line, match in log.errors.find(_INDEX):
        yield _index(line, match)
    yield from _checks(log)


def _device(line: int, match: re.Match[str]) -> Reading:
    devices = _RANGE.search(match[3])
    many = int(devices[1]) if devices else None
    seen = f"sees {many} NPUs" if many else "sees no NPU"
    return Reading(
        reason(
            "cann-107001",
            f"The NPU number {match[1]} does not exist for this process: it {seen} "
            f"({match[2]} must be in {match[3].strip(' .')}). ASCEND_RT_VISIBLE_DEVICES names NPUs "
            "that are not there, or there are more ranks than NPUs.",
            "Compare ASCEND_RT_VISIBLE_DEVICES (also in the shell that starts Ray) with the NPUs "
            "of this node or container (`npu-smi info`, `ls /dev/davinci*`); `parallel.tensor` and "
            "`hardware.npus_per_server` must fit them.",
            "CANN rt_error_codes.h",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _value(line: int, match: re.Match[str]) -> Reading:
    value, name, expected = match[1], match[2], match[3].strip(" .")
    return Reading(
        reason(
            "cann-value",
            f"CANN refuses the value {shorten(value, 60)} of its parameter {name}: it takes "
            f"{shorten(expected, 100)}.",
            f"Find where {name} is set (`env`, `args.additional-config`, the rank table) and "
            "correct it; if it is set nowhere, CANN, driver and torch_npu are of different "
            "releases: use those of the release's image.",
            "CANN EE1003 and its like",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _index(line: int, match: re.Match[str]) -> Reading:
    index, last = match[1], match[3]
    return Reading(
        reason(
            "index-out-of-table",
            f"A kernel on the NPU was given the index {index} of a table of {last} entries "
            f"({match[0]}): a position or a block beyond `max-model-len` (a draft may run over the "
            "end of a sequence), or a token that the vocabulary does not have.",
            f"If {last} is the length limit: let clients ask for fewer tokens, or lower "
            "`args.max-model-len` a little below what the model takes; start without "
            "`features.speculative`, or use a newer release of vllm-ascend. Otherwise compare "
            "tokenizer and config.json (`vocab_size`) under `model.path`.",
            "a kernel's own check of its index",
            "transient",
        ),
        line,
        rank=Rank.CAUSE,
        certain=False,
    )


def _checks(log: ServerLog) -> Iterator[Reading]:
    """Yield the checks of torch_npu's operators that failed: the text is the exception above."""
    codes = {line: match[1] for line, match in log.errors.find(_CHECK)}
    seen: set[str] = set()
    for raised in find_exceptions(log):
        near = range(raised.line, raised.line + _LINES_ABOVE + 1)
        code = next((codes[each] for each in near if each in codes), "")
        if not code and _STYLE.search(f"{raised.message} {raised.after}".replace("\n", " ")):
            code = "03"
        if not code or not raised.message or raised.message in seen:
            continue
        seen.add(raised.message)
        yield _refused_by_operator(raised, code)


def _refused_by_operator(raised: Raised, code: str) -> Reading:
    own = [each for each in raised.frames[:5] if each.package not in ("torch", "torch_npu")]
    way = " ".join(f"{each.module_path} {each.function}" for each in own)
    features = name_features(f"{way} {raised.message}", raised.process)
    called = (_CALL.search(each.code) for each in raised.frames[:4])
    name = next((f" `{each[1]}`" for each in called if each), "")
    place = f" in {own[0].module_path}" if own else ""
    quoted = shorten(f"{raised.message} {raised.after}", 240).rstrip(". ")
    return Reading(
        reason(
            "operator-refused",
            f"An operator{name} of torch_npu refuses {_REFUSED[code]} that this release of "
            f"vllm-ascend gives it{place}: {quoted}. The model, its quantisation or a feature does "
            "not fit the operator, or torch_npu is of another release.",
            f"No tuning variable helps. {advise_release('vllm-ascend', features)} Install the "
            "torch_npu and CANN that it names (`pip show torch_npu`), and compare the quantisation "
            "of the weights with its documentation.",
            "op-plugin OPS_ERROR",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
