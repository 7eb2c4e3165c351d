"""What the events of a guard mean for the agent: the result of a launch, and when things happened.

The guard is a process of its own and stamps its events with the wall clock, the only clock that
both write to their logs. The agent counts ages on its monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from raylaunch.errors import NodeError

EVENT_DELAY_S = 5.0
"""The oldest event that the guard sends: it first copies to the log what the server had printed."""


def settle_launch(launch: asyncio.Future[int], event: dict[str, Any]) -> None:
    """Settle the future of a launch with the server's pid or a NodeError, if `event` decides it."""
    if launch.done():
        return
    match event:
        case {"event": "spawned", "pid": pid}:
            launch.set_result(pid)
        case {"event": "failed", "error": error}:
            launch.set_exception(NodeError("the server could not be started", why=str(error)))
        case {"event": "guard_lost"}:
            text = "the guard of the server died before the server was up"
            launch.set_exception(NodeError(text))
        case {"event": "clean"}:
            # Always the last event: without a pid by now there will be none.
            launch.set_exception(NodeError("the server was stopped during its launch"))


def on_monotonic_clock(wall_at: float) -> float:
    """Convert the wall-clock time (seconds since the epoch) of an event that has just arrived.

    The age is bounded: if the wall clock was stepped between the event and now, the difference of
    the two times is no age.
    """
    measured_s = time.time() - wall_at
    age_s = min(max(0.0, measured_s), EVENT_DELAY_S)
    return time.monotonic() - age_s
