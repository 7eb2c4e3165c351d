"""Kills marked processes that this test run started, and never those of another run beside it."""

import os
from pathlib import Path

from raylaunch.node.process.process_markers import find_marked, terminate_marked

RUN = "RAYLAUNCH_TEST_RUN"
"""Set by conftest.py to an id of the run; everything that the tests start inherits it."""


def kill_own(prefix: str) -> None:
    """SIGKILL this run's marked processes whose deployment begins with `prefix`."""
    mark = f"{RUN}={os.environ[RUN]}".encode()
    for process in find_marked():
        if process.deployment.startswith(prefix) and mark in _environment(process.pid):
            terminate_marked(
                process.deployment,
                instance=process.instance,
                grace_s=0,
                pids={process.pid},
            )


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it exited meanwhile
        return []
