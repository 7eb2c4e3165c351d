"""Stops daemons of Ray in the order of `ray stop`, from a process that outlives them.

The raylets first, then the GCS: SIGTERM, and SIGKILL for what is left after the grace. A GCS that
gets SIGTERM together with its raylets may hang for ever, with its port closed (seen, Ray 2.60).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from raylaunch.node.process.guard import Process, read_process, send_signal
from raylaunch.node.process.process_markers import await_exit

GRACE_S = 8.0
"""For the raylets, and again for the GCS: half of what `ray stop` waits by default."""


def stop_processes(processes: Sequence[Process], grace_s: float) -> None:
    """SIGTERM these processes, and SIGKILL those that are alive after `grace_s` seconds."""
    for process in processes:
        send_signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in processes:
        await_exit(process, deadline)
    for process in processes:
        send_signal(process, signal.SIGKILL)


def stop_detached(raylets: Sequence[Process], others: Sequence[Process]) -> None:
    """Stop the raylets, then the others, from a process that no process of Ray is above.

    Raises:
        OSError: the process cannot be started.
    """
    words = [_encode(raylets), _encode(others)]
    # The code may have been unpacked where no new interpreter finds it.
    path = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-m", __name__, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )


def _encode(processes: Sequence[Process]) -> str:
    return ",".join(f"{process.pid}:{process.started}" for process in processes)


def _decode(word: str) -> list[Process]:
    """Return the processes that still are those that were meant."""
    found = []
    for pair in filter(None, word.split(",")):
        pid, _, started = pair.partition(":")
        process = read_process(int(pid))
        if process is not None and process.started == int(started):
            found.append(process)
    return found


def main(*buckets: str) -> int:
    """Leave the caller, and stop one bucket of processes after the other."""
    if os.fork():
        return 0
    for bucket in buckets:
        stop_processes(_decode(bucket), GRACE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
