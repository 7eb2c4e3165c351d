"""The error codes that the CANN of a node explains itself.

A toolkit holds `runtime/conf/error_manager/error_code.json`: per code a title, a message with
place-holders, possible causes and a solution (cann/runtime src/dfx/error_manager). It belongs to
the release that wrote the log, so it wins over the table of raylaunch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PLACE = "runtime/conf/error_manager/error_code.json"
"""Below the home of a toolkit."""
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


def read_node_table(homes: Sequence[Path]) -> tuple[Mapping[str, CannEntry], str]:
    """Return the table of the first CANN that has one, or why it could not be read.

    Args:
        homes: Folders where a toolkit may be, best first.
    """
    for home in homes:
        path = home / PLACE
        try:
            if not path.is_file():
                continue
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return parse_table(path.read_text(encoding="utf-8")), ""
        except (OSError, ValueError) as error:
            return {}, f"CANN's own error codes are ignored: {path}: {error}"
    return {}, ""


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
