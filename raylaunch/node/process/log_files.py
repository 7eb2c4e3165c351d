"""Server logs on one node: paths, the last lines, following across rotation, and pruning.

The guard writes `{root}/{deployment}/attempt-{n}/server-{i}.log` and rotates it by renaming: `.1`
is the newest of the older files. A reader keeps its position by file, not by name, so a rotation
neither loses nor repeats a line. Every function here reads in bounded memory, whatever the file
holds: one endless line, random bytes, a sparse gigabyte.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from raylaunch.home import user_home_of
from raylaunch.node.process.private_files import NAME_BYTES, make_private_dir, tighten

HEAD_BYTES = 256
BLOCK_BYTES = 64 << 10
TAIL_BYTES = 1 << 20
_DIGEST_CHARS = 16


@dataclass(frozen=True)
class Cursor:
    """A position in a rotated log.

    `head`, a checksum of the file's beginning, distinguishes the file from one that got its inode.
    """

    inode: int
    offset: int
    head: int


@dataclass(frozen=True)
class Chunk:
    """A piece of log.

    `cursor` is where to continue (None: no file yet), `more` that there is something to read now.
    `gap`: the file of the given cursor is gone, so lines before this piece were lost to rotation.
    """

    text: str
    cursor: Cursor | None
    more: bool = False
    gap: bool = False


def log_root(env: Mapping[str, str]) -> Path:
    """Return $RAYLAUNCH_LOG_DIR, or ~/.cache/raylaunch/logs."""
    if root := env.get("RAYLAUNCH_LOG_DIR"):
        return Path(root)
    return user_home_of(env) / ".cache" / "raylaunch" / "logs"


def deployment_dir(root: Path, deployment: str) -> Path:
    """Return the folder for all attempts of a deployment on this node."""
    return root / short_name(deployment)


def attempt_dir(root: Path, deployment: str, attempt: int) -> Path:
    """Return the folder into which the servers of one attempt write on this node."""
    return deployment_dir(root, deployment) / f"attempt-{attempt}"


def server_log(root: Path, deployment: str, attempt: int, server: int) -> Path:
    """Return the current log file of one server."""
    return attempt_dir(root, deployment, attempt) / f"server-{server}.log"


def short_name(name: str) -> str:
    """Shorten a file name of over 255 bytes; the same name always gives the same result.

    The end is replaced by a digest of the whole, so that two long names stay different.
    """
    data = os.fsencode(name)
    if len(data) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()
    suffix = f"-{digest[:_DIGEST_CHARS]}"
    room = NAME_BYTES - len(suffix)
    kept = data[:room].decode(errors="ignore")  # a character that is cut in two is dropped
    return kept + suffix


def planned_log(root: Path, log: str, attempt: int) -> Path:
    """Return the log path of a `ServerPlan`, whose `{attempt}` is still open."""
    relative = log.replace("{attempt}", str(attempt))
    parts = [short_name(part) for part in relative.split("/")]
    return root.joinpath(*parts)


def set_aside_old_log(path: Path) -> None:
    """Make the log folder, and rename a log of an earlier deployment to `server-0.previous.log`.

    Attempt numbers begin at 1 for each deployment, so without this the logs of two deployments of
    the same name would be read as one.

    Raises:
        NodeError: The path is longer than the file system allows.
        OSError: The folder cannot be created.
    """
    folder = make_private_dir(path.parent)
    if folder.name.startswith("attempt-"):
        tighten(folder.parent)  # the deployment's
    for file in folder.iterdir():
        if file.name.startswith(f"{path.name}."):
            file.unlink(missing_ok=True)
    if path.exists():
        tighten(path)
        path.replace(path.with_suffix(".previous.log"))


def prune_attempts(root: Path, deployment: str, keep: int, current: int) -> list[Path]:
    """Remove all but the `keep` attempts last written to; return what was removed.

    The `current` attempt always stays.
    """
    folder = deployment_dir(root, deployment)
    named = folder.glob("attempt-*")
    attempts = [path for path in named if path.is_dir() and not path.is_symlink()]
    newest_first = sorted(attempts, key=_written_at, reverse=True)
    running = attempt_dir(root, deployment, current)
    old = [path for path in newest_first[keep:] if path != running]
    for path in old:
        # Another agent of this node may be pruning too, hence no error for what is gone.
        shutil.rmtree(path, ignore_errors=True)
    return old


def tail(path: Path, lines: int, max_bytes: int = TAIL_BYTES) -> list[str]:
    """Return the last `lines` lines, over rotated files too, an unfinished last one included.

    At most about `max_bytes` are read. Of a line redrawn with carriage returns (a progress bar) the
    last state is given.
    """
    if lines <= 0:
        return []
    chunk = Chunk("", tail_cursor(path, lines, max_bytes), more=True)
    pieces = []
    # The cursor is at most one block further back than `max_bytes`. Beyond that only what a server
    # printed meanwhile would be read, and one that prints fast enough would never let this return.
    remaining = max_bytes + BLOCK_BYTES
    while chunk.more and remaining > 0:
        before = chunk.cursor
        chunk = read_from(path, before, remaining, whole_lines=False)
        pieces.append(chunk.text)
        remaining -= _bytes_between(before, chunk.cursor)
    text = "".join(pieces)
    if not text:
        return []
    found = text.removesuffix("\n").split("\n")
    return [_last_state(line) for line in found[-lines:]]


def tail_cursor(path: Path, lines: int, max_bytes: int = TAIL_BYTES) -> Cursor | None:
    """Return where the last `lines` lines begin, to follow from there; None: no file yet."""
    with ExitStack() as stack:
        files = _open_files(path, stack)
        if not files:
            return None
        ends_wanted = max(1, lines + _ends_line(files))
        budget = max_bytes
        for file in reversed(files):
            for offset, block in _blocks_backward(file):
                ends = block.count(b"\n")
                if ends >= ends_wanted:
                    begin = _after_last_ends(block, ends_wanted)
                    return _cursor(file, offset + begin)
                ends_wanted -= ends
                budget -= len(block)
                if budget <= 0:
                    return _cursor(file, offset)
        return _cursor(files[0], 0)


def read_from(
    path: Path,
    cursor: Cursor | None,
    limit: int = BLOCK_BYTES,
    *,
    whole_lines: bool = True,
) -> Chunk:
    """Read what was written after `cursor` (None: from the oldest file kept).

    At most `limit` bytes and one file at a time. With `whole_lines` an unfinished last line waits
    for its end; a carriage return ends one too, so progress bars are seen while they move. A line
    longer than `limit` comes in pieces. Bytes that are not UTF-8 become U+FFFD.
    """
    limit = max(16, limit)
    with ExitStack() as stack:
        files = _open_files(path, stack)
        if not files:
            return Chunk("", cursor)
        position = _find(files, cursor)
        index, offset = position or (0, 0)
        last = len(files) - 1
        data = os.pread(files[index].fileno(), limit, offset)
        while not data and index < last:
            index += 1
            offset = 0
            data = os.pread(files[index].fileno(), limit, offset)
        at_end = len(data) < limit
        rotated = index < last
        finished = rotated or not whole_lines
        data = data[: _usable(data, at_end=at_end, finished=finished)]
        return Chunk(
            text=data.decode(errors="replace"),
            cursor=_cursor(files[index], offset + len(data)),
            more=rotated or not at_end,
            gap=cursor is not None and position is None,
        )


def _last_state(line: str) -> str:
    """Return what a terminal would show of a line that carriage returns have redrawn."""
    _, _, last = line.rstrip("\r").rpartition("\r")
    return last


def _written_at(path: Path) -> float:
    """Return when a file was last created or renamed in this folder; 0 when it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _open_files(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """Open the files of a log, oldest first.

    They are opened from the newest on: files only move towards the older names, so a rotation
    meanwhile shows a file twice but never hides one. For a moment one name is missing, hence one
    more try behind a gap.
    """
    files: dict[int, BinaryIO] = {}
    number = 0
    missing = 0
    while missing < 2:
        suffix = f".{number}" if number else ""
        name = path.with_name(path.name + suffix)
        number += 1
        try:
            file = stack.enter_context(name.open("rb", buffering=0))
        except FileNotFoundError:
            missing += 1
            continue
        missing = 0
        status = os.fstat(file.fileno())
        files.setdefault(status.st_ino, file)
    return list(reversed(files.values()))


def _find(files: list[BinaryIO], cursor: Cursor | None) -> tuple[int, int] | None:
    """Return index and offset of the cursor's position among `files`."""
    if cursor is None:
        return None
    for index, file in enumerate(files):
        if _cursor(file, cursor.offset) == cursor:
            return index, cursor.offset
    return None


def _cursor(file: BinaryIO, offset: int) -> Cursor:
    fd = file.fileno()
    inode = os.fstat(fd).st_ino
    head = os.pread(fd, min(HEAD_BYTES, offset), 0)
    return Cursor(inode, offset, zlib.crc32(head))


def _bytes_between(before: Cursor | None, after: Cursor | None) -> int:
    """Return how many bytes one read has passed over."""
    if after is None:
        return 0
    if before is not None and before.inode == after.inode:
        return after.offset - before.offset
    return after.offset


def _usable(data: bytes, *, at_end: bool, finished: bool) -> int:
    """Return how many bytes of `data` to give out.

    To the end of a finished file, else whole lines, else whole characters.
    """
    if at_end and finished:
        return len(data)
    line_feed = data.rfind(b"\n")
    carriage_return = data.rfind(b"\r")
    ends = max(line_feed, carriage_return) + 1
    if ends or at_end:
        return ends
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    unfinished, _ = decoder.getstate()
    return len(data) - len(unfinished)


def _ends_line(files: list[BinaryIO]) -> bool:
    """Return whether the last byte of the log is a line end."""
    for file in reversed(files):
        fd = file.fileno()
        size = os.fstat(fd).st_size
        if size:
            last = os.pread(fd, 1, size - 1)
            return last == b"\n"
    return False


def _blocks_backward(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of the file's blocks, the last one first."""
    fd = file.fileno()
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        block = os.pread(fd, end - start, start)
        yield start, block
        end = start


def _after_last_ends(block: bytes, count: int) -> int:
    """Return the position after the `count`-th line end of `block`, counted from its end."""
    position = len(block)
    for _ in range(count):
        position = block.rfind(b"\n", 0, position)
    return position + 1
