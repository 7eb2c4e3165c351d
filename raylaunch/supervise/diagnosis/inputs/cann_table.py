"""The error codes that the CANN of a node explains itself.

A toolkit holds `runtime/conf/error_manager/error_code.json`: per code a title, a message with
place-holders, possible causes and a solution (cann/runtime src/dfx/error_manager). It belongs to
the release that wrote the log, so it wins over the table of raylaunch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_BYTES = 4_000_000
"""The table of CANN 8.5 has 123 000 bytes."""
_CODE = re.compile(r"^[EW][A-Z\d]\d{4}$")
_NOTHING = ("", "n/a", "na", "none")
_MAX_CHARS = 600


@dataclass(frozen=True)
class CannEntry:
    """What CANN says about one code; "" where it says nothing."""

    cause: str
    remedy: str


def parse_table(text: str) -> Mapping[str, CannEntry]:
    """Return the codes of an error_code.json that have a cause or a solution.

    Raises:
        ValueError: it is not such a table.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    entries = content.get("error_info_list") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list `error_info_list`")
    table = {}
    for entry in entries:
        code = entry.get("ErrCode") if isinstance(entry, dict) else None
        if not isinstance(code, str) or not _CODE.match(code):
            continue
        advice = entry.get("suggestion")
        advice = advice if isinstance(advice, dict) else {}
        found = CannEntry(_text(advice.get("Possible Cause")), _text(advice.get("Solution")))
        if found.cause or found.remedy:
            table[code] = found
    return table


def _text(value: object) -> str:
    """Return a sentence of the table on one line, cut; "" for N/A."""
    if not isinstance(value, str):
        return ""
    text = " ".join(value.split())
    return "" if text.lower() in _NOTHING else text[:_MAX_CHARS].rstrip(" .")
