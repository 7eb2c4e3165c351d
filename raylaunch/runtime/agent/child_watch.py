"""Watches the lasting processes below one server: engine cores, workers, coordinator, API servers.

vLLM notices a dead child late or never (see `vllm_children`), so the agent holds a pidfd on each:
it becomes readable the moment the process exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable

from raylaunch.errors import NodeError
from raylaunch.node.process.vllm_children import VllmChild, find_vllm_children, read_exit_status
from raylaunch.supervise.state import Exit

log = logging.getLogger(__name__)

SCAN_PERIOD_S = 5.0
"""Between two scans for lasting processes that no log line announced."""
SAME_EXIT_S = 0.03
"""Exits within this time of the first count as one: the workers of a dying engine core exit
within milliseconds too, and the root is found only among all of them."""

FindChildren = Callable[[int, set[int]], list[VllmChild]]


class ChildWatch:
    """Holds a pidfd on each lasting process below a server, and reports the first exit.

    Args:
        server_pid: The server's main process.
        on_exit: Called once, on the event loop, with the exit that most likely caused the others.
        find: Returns the lasting processes below a pid, without those of the known pids.
        clock: The agent's monotonic clock, in seconds.
    """

    def __init__(
        self,
        server_pid: int,
        on_exit: Callable[[Exit], None],
        *,
        find: FindChildren = find_vllm_children,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server_pid = server_pid
        self._on_exit = on_exit
        self._find = find
        self._clock = clock
        self._children: dict[int, VllmChild] = {}
        self._exits: list[Exit] = []
        self._scan = asyncio.Event()
        self._report: asyncio.TimerHandle | None = None
        self._closed = False

    def scan_soon(self) -> None:
        """Scan without waiting for the period: the log announced a stage with new processes."""
        self._scan.set()

    async def run(self) -> None:
        """Scan on announcement and every SCAN_PERIOD_S until `close`."""
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SCAN_PERIOD_S):
                    await self._scan.wait()
            self._scan.clear()
            if not self._closed:
                await self._scan_once()

    def find_engine(self) -> VllmChild:
        """Return an engine core of the server.

        Raises:
            NodeError: None is known.
        """
        for child in self._children.values():
            if child.name.startswith("VLLM::EngineCore"):
                return child
        raise NodeError(f"the server (pid {self._server_pid}) has no engine core")

    def close(self) -> None:
        """Stop watching and report nothing more."""
        self._closed = True
        self._scan.set()
        if self._report is not None:
            self._report.cancel()
        for child in list(self._children.values()):
            self._drop(child)

    async def _scan_once(self) -> None:
        known = set(self._children)
        # Reading /proc of a large process tree may block for a while.
        in_thread = asyncio.to_thread(self._find, self._server_pid, known)
        scan = asyncio.ensure_future(in_thread)
        try:
            found = await asyncio.shield(scan)
        except asyncio.CancelledError:
            # The thread cannot be cancelled; the pidfds that it opens must not leak.
            scan.add_done_callback(_close_found)
            raise
        if self._closed:
            _close_found(scan)
            return
        loop = asyncio.get_running_loop()
        for child in found:
            self._children[child.pid] = child
            loop.add_reader(child.handle, self._on_child_exit, child)

    def _on_child_exit(self, child: VllmChild) -> None:
        # Dropped first: a callback that raised would be called again for ever.
        self._drop(child)
        code, number = read_exit_status(child)
        how = Exit(
            at=self._clock(),
            code=code,
            signal=number,
            process=f"{child.name} (pid {child.pid})",
        )
        self._exits.append(how)
        if self._report is None:
            loop = asyncio.get_running_loop()
            self._report = loop.call_later(SAME_EXIT_S, self._report_root)

    def _report_root(self) -> None:
        root = min(self._exits, key=_root_order)
        log.warning("%d children exited; the first to blame: %s", len(self._exits), root)
        # The report is final: the group is broken, and later exits are its consequence.
        self.close()
        self._on_exit(root)

    def _drop(self, child: VllmChild) -> None:
        self._children.pop(child.pid, None)
        asyncio.get_running_loop().remove_reader(child.handle)
        os.close(child.handle)


def _root_order(exit_: Exit) -> tuple[bool, bool, bool, float]:
    """Order exits by how likely each caused the others.

    Killed by a signal before failed before exit code 0; an engine core before its workers; then
    the earliest.
    """
    not_killed = exit_.signal is None
    succeeded = exit_.code == 0
    not_an_engine = "EngineCore" not in exit_.process
    return not_killed, succeeded, not_an_engine, exit_.at


def _close_found(scan: asyncio.Future[list[VllmChild]]) -> None:
    if scan.cancelled() or scan.exception() is not None:
        return
    for child in scan.result():
        os.close(child.handle)
