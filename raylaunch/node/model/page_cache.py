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

PIECE_BYTES = 1 << 20
"""What vLLM's own small reads wait behind is a piece per reader: pieces of 16 MiB on a disk of 100 MB/s made its
imports take twice as long (measured, benchmarks/weights.py)."""
READERS = 4
"""One reader does not keep an NVMe disk or a file server busy."""
SMALL_BYTES = 64 << 20
"""Configuration, tokenizer, code: what vLLM reads before the weights. A tokenizer has some 10 MB."""
ROOM = 0.8
"""The share of the available memory that the weights may fill: more would push out what was read first."""
_NICEST = 19
_PAGE = 1 << 12
_TURN = threading.Lock()
"""A generator is for one thread at a time."""
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
        refusal = (
            f"{total / 1e9:.0f} GB of weights do not fit into {room / 1e9:.0f} GB of free memory"
        )
        return Warmed(total, 0, 0.0, refusal)
    with (
        contextlib.ExitStack() as opened,
        ThreadPoolExecutor(READERS, "page-cache", _yield_to_others) as readers,
    ):
        _read_pieces(_pieces(_small_files(folder, files), opened), stop)
        pieces = _pieces(files, opened)
        read = sum(
            reader.result()
            for reader in [readers.submit(_read_pieces, pieces, stop) for _ in range(READERS)]
        )
    return Warmed(total, read, time.monotonic() - began)


def _read_pieces(pieces: Iterator[tuple[int, int]], stop: threading.Event) -> int:
    """Take pieces until none is left; returns the bytes that had to be read. Several threads may share `pieces`."""
    done, buffer = 0, bytearray(PIECE_BYTES)
    while not stop.is_set():
        with _TURN:
            piece = next(pieces, None)
        if piece is None:
            break
        done += _read(*piece, buffer)
    return done


def _pieces(
    files: Sequence[tuple[Path, int]], opened: contextlib.ExitStack
) -> Iterator[tuple[int, int]]:
    """Descriptor and offset of one piece after the other. A file that cannot be opened is vLLM's to name."""
    for path, size in files:
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            opened.callback(os.close, file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # nothing in flight beyond the piece
            for start in range(0, size, PIECE_BYTES):
                yield file, start


def _yield_to_others() -> None:
    """Give the calling thread only the cores that the imports leave: Linux has a niceness for each thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)


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


def _small_files(folder: Path, weights: Sequence[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """What lies beside the weights and is read before them."""
    if not weights:
        return []
    others = sorted(
        path for path in _listed(folder) if path.suffix not in _SUFFIXES and path.is_file()
    )
    return [(path, size) for path in others if (size := path.stat().st_size) <= SMALL_BYTES]


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


def _read(file: int, start: int, buffer: bytearray) -> int:
    """Read one piece unless its first and last page are cached. A file that cannot be read is vLLM's to name."""
    with contextlib.suppress(OSError):
        size = min(len(buffer), os.fstat(file).st_size - start)
        ends = (start, max(start, start + size - _PAGE))
        if size > 0 and not all(_is_cached(file, where) for where in ends):
            return os.preadv(file, [memoryview(buffer)[:size]], start)
    return 0


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
