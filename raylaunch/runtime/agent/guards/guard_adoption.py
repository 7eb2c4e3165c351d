"""Takes a guard over from an agent that is gone, or is about to be gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylaunch.errors import BusyError, NodeError
from raylaunch.node.process import guard_socket
from raylaunch.node.process.guard_socket import GuardReport
from raylaunch.node.process.server_process import ServerProcess

OWNER_GONE_S = 10.0
"""An agent that Ray has given up may still live for a moment (its process is being killed)."""
POLL_S = 0.1


async def take_guard(
    path: Path, attempt: int, on_event: Callable[[dict[str, Any]], None]
) -> tuple[ServerProcess, GuardReport]:
    """Become the owner of the guard behind a socket.

    Raises:
        NodeError: There is none, its server is of another attempt, or has exited.
        BusyError: It keeps its owner.
    """
    deadline = time.monotonic() + OWNER_GONE_S
    while True:
        report = await asyncio.to_thread(guard_socket.describe, path)
        if report.attempt != attempt:
            raise NodeError(
                f"{report.name} cannot be adopted",
                why=f"its guard runs attempt {report.attempt}, not {attempt}",
            )
        if report.phase != "running":
            # Waiting for the guard would only delay the restart of the group.
            raise NodeError(
                f"{report.name} cannot be adopted",
                why=f"its guard, pid {report.pid}, is {report.phase}",
            )
        try:
            return await asyncio.to_thread(ServerProcess.adopt, path, on_event)
        except BusyError:
            # Nothing announces the exit of a process that is not our child.
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(POLL_S)
