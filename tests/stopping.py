"""Stops processes for a test.

A SIGSTOP is only sent when kill() returns; each thread stops when it next runs.
"""

import os
import signal
import time
from pathlib import Path

PATIENCE_S = 60.0


def stop(*pids: int) -> None:
    """Send SIGSTOP to every one of `pids`, and return when all their threads have stopped."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while states := {pid: letters for pid in pids if (letters := _states(pid)) != {"T"}}:
        assert time.monotonic() < deadline, f"not stopped within {PATIENCE_S} s: {states}"
        time.sleep(0.005)


def _states(pid: int) -> set[str]:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return {thread.read_text().rpartition(")")[2].split()[0] for thread in threads}
