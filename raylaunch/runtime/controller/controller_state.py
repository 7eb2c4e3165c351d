"""Where a controller is between its creation and its stop, and how that may change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from enum import StrEnum

log = logging.getLogger(__name__)


class ControllerState(StrEnum):
    """Where a controller is. The phase of its group is another matter."""

    WAITING_FOR_BEGIN = "waiting for begin"
    """Created, but `raylaunch start` has not handed over the secrets yet."""
    TAKING_OVER = "taking over"
    """Ray restarted it: it looks for the agents of its predecessor."""
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


_TRANSITIONS = {
    ControllerState.WAITING_FOR_BEGIN: {ControllerState.RUNNING, ControllerState.STOPPING},
    ControllerState.TAKING_OVER: {
        ControllerState.WAITING_FOR_BEGIN,  # nothing was found: Ray restarted it before `begin`
        ControllerState.RUNNING,
        ControllerState.STOPPING,
    },
    ControllerState.RUNNING: {ControllerState.STOPPING},
    ControllerState.STOPPING: {ControllerState.STOPPED},
    ControllerState.STOPPED: set[ControllerState](),
}


class StateMachine:
    """Holds the state, refuses illegal transitions, and lets others wait for the next one."""

    def __init__(self, first: ControllerState) -> None:
        self._state = first
        self._changed = asyncio.Event()

    @property
    def now(self) -> ControllerState:
        """The current state."""
        return self._state

    def enter(self, state: ControllerState) -> None:
        """Move to `state`.

        Raises:
            AssertionError: an illegal transition, which is a bug.
        """
        if state not in _TRANSITIONS[self._state]:
            raise AssertionError(f"illegal transition of a controller: {self._state} -> {state}")
        log.info("controller: %s -> %s", self._state, state)
        self._state = state
        changed = self._changed
        self._changed = asyncio.Event()
        changed.set()

    async def leave(self, *states: ControllerState, timeout_s: float | None = None) -> bool:
        """Wait until the state is none of `states`; return False when `timeout_s` passes first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._state in states:
                    await self._changed.wait()
        return self._state not in states

    async def know(self) -> None:
        """Wait until the controller knows what it controls: it can then answer questions."""
        await self.leave(ControllerState.WAITING_FOR_BEGIN, ControllerState.TAKING_OVER)
