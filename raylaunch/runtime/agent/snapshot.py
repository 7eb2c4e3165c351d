"""What a server left on its node for the diagnosis: read by its agent before anything is torn down."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.process import log_files
from raylaunch.node.process.process_markers import find_marked

PLOG_LINES = 300
NPU_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Snapshot:
    """What a server left for the diagnosis: the end of its log and the process table. `first_line` counts from 1."""

    log_lines: tuple[str, ...]
    first_line: int
    utc_offset_s: float
    processes: str
    log: str
    npu: str = ""
    """What `npu-smi info` said; "" without NPUs."""
    plog: tuple[str, ...] = ()
    """The end of the newest log of Ascend's runtime."""
    plog_path: str = ""


def read_snapshot(deployment: str, log: Path | None, lines: int) -> Snapshot:
    """Read the end of `log`, the process table of the deployment, and what the NPUs and Ascend's runtime say."""
    text = log_files.tail(log, lines) if log is not None else []
    table = [
        f"{found.pid:>8} {found.age_s:8.0f}s {found.command}" for found in find_marked(deployment)
    ]
    plog = _newest_plog()
    return Snapshot(
        log_lines=tuple(text),
        first_line=1,
        utc_offset_s=float(time.localtime().tm_gmtoff),
        processes="\n".join(table),
        log=str(log or ""),
        npu=_npu_state(),
        plog=tuple(log_files.tail(plog, PLOG_LINES)) if plog else (),
        plog_path=str(plog or ""),
    )


def _npu_state() -> str:
    """What npu-smi says now; a card that makes it hang costs `NPU_TIMEOUT_S`."""
    from raylaunch.node.probe.npu_tools import find_npu_smi, run_tool

    tool = find_npu_smi(os.environ)
    if tool is None:
        return ""
    try:
        return run_tool([tool, "info"], env=os.environ, timeout_s=NPU_TIMEOUT_S, check=False)
    except NodeError as error:
        return str(error)


def _newest_plog() -> Path | None:
    """The newest log of Ascend's runtime; every process of it writes one of its own."""
    root = (
        Path(os.environ.get("ASCEND_PROCESS_LOG_PATH") or Path.home() / "ascend" / "log")
        / "debug"
        / "plog"
    )
    dated = []
    for path in root.glob("*.log"):
        with contextlib.suppress(OSError):  # rotated away meanwhile
            dated.append((path.stat().st_mtime, path))
    return max(dated)[1] if dated else None
