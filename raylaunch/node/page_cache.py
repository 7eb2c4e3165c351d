"""Weights brought into the page cache while vLLM still imports its modules: the disk would idle meanwhile.

vLLM maps the files and copies from them, file by file in the order of their names; what is in the page cache by then
is not waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PIECE_BYTES = 16 << 20
READERS = 4
"""One reader does not keep an NVMe disk or a file server busy."""
ROOM = 0.8
"""The share of the available memory that the weights may fill: more would push out what was read first."""
_PAGE = 1 << 12
_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Warmed:
    """What was done. Bytes of all weight files, bytes that had to be read, seconds."""

    total: int
    read: int
    seconds: float
    refusal: str = ""
    """Why nothing was read; "" when it was tried."""

    def __str__(self) -> str:
        if self.refusal:
            return f"nothing: {self.refusal}"
        return f"{self.read / 1e9:.1f} of {self.total / 1e9:.1f} GB of weights read in {self.seconds:.1f} s"


def warm(folder: Path, stop: threading.Event, available: int | None = None) -> Warmed:
    """Read the weight files in `folder` that are not in the page cache yet; ends early when `stop` is set.

    Args:
        folder: A model. One that is not there, or holds no weights, is left to vLLM's own message.
        stop: Set by another thread.
        available: Bytes of memory that can be had, by default what the kernel says.
    """
    began = time.monotonic()
    files = weight_files(folder)
    total = sum(size for _, size in files)
    room = int((_available() if available is None else available) * ROOM)
    if total > room:
        refusal = f"{total / 1e9:.0f} GB of weights do not fit into {room / 1e9:.0f} GB of free memory"
        return Warmed(total, 0, 0.0, refusal)
    pieces = ((path, start) for path, size in files for start in range(0, size, PIECE_BYTES))
    lock = threading.Lock()

    def work() -> int:
        done, buffer = 0, bytearray(PIECE_BYTES)
        while not stop.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                break
            done += _read(*piece, buffer)
        return done

    with ThreadPoolExecutor(READERS, "page-cache") as readers:
        read = sum(reader.result() for reader in [readers.submit(work) for _ in range(READERS)])
    return Warmed(total, read, time.monotonic() - began)


def weight_files(folder: Path) -> list[tuple[Path, int]]:
    """The files that vLLM will load, with their sizes, in the order in which it does; of one format only."""
    for suffix in _SUFFIXES:
        named = _indexed(folder / f"model{suffix}.index.json")
        found = sorted(
            path
            for path in _listed(folder)
            if path.suffix == suffix and path.is_file() and (not named or path.name in named)
        )
        if found:
            return [(path, path.stat().st_size) for path in found]
    return []


def _indexed(index: Path) -> set[str]:
    """The files that an index names: Mistral's folders hold the same weights a second time, for other programs."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _listed(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path, start: int, buffer: bytearray) -> int:
    """Read one piece unless its first and last page are cached. A file that cannot be read is vLLM's to name."""
    with contextlib.suppress(OSError), _opened(path) as file:
        size = min(len(buffer), os.fstat(file).st_size - start)
        ends = (start, max(start, start + size - _PAGE))
        if size > 0 and not all(_is_cached(file, where) for where in ends):
            return os.preadv(file, [memoryview(buffer)[:size]], start)
    return 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _is_cached(file: int, where: int) -> bool:
    """Whether a page can be had without waiting for a disk. Filesystems that cannot tell say no."""
    try:
        return os.preadv(file, [bytearray(1)], where, os.RWF_NOWAIT) > 0
    except OSError:
        return False


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
