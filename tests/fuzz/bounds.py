"""What one input of a fuzz test may cost."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU_LIMIT_S = 2.0
MEMORY_LIMIT_MB = 300
_KIB = 1024
_PAGE_KIB = resource.getpagesize() // _KIB


@contextmanager
def bounded(seconds: float = CPU_LIMIT_S) -> Iterator[None]:
    """Fail when the body takes over `seconds` of CPU time, or raises the peak of memory by 300 MB.

    Neither counts what hypothesis keeps of a long run: 900 MB after 4,000 inputs, through which
    each full garbage collection would search.
    """
    gc.freeze()
    memory = _used_kib()
    peak = _peak_kib()
    start = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - start
        gc.unfreeze()
    assert took < seconds, f"{took:.1f} s of CPU time for one input"
    if _peak_kib() > peak:
        grown_mb = (_peak_kib() - memory) / _KIB
        assert grown_mb < MEMORY_LIMIT_MB, f"{grown_mb:.0f} MB for one input"


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _used_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_KIB
