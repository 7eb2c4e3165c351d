"""Values that CANN, or a kernel on the NPU, refuses: which one, and what it takes.

Invalid_Argument(EE1003): value 0 for parameter userDevId is invalid. Expected value: [0, 0).
Index 1048576 out of range[0 1048576)!
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten

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


def read_arguments(log: ServerLog) -> Iterator[Reading]:
    """Yield the values that are refused with what would be valid."""
    for line, match in log.errors.find(_VALUE):
        yield _device(line, match) if _DEVICE.search(match[2]) else _value(line, match)
    for line, match in log.errors.find(_INDEX):
        yield _index(line, match)


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
