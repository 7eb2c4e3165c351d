"""Options of CANN's graph engine (GE) with a value that it refuses, where its code is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten

_OPTION = re.compile(
    r"(Path|Value|File) \[([^\]\n]{1,200})\] for (?:(?:parameter|option|environment variable) )?"
    r"\[?([\w.]{2,80})\]? is invalid[. ]{0,2}(?:Result: ?([^.\n]{0,160})[. ]{0,2})?"
    r"(?:Reason: ?([^\n]{0,200}))?"
)
_CODE = re.compile(r"\bE\d{5}\b")


def read_options(log: ServerLog) -> Iterator[Reading]:
    """Yield the options of GE that it refuses."""
    for line, match in log.errors.find(_OPTION):
        if _CODE.search(log.cleaned[line]):
            continue  # a whole block
        kind, value, option, result, why = match.groups()
        said = "; ".join(shorten(each.rstrip(". "), 120) for each in (result, why) if each)
        path = kind != "Value" or "/" in value
        remedy = (
            "Start the server (and Ray) in a folder that its user may write, or set "
            "`env.ASCEND_WORK_PATH` to one; CANN puts its working files into the current folder."
            if path
            else f"Correct `{option}` where it is set (`env`, `args.additional-config`)."
        )
        yield Reading(
            reason(
                "ge-option",
                f"CANN's graph engine refuses {kind.lower()} {value} of its option {option}"
                + (f": {said}." if said else "."),
                remedy,
                "CANN GE, E10001 to E10410",
                "deterministic",
            ),
            line,
        )
