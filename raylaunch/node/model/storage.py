"""Where a folder lies: its filesystem, the room left on it, whether another node sees the same, how fast it reads."""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

from raylaunch.plan.wanted_weights import is_network

READ_BYTES = 256 << 20
READ_S = 2.0
_BLOCK = 8 << 20
_PAGE = 1 << 12
_NAMED_BY_SERVER = re.compile(r":|^//")
"""Sources such as `10.0.0.5:/export`, `10.0.0.5@tcp:/fs`, `//nas/share`. A 9p or virtiofs tag is only a name that
each virtual machine has from its own host."""


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo. `root` is the part of the filesystem that is mounted at `point`."""

    point: str
    root: str
    filesystem: str
    source: str


def mount_of(path: str, table: str | None = None) -> Mount | None:
    """The mount that `path`, which need not exist, lies on; None when no mount is visible.

    `table` is the text of mountinfo (proc(5)), by default this process's.
    """
    real = Path(os.path.realpath(path))
    text = Path("/proc/self/mountinfo").read_text() if table is None else table
    mounts = [
        mount for line in text.splitlines() if real.is_relative_to((mount := _parse(line)).point)
    ]
    # Of two mounts on the same point the later one covers the earlier: max() keeps the first, hence reversed.
    return max(reversed(mounts), key=lambda mount: len(mount.point)) if mounts else None


def place_of(path: str, table: str | None = None) -> str:
    """What two nodes have in common when they see the same folder: the server's name of it, or machine, disk, inode.

    Two nodes that call one file server by different names have different places.
    """
    real = Path(os.path.realpath(path))
    mount = mount_of(path, table)
    if mount is not None and is_network(mount.filesystem) and _NAMED_BY_SERVER.search(mount.source):
        below = real.relative_to(mount.point)
        parts = [part.strip("/") for part in (mount.root, str(below)) if part.strip("/.")]
        return "/".join([mount.source.rstrip("/"), *parts])
    there = nearest_existing(real)
    status = there.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {status.st_dev}:{status.st_ino} {real.relative_to(there)}"


def free_bytes(path: str) -> int:
    """Bytes that this user may still write where `path` lies, or would lie."""
    status = os.statvfs(nearest_existing(Path(path)))
    return status.f_bavail * status.f_frsize


def nearest_existing(path: Path) -> Path:
    """`path`, or the first folder above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def measure_read(
    file: Path, limit_bytes: int = READ_BYTES, limit_s: float = READ_S
) -> float | None:
    """Bytes per second of a sequential read of at most so many bytes and seconds; None: nothing there to read.

    The pages are dropped from this machine's cache first, and each call reads another place, because the file server
    has a cache as well. Pages that a running server has mapped stay in the cache, and read too fast.

    Raises:
        OSError: the file cannot be read.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        start = random.randrange(max(1, size - limit_bytes)) // _PAGE * _PAGE  # noqa: S311 - a place, not a secret
        os.posix_fadvise(fd, start, limit_bytes, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, start, limit_bytes, os.POSIX_FADV_SEQUENTIAL)
        return _read_for(fd, start, min(start + limit_bytes, size), limit_s)
    finally:
        os.close(fd)


def _read_for(fd: int, start: int, end: int, limit_s: float) -> float | None:
    buffer = bytearray(_BLOCK)
    began, at = time.monotonic(), start
    while at < end and time.monotonic() - began < limit_s:
        count = os.preadv(fd, [memoryview(buffer)[: min(_BLOCK, end - at)]], at)
        if count == 0:
            break
        at += count
    return (at - start) / max(time.monotonic() - began, 1e-6) if at > start else None


def _parse(line: str) -> Mount:
    """`36 35 98:0 /root /point rw,noatime shared:1 - nfs4 server:/export rw`; a blank inside a field is octal."""
    front, _, back = line.partition(" - ")
    fields, kind = front.split(" "), back.split(" ")
    return Mount(_unescape(fields[4]), _unescape(fields[3]), kind[0], _unescape(kind[1]))


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
