"""Server logs on one node: where they lie, the last lines, following across rotation, and pruning.

The guard writes `{root}/{deployment}/attempt-{n}/server-{i}.log` and rotates it by renaming: `.1` is the newest
of the older files. A reader keeps its place by file, not by name, so a rotation neither loses nor repeats a line.
"""

from __future__ import annotations

import codecs
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEAD_BYTES = 256
BLOCK_BYTES = 64 << 10
TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Cursor:
    """A place in a rotated log. `head`, a checksum of the file's beginning, tells it from one that got its inode."""

    inode: int
    offset: int
    head: int


@dataclass(frozen=True)
class Chunk:
    """A piece of log. `cursor` is where to go on (None: no file yet), `more` that there is something to read now.

    `gap`: the file of the given cursor is gone, so lines before this piece were lost to rotation.
    """

    text: str
    cursor: Cursor | None
    more: bool = False
    gap: bool = False


def log_root(env: Mapping[str, str]) -> Path:
    """$RAYLAUNCH_LOG_DIR, or ~/.cache/raylaunch/logs."""
    if root := env.get("RAYLAUNCH_LOG_DIR"):
        return Path(root)
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return home / ".cache" / "raylaunch" / "logs"


def state_root(env: Mapping[str, str]) -> Path:
    """Folder for records, generated models and evidence: $RAYLAUNCH_HOME, or ~/.raylaunch."""
    return Path(env.get("RAYLAUNCH_HOME") or Path(env.get("HOME") or Path.home()) / ".raylaunch")


def attempt_dir(root: Path, deployment: str, attempt: int) -> Path:
    """Where the servers of one attempt write on this node."""
    return root / deployment / f"attempt-{attempt}"


def server_log(root: Path, deployment: str, attempt: int, server: int) -> Path:
    """The current log file of one server."""
    return attempt_dir(root, deployment, attempt) / f"server-{server}.log"


def planned_log(root: Path, log: str, attempt: int) -> Path:
    """The log path of a `ServerPlan`, whose `{attempt}` is still open."""
    return root / log.replace("{attempt}", str(attempt))


def start_fresh(path: Path) -> None:
    """Make room for a new log: one left by an earlier deployment of the same name becomes `server-0.previous.log`.

    Attempt numbers begin at 1 for each deployment, so without this two lives would be read as one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for rotated in path.parent.glob(f"{path.name}.*"):
        rotated.unlink(missing_ok=True)
    if path.exists():
        path.replace(path.with_suffix(".previous.log"))


def prune_attempts(root: Path, deployment: str, keep: int, current: int) -> list[Path]:
    """Remove all but the `keep` attempts last written to; `current` always stays. Returns what was removed."""
    attempts = [
        path
        for path in (root / deployment).glob("attempt-*")
        if path.is_dir() and not path.is_symlink()
    ]
    newest_first = sorted(attempts, key=_written_at, reverse=True)
    old = [path for path in newest_first[keep:] if path != attempt_dir(root, deployment, current)]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)  # another agent of this node may be pruning too
    return old


def tail(path: Path, lines: int, max_bytes: int = TAIL_BYTES) -> list[str]:
    """The last `lines` lines, over rotated files too, an unfinished last one included; at most about `max_bytes`.

    Of a line redrawn with carriage returns (a progress bar) the last state is given.
    """
    chunk = Chunk("", tail_cursor(path, lines, max_bytes), more=True)
    text = ""
    while chunk.more:
        chunk = read_from(path, chunk.cursor, max_bytes, whole_lines=False)
        text += chunk.text
    found = text.removesuffix("\n").split("\n") if text else []
    return [line.rstrip("\r").rpartition("\r")[2] for line in found][-lines:] if lines > 0 else []


def tail_cursor(path: Path, lines: int, max_bytes: int = TAIL_BYTES) -> Cursor | None:
    """Where the last `lines` lines begin: follow from here to see them first. None: no file yet."""
    with ExitStack() as stack:
        files = _open_files(path, stack)
        ends_wanted = max(1, lines + _ends_line(files))
        budget = max_bytes
        for file in reversed(files):
            for offset, block in _blocks_backward(file):
                ends = block.count(b"\n")
                if ends >= ends_wanted:
                    return _cursor(file, offset + _after_last_ends(block, ends_wanted))
                ends_wanted -= ends
                budget -= len(block)
                if budget <= 0:
                    return _cursor(file, offset)
        return _cursor(files[0], 0) if files else None


def read_from(
    path: Path, cursor: Cursor | None, limit: int = BLOCK_BYTES, *, whole_lines: bool = True
) -> Chunk:
    """What was written after `cursor` (None: from the oldest file kept), at most `limit` bytes and one file at a time.

    With `whole_lines` an unfinished last line waits for its end; a carriage return ends one too, so progress bars
    are seen while they move. A line longer than `limit` comes in pieces. Bytes that are not UTF-8 become U+FFFD.
    """
    limit = max(16, limit)
    with ExitStack() as stack:
        files = _open_files(path, stack)
        if not files:
            return Chunk("", cursor)
        place = _find(files, cursor)
        index, offset = place or (0, 0)
        while not (data := os.pread(files[index].fileno(), limit, offset)) and index + 1 < len(
            files
        ):
            index, offset = index + 1, 0
        at_end, rotated = len(data) < limit, index + 1 < len(files)
        data = data[: _usable(data, at_end=at_end, finished=rotated or not whole_lines)]
        return Chunk(
            text=data.decode(errors="replace"),
            cursor=_cursor(files[index], offset + len(data)),
            more=rotated or not at_end,
            gap=cursor is not None and place is None,
        )


def _written_at(path: Path) -> float:
    """When a file was last created or renamed in this folder; 0 when it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _open_files(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """The files of a log, oldest first.

    Opened from the newest on: files only move towards the older names, so a rotation meanwhile shows a file twice
    but never hides one. For a moment one name is missing, hence the second look behind a gap.
    """
    files: dict[int, BinaryIO] = {}
    number = missing = 0
    while missing < 2:
        name = path.with_name(f"{path.name}.{number}") if number else path
        number += 1
        try:
            file = stack.enter_context(name.open("rb", buffering=0))
        except FileNotFoundError:
            missing += 1
            continue
        missing = 0
        files.setdefault(os.fstat(file.fileno()).st_ino, file)
    return list(reversed(files.values()))


def _find(files: list[BinaryIO], cursor: Cursor | None) -> tuple[int, int] | None:
    """Index and offset of the cursor's place among `files`."""
    for index, file in enumerate(files):
        if cursor is not None and _cursor(file, cursor.offset) == cursor:
            return index, cursor.offset
    return None


def _cursor(file: BinaryIO, offset: int) -> Cursor:
    fd = file.fileno()
    return Cursor(os.fstat(fd).st_ino, offset, zlib.crc32(os.pread(fd, min(HEAD_BYTES, offset), 0)))


def _usable(data: bytes, *, at_end: bool, finished: bool) -> int:
    """How many bytes of `data` to give out: to the end of a finished file, else whole lines, else whole characters."""
    if at_end and finished:
        return len(data)
    ends = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if ends or at_end:
        return ends
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(data) - len(decoder.getstate()[0])


def _ends_line(files: list[BinaryIO]) -> bool:
    """Whether the last byte of the log is a line end."""
    for file in reversed(files):
        if size := os.fstat(file.fileno()).st_size:
            return os.pread(file.fileno(), 1, size - 1) == b"\n"
    return False


def _blocks_backward(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Offset and content of the file's blocks, the last one first."""
    end = os.fstat(file.fileno()).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        yield start, os.pread(file.fileno(), end - start, start)
        end = start


def _after_last_ends(block: bytes, count: int) -> int:
    """The place after the `count`-th line end of `block`, counted from its end."""
    place = len(block)
    for _ in range(count):
        place = block.rfind(b"\n", 0, place)
    return place + 1
