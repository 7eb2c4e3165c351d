"""Reads the log that `diagnose` is given: any file, in bounded memory and without blocking."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from raylaunch.deployment import unknown_name
from raylaunch.deployment.names import shortened
from raylaunch.errors import NodeError, RaylaunchError

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis

MAX_BYTES = 32 * 1024 * 1024
"""Of a longer log the end is read: there the server failed."""
CHUNK_BYTES = 1024 * 1024

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
        why="it is a folder of another kind, a pipe, a socket or a device",
        todo="give a log file, the folder of one attempt, or - to read a pipe from stdin",
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
    """Diagnose a log; of a longer one than MAX_BYTES its end.

    Raises:
        NodeError: it cannot be read.
    """
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    try:
        text, skipped_lines = _read_end(stream)
    except OSError as error:
        raise NodeError(f"cannot read {name}", why=error.strerror or str(error)) from error
    found = diagnose_text(text, name)
    if found is None or found.line_number is None or not skipped_lines:
        return found
    return replace(found, line_number=found.line_number + skipped_lines)


def _read_end(stream: BinaryIO) -> tuple[str, int]:
    """Return the end of the stream, and the number of lines before it."""
    chunks: deque[bytes] = deque()
    size = 0
    skipped_lines = 0
    while chunk := stream.read(CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        while size - len(chunks[0]) >= MAX_BYTES:
            dropped = chunks.popleft()
            size -= len(dropped)
            skipped_lines += dropped.count(b"\n")
    return b"".join(chunks).decode("utf-8", "replace"), skipped_lines
