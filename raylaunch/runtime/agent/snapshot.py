"""The evidence on one node, for the diagnosis: read by the agent before anything is torn down."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.process import log_files
from raylaunch.node.process.process_markers import find_marked
from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry, read_node_table

log = logging.getLogger(__name__)

PLOG_LINES = 300
"""Lines kept of the newest log of Ascend's runtime."""
NPU_TIMEOUT_S = 3.0
"""Time-out of `npu-smi info`: a failed card makes it hang, and a snapshot must not wait for it."""
_CANN_CODE = re.compile(r"\b[EW][A-Z\d]\d{4}\b")
_SEARCHED_CHARS = 8192


@dataclass(frozen=True)
class Snapshot:
    """What a node showed of one server at one moment."""

    log_lines: tuple[str, ...]
    """The end of the server's log."""
    first_line: int
    """Number of the first of `log_lines`, counted from 1."""
    utc_offset_s: float
    """Time zone of the node: its log lines carry local time."""
    processes: str
    """The process table of the deployment on this node."""
    log: str
    """Path of the server's log; "" before the first launch."""
    npu: str = ""
    """Output of `npu-smi info`; "" without NPUs."""
    plog: tuple[str, ...] = ()
    """The end of the newest log of Ascend's runtime."""
    plog_path: str = ""
    cann_codes: Mapping[str, CannEntry] = field(default_factory=dict)
    """What the node's own CANN says about the error codes in the log."""


def read_snapshot(deployment: str, instance: str, log_path: Path | None, lines: int) -> Snapshot:
    """Read the last `lines` lines of the log, the process table, and the state of NPUs and runtime.

    Args:
        deployment: The deployment whose processes are listed.
        instance: Random id of its start.
        log_path: The server's log; None before the first launch.
        lines: How many lines of the log to read.
    """
    log_lines = log_files.tail(log_path, lines) if log_path is not None else []
    table = [
        f"{process.pid:>8} {process.age_s:8.0f}s {process.command}"
        for process in find_marked(deployment, instance=instance)
    ]
    plog_path = _newest_plog(os.environ)
    plog = log_files.tail(plog_path, PLOG_LINES) if plog_path else []
    return Snapshot(
        log_lines=tuple(log_lines),
        first_line=1,
        utc_offset_s=float(time.localtime().tm_gmtoff),
        processes="\n".join(table),
        log=str(log_path or ""),
        npu=_npu_state(),
        plog=tuple(plog),
        plog_path=str(plog_path or ""),
        cann_codes=_codes_in(log_lines, os.environ),
    )


def _codes_in(lines: Sequence[str], env: Mapping[str, str]) -> dict[str, CannEntry]:
    """Return what the node's own CANN says about the codes in these lines."""
    codes = {code for line in lines for code in _CANN_CODE.findall(line[:_SEARCHED_CHARS])}
    if not codes:
        return {}
    from raylaunch.node.probe.software import cann_homes

    table, problem = read_node_table(cann_homes(env))
    if problem:
        log.warning("%s", problem)
    return {code: table[code] for code in sorted(codes) if code in table}


def _npu_state() -> str:
    """Return the output of `npu-smi info`, or why there is none; "" without NPUs."""
    from raylaunch.node.probe.npu_tools import find_npu_smi, run_tool

    tool = find_npu_smi(os.environ)
    if tool is None:
        return ""
    command = [tool, "info"]
    try:
        return run_tool(command, env=os.environ, timeout_s=NPU_TIMEOUT_S, check=False)
    except NodeError as error:
        return str(error)


def _newest_plog(env: Mapping[str, str]) -> Path | None:
    """Return the newest log of Ascend's runtime. Every process of it writes one of its own."""
    configured = env.get("ASCEND_PROCESS_LOG_PATH")
    log_folder = Path(configured) if configured else Path.home() / "ascend" / "log"
    newest = None
    newest_at = float("-inf")
    for path in (log_folder / "debug" / "plog").glob("*.log"):
        with contextlib.suppress(OSError):  # rotated away meanwhile
            modified_at = path.stat().st_mtime
            if modified_at > newest_at:
                newest = path
                newest_at = modified_at
    return newest
