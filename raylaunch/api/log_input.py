"""Reads what `diagnose` is given: a log or a folder of logs, in bounded memory, never blocking."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from raylaunch.api.log_folder import FolderLog, find_logs
from raylaunch.api.log_streams import LogStream
from raylaunch.api.node_knowledge import Knowledge, read_knowledge
from raylaunch.deployment import unknown_name
from raylaunch.deployment.names import shortened
from raylaunch.errors import NodeError, RaylaunchError

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.inputs.server_evidence import ServerEvidence
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis

log = logging.getLogger(__name__)

WHOLE_BYTES = 2 << 20
"""A log of this size is diagnosed as it is; of a larger one the lines that matter."""
KEPT_BYTES = 5 << 20
"""Error lines kept of all logs together: with everything made of them below 200 MB."""
LEAST_KEPT_BYTES = 8 << 10
SHOWN_NAMES = 8

Kind = Literal["file", "folder", "other", "nothing"]


def kind_of(path: Path) -> Kind:
    """Return what is at `path`: "nothing" also for what cannot be a path."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # too long, a null byte, or a part that is no folder
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def not_a_log(target: str, kind: Kind) -> RaylaunchError:
    """Return the error for a target that is neither log nor bundle nor a deployment's name."""
    if kind == "nothing":
        return unknown_name(target)
    return NodeError(
        f"{shortened(target)} is neither a log nor a bundle",
        why="it is a pipe, a socket or a device",
        todo="give a log file, a folder with logs, or - to read a pipe from stdin",
    )


def open_log(path: Path) -> BinaryIO:
    """Open a regular file for reading. Special files below /proc answer at once or not at all.

    Raises:
        NodeError: it cannot be opened.
    """
    try:
        # /proc/kmsg is a regular file whose read blocks until the kernel has something to say.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise NodeError(f"cannot read {path}", why=error.strerror or str(error)) from error
    return os.fdopen(descriptor, "rb", buffering=0)


def diagnose_log(stream: BinaryIO, name: str) -> Diagnosis | None:
    """Diagnose one log.

    Raises:
        NodeError: it cannot be read.
    """
    from raylaunch.supervise.diagnosis.root_cause import diagnose_logs

    knowledge = read_knowledge()
    file = _LogFile(name, LogStream(stream, name))
    evidence, notes = _read_log(0, [file], KEPT_BYTES, knowledge)
    found = diagnose_logs([evidence], name, knowledge.site)
    if found is None:
        return None
    return _with_notes(replace(found, file=""), notes)


def diagnose_folder(folder: Path) -> Diagnosis | None:
    """Diagnose the logs in a folder together: those of several servers, and plog trees.

    Raises:
        NodeError: there are none, or they cannot be read.
    """
    from raylaunch.supervise.diagnosis.root_cause import diagnose_logs

    found_logs = find_logs(folder)
    logs = found_logs.logs
    if not logs:
        raise NodeError(
            f"{shortened(str(folder))} holds no logs",
            why="no file in it or below is called *.log, *.out, *.err, *.txt, messages, dmesg or "
            "console (rotated and compressed ones count)",
            todo="give the log file itself, or a folder with logs",
        )
    knowledge = read_knowledge()
    share = max(LEAST_KEPT_BYTES, KEPT_BYTES // len(logs))
    evidence = []
    notes = []
    for index, one in enumerate(logs):
        read, problems = _read_folder_log(index, one, folder, share, knowledge)
        evidence.append(read)
        notes += problems
    if found_logs.left_out:
        notes.append(f"the oldest {found_logs.left_out} files were not read")
    title = f"{len(logs)} logs in {folder.name or folder}" if len(logs) > 1 else logs[0].name
    found = diagnose_logs(evidence, title, knowledge.site)
    return None if found is None else _with_notes(_with_names(found, logs), notes)


@dataclass(frozen=True)
class _LogFile:
    """One file of a log."""

    name: str
    stream: LogStream


def _read_folder_log(
    index: int, one: FolderLog, folder: Path, max_bytes: int, knowledge: Knowledge
) -> tuple[ServerEvidence, list[str]]:
    """Read the files of one log. One that cannot be read is named, and the others still count."""
    problems = []
    parts = []
    for path in one.files:
        name = str(path.relative_to(folder))
        try:
            parts.append(_LogFile(name, LogStream(open_log(path), name)))
        except NodeError as error:
            problems.append(f"{name} was not read: {error.why}")
    return _read_log(index, parts, max_bytes, knowledge, problems)


def _read_log(
    index: int,
    parts: Sequence[_LogFile],
    max_bytes: int,
    knowledge: Knowledge,
    problems: list[str] | None = None,
) -> tuple[ServerEvidence, list[str]]:
    """Return the evidence of one log, and what could not be read of it.

    Args:
        index: Of the log among those that are diagnosed together.
        parts: Its files, oldest first.
        max_bytes: Bytes of error lines to keep.
        knowledge: What this machine adds.
        problems: Where the error of a file is noted; None: it is raised.

    Raises:
        NodeError: a file cannot be read.
    """
    from raylaunch.supervise.diagnosis.inputs.server_evidence import LogPart, ServerEvidence

    lines: list[str] = []
    numbers: list[int] = []
    files: list[LogPart] = []
    notes: list[str] = []
    for part in parts:
        try:
            found, their_numbers, unread = _read_part(part, max_bytes // len(parts), knowledge)
        except NodeError as error:
            if problems is None:
                raise
            problems.append(f"{part.name} was not read: {error.why or error.what}")
            continue
        files.append(LogPart(part.name, len(lines)))
        lines += found
        numbers += their_numbers
        if part.stream.note:
            notes.append(part.stream.note)
        if unread:
            notes.append(
                f"{part.name} has too many error lines: {unread} between the first and the last "
                "were not read"
            )
    evidence = ServerEvidence(
        index,
        log_lines=lines,
        line_numbers=numbers,
        parts=tuple(files),
        cann_codes=knowledge.cann_codes,
    )
    return evidence, [*notes, *(problems or ())]


def _read_part(
    part: _LogFile, max_bytes: int, knowledge: Knowledge
) -> tuple[Sequence[str], Sequence[int], int]:
    """Return the lines of a file that a diagnosis can use, their numbers, how many were dropped."""
    from raylaunch.supervise.diagnosis.inputs.carried_lines import split_lines
    from raylaunch.supervise.diagnosis.inputs.log_reduction import reduce_log
    from raylaunch.supervise.diagnosis.root_cause import find_anchors

    chunks = part.stream.chunks()
    first: list[bytes] = []
    size = 0
    for chunk in chunks:
        first.append(chunk)
        size += len(chunk)
        if size > min(WHOLE_BYTES, max_bytes):
            break
    else:
        lines, numbers = split_lines(b"".join(first).decode("utf-8", "replace"))
        return lines, numbers, 0
    anchors = find_anchors(knowledge.site)
    reduced = reduce_log(_consume(first, chunks), anchors=anchors, max_bytes=max_bytes)
    return reduced.lines, reduced.numbers, reduced.unread


def _consume(first: list[bytes], rest: Iterable[bytes]) -> Iterator[bytes]:
    """Yield all chunks without holding on to the first ones."""
    while first:
        yield first.pop(0)
    yield from chain(rest)


def _with_names(found: Diagnosis, logs: Sequence[FolderLog]) -> Diagnosis:
    """Name the logs that failed afterwards: their numbers say nothing to a person."""
    names = [logs[index].name for index in found.collateral]
    if not names:
        return found
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    after = f"failures after it in {', '.join(names[:SHOWN_NAMES])}{more}"
    return replace(found, collateral=(), detail=f"{found.detail}; {after}")


def _with_notes(found: Diagnosis, notes: Sequence[str]) -> Diagnosis:
    for note in notes:
        log.warning("%s", note)
    shown = [*notes[:SHOWN_NAMES]]
    if len(notes) > SHOWN_NAMES:
        shown.append(f"{len(notes) - SHOWN_NAMES} more files have notes")
    return replace(found, detail="; ".join([found.detail, *shown]))
