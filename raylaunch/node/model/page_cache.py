"""Reads weights into the page cache while vLLM still imports its modules and the disk idles.

vLLM maps the weight files and copies from them, file by file in the order of their names. It does
not wait for what is in the page cache by then.

Reading ahead costs CPU, which the imports need as well, and it gains at most the time that the disk
takes. So the disk is measured first (`storage.measure_read`, a small part), and the weights are
left to vLLM when the disk gives all of them within `FAST_READ_S` seconds.

Measured with 1.2 GB per host on two busy cores, real vLLM on CPU (benchmarks/weights.py), from
start to first token, relative to two bash scripts:

- a disk that costs vLLM's load 1.4 s (8.7 s instead of 7.3 s): 1.05 with reading ahead, 1.03
  without;
- a disk of 100 MB/s, which costs it 12.2 s (20.0 s instead of 7.8 s): 0.88 with, 1.04 without.

The readers' own rate does not show what the disk gives: at the lowest priority they took 8 to 11 s
on the faster one.

vLLM's own `safetensors-load-strategy: prefetch` does not replace this: it starts with the loader,
so after the imports, when the disk is busy anyway, and it belongs to the recipe's `args`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raylaunch.node.model.storage import measure_read

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
"""vLLM's own small reads wait behind one piece per reader. Pieces of 16 MiB on a disk of 100 MB/s
made its imports take twice as long (measured, benchmarks/weights.py)."""
READERS = 4
"""One reader does not keep an NVMe disk or a file server busy."""
SMALL_BYTES = 64 << 20
"""Limit for configuration, tokenizer and code, which vLLM reads before the weights. A tokenizer has
some 10 MB."""
ROOM = 0.8
"""The share of the available memory that the weights may fill: more would push out what was read
first."""
FAST_READ_S = 5.0
"""Weights that the disk gives within this time are left to vLLM. The limit is between the 1.4 s
that made reading ahead a loss and the 12.2 s that made it a gain, see above."""
SAMPLE_BYTES = 32 << 20
"""Read to measure the disk: 0.3 s at 100 MB/s, in which the imports wait for the disk."""
SAMPLE_S = 0.5
_LIBC = ctypes.CDLL(None)
_LOWEST_PRIORITY = 19
_PAGE_BYTES = 1 << 12
_SUFFIXES = (".safetensors", ".bin", ".pt")

Measure = Callable[[Path, int, float], float | None]
"""Bytes per second of a file, from a part of so many bytes and at most so many seconds."""
_File = tuple[Path, int]
"""A path and its size in bytes."""


@dataclass(frozen=True)
class Warmed:
    """The result of reading ahead: bytes of all weight files, bytes read from the disk, seconds."""

    total: int
    read: int
    seconds: float
    refusal: str = ""
    """Why the weights were not read ahead; "" when they were."""

    def __str__(self) -> str:
        if self.refusal:
            return f"skipped: {self.refusal}"
        read_gb = self.read / 1e9
        total_gb = self.total / 1e9
        return f"{read_gb:.1f} of {total_gb:.1f} GB of weights read in {self.seconds:.1f} s"


def warm(
    folder: Path,
    stop: threading.Event,
    available: int | None = None,
    measure: Measure = measure_read,
) -> Warmed:
    """Read the weight files in `folder` that are not in the page cache yet, until `stop` is set.

    Nothing is read when the weights do not fit into memory, or when the disk is fast.

    Args:
        folder: A model. A folder that does not exist, or holds no weights, is left to vLLM's error.
        stop: Set by another thread.
        available: Bytes of memory that can be used, by default what the kernel reports.
        measure: Measures how fast a file is read.
    """
    began = time.monotonic()
    files = weight_files(folder)
    total = sum(size for _, size in files)
    memory = _available_bytes() if available is None else available
    refusal = _why_too_large(total, memory)
    if not refusal and not stop.is_set():
        refusal = _why_fast(files, measure)
    if refusal:
        warmed = Warmed(total, 0, 0.0, refusal)
    else:
        read = _read_files(_small_files(folder, files), files, stop)
        warmed = Warmed(total, read, time.monotonic() - began)
    log.info("reading ahead %s: %s", folder, warmed)
    return warmed


def weight_files(folder: Path) -> list[tuple[Path, int]]:
    """List the files that vLLM will load, with their sizes, in its order; of one format only."""
    for suffix in _SUFFIXES:
        named = _names_in_index(folder / f"model{suffix}.index.json")
        found = []
        for path in sorted(_entries(folder)):
            is_wanted = path.suffix == suffix and (not named or path.name in named)
            if is_wanted and path.is_file():
                found.append((path, path.stat().st_size))
        if found:
            return found
    return []


def _why_too_large(total: int, memory: int) -> str:
    room = int(memory * ROOM)
    if total <= room:
        return ""
    total_gb = total / 1e9
    room_gb = room / 1e9
    return f"{total_gb:.0f} GB of weights do not fit into {room_gb:.0f} GB of free memory"


def _why_fast(files: Sequence[_File], measure: Measure) -> str:
    """Return why the disk is fast enough to leave the weights to vLLM; "" when it is not.

    Only files that have to be read count: a disk is not measured for what is cached already.
    """
    cold = [(path, size) for path, size in files if not _seems_cached(path, size)]
    if not cold:
        return ""
    largest, _ = max(cold, key=lambda file: file[1])
    try:
        rate = measure(largest, SAMPLE_BYTES, SAMPLE_S)
    except OSError:  # a file that cannot be read is left to vLLM's error
        return ""
    if not rate:
        return ""
    cold_bytes = sum(size for _, size in cold)
    disk_s = cold_bytes / rate
    if disk_s > FAST_READ_S:
        return ""
    rate_gb = rate / 1e9
    cold_gb = cold_bytes / 1e9
    return f"the disk reads at {rate_gb:.1f} GB/s, {cold_gb:.1f} GB in {disk_s:.1f} s"


def _seems_cached(path: Path, size: int) -> bool:
    """Return whether the page in the middle of a file is cached; also true of an empty file."""
    if size == 0:
        return True
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        # Where the question starts to read (`_is_cached`), it reads no more than the page.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return _is_cached(file, size // 2)
    finally:
        os.close(file)


def _read_files(
    small: Sequence[_File],
    weights: Sequence[_File],
    stop: threading.Event,
) -> int:
    """Read the small files, then the weights with several readers; returns the bytes of weights."""
    with (
        contextlib.ExitStack() as opened,
        ThreadPoolExecutor(READERS, "page-cache", _lower_priority) as pool,
    ):
        _Pieces(small, opened).read(stop)
        pieces = _Pieces(weights, opened)
        readers = [pool.submit(pieces.read, stop) for _ in range(READERS)]
        return sum(reader.result() for reader in readers)


class _Pieces:
    """The pieces of some files, one after the other; several threads may share them."""

    def __init__(
        self,
        files: Sequence[_File],
        opened: contextlib.ExitStack,
    ) -> None:
        # A generator is for one thread at a time.
        self._turn = threading.Lock()
        self._pieces = _pieces(files, opened)

    def read(self, stop: threading.Event) -> int:
        """Read pieces until none is left; returns the bytes that came from the disk."""
        read = 0
        buffer = bytearray(PIECE_BYTES)
        while not stop.is_set():
            with self._turn:
                piece = next(self._pieces, None)
            if piece is None:
                break
            read += _read(*piece, buffer)
        return read


def _pieces(files: Sequence[_File], opened: contextlib.ExitStack) -> Iterator[tuple[int, int]]:
    """Yield descriptor and offset of each piece; a file that cannot be opened is left to vLLM."""
    for path, size in files:
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, file)
            # Without the kernel's own read-ahead nothing is in flight beyond the piece.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            for start in range(0, size, PIECE_BYTES):
                yield file, start


def _lower_priority() -> None:
    """Leave the cores to the imports: Linux has a niceness for each thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


def _small_files(folder: Path, weights: Sequence[_File]) -> list[_File]:
    """List the files beside the weights, which vLLM reads first."""
    if not weights:
        return []
    small = []
    for path in sorted(_entries(folder)):
        if path.suffix in _SUFFIXES or not path.is_file():
            continue
        size = path.stat().st_size
        if size <= SMALL_BYTES:
            small.append((path, size))
    return small


def _names_in_index(index: Path) -> set[str]:
    """Read the file names in an index; empty for an index that is missing or broken.

    Mistral's folders hold the same weights a second time, for other programs.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return set(content["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(file: int, start: int, buffer: bytearray) -> int:
    """Read one piece unless its first and last page are cached; returns the bytes read.

    A file that cannot be read is left to vLLM's error.
    """
    with contextlib.suppress(OSError):
        size = min(len(buffer), os.fstat(file).st_size - start)
        if size <= 0:
            return 0
        last_page = max(start, start + size - _PAGE_BYTES)
        if _is_cached(file, start) and _is_cached(file, last_page):
            return 0
        return os.preadv(file, [memoryview(buffer)[:size]], start)
    return 0


def _is_cached(file: int, where: int) -> bool:
    """Return whether a page of a file is in the page cache.

    Filesystems that do not support the question report that it is not.
    """
    try:
        if _may_ask_mincore(file):
            return _is_resident(file, where)
        # This question starts to read the page, and on a fast disk finds it cached then.
        return os.preadv(file, [bytearray(1)], where, os.RWF_NOWAIT) > 0
    except (OSError, ValueError):
        return False


def _may_ask_mincore(file: int) -> bool:
    """Return whether mincore(2) is honest to this process.

    Linux reports every page of other users' files as cached (`can_do_mincore` in mm/mincore.c).
    """
    is_owner = os.fstat(file).st_uid == os.geteuid()
    return is_owner or os.access(f"/proc/self/fd/{file}", os.W_OK, effective_ids=True)


def _is_resident(file: int, where: int) -> bool:
    """Ask mincore(2), which reads nothing, about one page.

    Raises:
        OSError: the filesystem cannot map files.
        ValueError: the file has become shorter.
    """
    start = where // mmap.PAGESIZE * mmap.PAGESIZE
    # ctypes takes the address of writable memory only; a private mapping never writes to the file.
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with mmap.mmap(file, 1, mmap.MAP_PRIVATE, protection, offset=start) as page:
        first_byte = ctypes.c_char.from_buffer(page)
        residency = ctypes.c_ubyte()
        failed = _LIBC.mincore(
            ctypes.c_void_p(ctypes.addressof(first_byte)),
            ctypes.c_size_t(1),
            ctypes.byref(residency),
        )
        # A mapping that is still referred to cannot be closed.
        del first_byte
    return not failed and bool(residency.value & 1)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            kibibytes = line.split()[1]
            return int(kibibytes) * 1024
    return 0
