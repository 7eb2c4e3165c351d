"""Options and variables of CANN with a value that it refuses."""

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


_ENVIRONMENT = re.compile(
    r"[Ee]nvironment variable \[?([A-Z]{2,12}_[A-Z][A-Z_]{2,50}(?: or [A-Z][A-Z_]{4,60}){0,3})\]?"
    r"[^\n]{0,60}? is invalid\b[. ]{0,2}([^\n]{0,240})"
)


def read_options(log: ServerLog) -> Iterator[Reading]:
    """Yield the options of GE and the variables of HCCL that they refuse."""
    for line, match in log.errors.find(_ENVIRONMENT):
        yield _variable(line, match[1].split(" or "), match[2])
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


def _variable(line: int, names: list[str], rest: str) -> Reading:
    fields = " and ".join(f"`env.{name}`" for name in names)
    why = shorten(rest.partition("Solution")[0].strip(" .").removeprefix("Reason: "), 160)
    either = " (they exclude each other: set one to 0)" if len(names) > 1 else ""
    return Reading(
        reason(
            "hccl-env-EI0001",
            f"HCCL does not take the value of {' or '.join(names)}" + (f": {why}." if why else "."),
            f"Correct or remove {fields}{either}, also in the shell that starts Ray and in the "
            "image's environment (`env | grep HCCL`). Interfaces belong into `network.interface`; "
            "`ip -br addr` shows what exists.",
            "CANN EI0001",
            "deterministic",
        ),
        line,
    )
