"""Logs in a folder: which files are logs, and which of them are one log in several files.

CANN writes `~/ascend/log/{debug,run,security}/{plog,device-N}/plog-PID_TIME.log`, a new file when
one is full (hiascend.com, log reference of CANN 8). Loggers rotate to `vllm.log.1`, `vllm.log.2.gz`
or `vllm.log-20261123`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILES = 2000
_LOG = re.compile(
    r"^(?P<base>(?P<stem>.+)\.(?:log|out|err|txt|stdout|stderr|dmesg)|messages|dmesg|syslog|console)"
    r"(?:[.-](?P<turn>\d{1,14}|old))?(?:\.(?:gz|bz2|xz|zst))?$"
)
_OF_A_PROCESS = re.compile(r"^((?:plog|device)-\w{1,40})_(\d{6,20})\.log$")
_NO_LOGS = re.compile(r"\.(?:processes|npu)\.txt$|^requirements.*\.txt$")


@dataclass(frozen=True)
class FolderLog:
    """One log: its files in the order of their writing."""

    name: str
    """The newest file, relative to the folder."""
    files: tuple[Path, ...]


@dataclass(frozen=True)
class FolderLogs:
    """The logs of a folder."""

    logs: tuple[FolderLog, ...]
    left_out: int
    """Older files that are not read because there are too many."""


def find_logs(folder: Path, max_files: int = MAX_FILES) -> FolderLogs:
    """Return the logs in `folder` and below it, sorted by name. Links are not followed."""
    files = sorted(_log_files(folder), key=_modified_at, reverse=True)
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in files[:max_files]:
        groups.setdefault((path.parent, _group_name(path.name)), []).append(path)
    logs = []
    for members in groups.values():
        ordered = tuple(sorted(members, key=lambda path: _turn(path.name)))
        logs.append(FolderLog(str(ordered[-1].relative_to(folder)), ordered))
    return FolderLogs(
        tuple(sorted(logs, key=lambda log: log.name)),
        max(0, len(files) - max_files),
    )


def _log_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if _LOG.match(name) and not _NO_LOGS.search(name) and _is_plain_file(path):
                yield path


def _is_plain_file(path: Path) -> bool:
    """Whether it is a file with content, not a link, a pipe or a device."""
    try:
        return not path.is_symlink() and path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _group_name(name: str) -> str:
    """Return what the files of one log have in common."""
    if found := _OF_A_PROCESS.match(name):
        return found[1]
    found = _LOG.match(name)
    return found["base"] if found else name


def _turn(name: str) -> tuple[int, int, str]:
    """Return the sort key of a file among those of its log, oldest first."""
    found = _LOG.match(name)
    turn = (found["turn"] if found else None) or ""
    if not turn:
        return 1, 0, name  # the one that is written now
    if turn == "old":
        return 0, 0, name
    # Short numbers count rotations, the highest is the oldest; long ones are dates.
    return 0, -int(turn) if len(turn) < 6 else int(turn), name
