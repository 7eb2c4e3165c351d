"""The storage below a folder: its filesystem, its free space, who shares it, how fast it reads."""

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
_BLOCK_BYTES = 8 << 20
_PAGE_BYTES = 1 << 12
_SERVER_SOURCE = re.compile(r":|^//")
"""Matches sources that name a file server: `10.0.0.5:/export`, `10.0.0.5@tcp:/fs`, `//nas/share`.
A 9p or virtiofs tag is only a name that each virtual machine has from its own host."""

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo; `root` is the part of the filesystem mounted at `point`."""

    point: str
    root: str
    filesystem: str
    source: str


def mount_of(path: str, table: str | None = None) -> Mount | None:
    """Find the mount that holds `path`, which need not exist; None when no mount is visible.

    `table` is the text of mountinfo (proc(5)), by default that of this process.
    """
    real = Path(os.path.realpath(path))
    if table is None:
        table = Path("/proc/self/mountinfo").read_text(errors="replace")
    innermost = None
    for line in table.splitlines():
        mount = _parse(line)
        if mount is None or not real.is_relative_to(mount.point):
            continue
        # `>=`: of two mounts on the same point the later one covers the earlier.
        if innermost is None or len(mount.point) >= len(innermost.point):
            innermost = mount
    return innermost


def place_of(path: str, table: str | None = None) -> str:
    """Return a name that is equal on two nodes when they see the same folder.

    On a file server it is the server's name of the folder, else boot id, device and inode. Two
    nodes that call one file server by different names have different places.
    """
    real = Path(os.path.realpath(path))
    mount = mount_of(path, table)
    if mount is not None and _is_on_server(mount):
        below = str(real.relative_to(mount.point))
        # "/" and "." stand for the folder itself.
        folders = [folder for folder in (mount.root, below) if folder.strip("/.")]
        return _join([mount.source, *folders])
    existing = nearest_existing(real)
    below = str(real.relative_to(existing))
    status = existing.stat()
    inode = f"{status.st_dev}:{status.st_ino}"
    # Devices and inodes are unique on one machine only.
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id} {inode} {below}"


def free_bytes(path: str) -> int:
    """Return how many bytes this user may still write at `path`, which need not exist."""
    status = os.statvfs(nearest_existing(Path(path)))
    return status.f_bavail * status.f_frsize


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the first folder above it that exists."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def measure_read(
    file: Path,
    limit_bytes: int = READ_BYTES,
    limit_s: float = READ_S,
) -> float | None:
    """Read a part of `file` in sequence and return the bytes per second; None for an empty file.

    At most `limit_bytes` bytes and `limit_s` seconds are read. The pages are dropped from this
    machine's cache first, and each call reads another part, because a file server has a cache as
    well. Pages that a running server has mapped stay in the cache and make the result too high.

    Raises:
        OSError: The file cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        last_start = max(1, size - limit_bytes)
        offset = random.randrange(last_start)  # noqa: S311 - no secret
        start = offset - offset % _PAGE_BYTES
        end = min(start + limit_bytes, size)
        os.posix_fadvise(descriptor, start, limit_bytes, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, start, limit_bytes, os.POSIX_FADV_SEQUENTIAL)
        return _read_for(descriptor, start, end, limit_s)
    finally:
        os.close(descriptor)


def _read_for(
    descriptor: int,
    start: int,
    end: int,
    limit_s: float,
) -> float | None:
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    began = time.monotonic()
    at = start
    while at < end and time.monotonic() - began < limit_s:
        wanted = min(_BLOCK_BYTES, end - at)
        count = os.preadv(descriptor, [buffer[:wanted]], at)
        if count == 0:  # the file became shorter meanwhile
            break
        at += count
    if at == start:
        return None
    took_s = max(time.monotonic() - began, 1e-6)
    return (at - start) / took_s


def _join(parts: list[str]) -> str:
    """Join parts of a path. Slashes at the front belong to the first part (`//nas/share`)."""
    first = parts[0].rstrip("/")
    others = [part.strip("/") for part in parts[1:]]
    return "/".join([first, *others])


def _is_on_server(mount: Mount) -> bool:
    return is_network(mount.filesystem) and bool(_SERVER_SOURCE.search(mount.source))


def _parse(line: str) -> Mount | None:
    r"""Parse `36 35 98:0 /root /point rw,noatime shared:1 - nfs4 server:/export rw` (proc(5)).

    A blank inside a field is written in octal (`\040`). None for a line of another form.
    """
    front, _, back = line.partition(" - ")
    fields = front.split(" ")
    kind = back.split(" ")
    if len(fields) < 6 or len(kind) < 2:
        return None
    return Mount(
        point=_unescape(fields[4]),
        root=_unescape(fields[3]),
        filesystem=kind[0],
        source=_unescape(kind[1]),
    )


def _unescape(field: str) -> str:
    return _OCTAL.sub(_octal_char, field)


def _octal_char(found: re.Match[str]) -> str:
    code = int(found[1], 8)
    return chr(code)
