"""Reads the usage of an agent's server and node when it is asked to; unasked, nothing runs.

npu-smi takes seconds on a loaded host, so its answer is remembered and refreshed in the background.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.probe.usage import read_ecc, read_npus, read_usage
from raylaunch.plan.facts import Npu
from raylaunch.plan.node_usage import NodeUsage, NpuEcc
from raylaunch.runtime.cluster.task_owner import TaskOwner

log = logging.getLogger(__name__)

NPU_PERIOD_S = 10.0
"""Least time between two runs of npu-smi."""
NPU_TIMEOUT_S = 20.0
ECC_PERIOD_S = 60.0
"""Least time between two readings of the ECC counters: each takes a call for every card."""


class UsageReader:
    """The usage of one server and its node.

    Args:
        tasks: Runs npu-smi in the background.
    """

    def __init__(self, tasks: TaskOwner) -> None:
        self._tasks = tasks
        self._npus: tuple[Npu, ...] = ()
        self._npus_at: float | None = None
        self._ecc: tuple[NpuEcc, ...] = ()
        self._ecc_asked_at = float("-inf")
        self._ecc_problem = ""
        self._npus_asked_at = float("-inf")
        self._has_npus = True
        self._problem = ""

    async def read(self, pid: int | None, log_folder: Path | None, weights: Path) -> NodeUsage:
        """Return the usage now, with the newest state of the NPUs that is known."""
        now = time.monotonic()
        if self._has_npus and now - self._npus_asked_at >= NPU_PERIOD_S:
            self._npus_asked_at = now
            self._tasks.run_once("npu-smi", self._refresh_npus)
        usage = await asyncio.to_thread(read_usage, pid, log_folder, weights)
        age_s = None if self._npus_at is None else now - self._npus_at
        return replace(
            usage,
            npus=self._npus,
            ecc=self._ecc,
            npu_age_s=age_s,
            npu_problem=self._problem,
        )

    async def _refresh_npus(self) -> None:
        try:
            npus = await asyncio.to_thread(read_npus, os.environ, NPU_TIMEOUT_S)
        except NodeError as error:
            if str(error) != self._problem:
                log.warning("no state of the NPUs: %s", error)
            self._problem = str(error)
            return
        self._problem = ""
        if npus is None:
            self._has_npus = False
            return
        self._npus = npus
        self._npus_at = time.monotonic()
        if self._npus_at - self._ecc_asked_at >= ECC_PERIOD_S:
            self._ecc_asked_at = self._npus_at
            await self._refresh_ecc()

    async def _refresh_ecc(self) -> None:
        try:
            self._ecc = await asyncio.to_thread(read_ecc, self._npus, os.environ, NPU_TIMEOUT_S)
            self._ecc_problem = ""
        except NodeError as error:
            # A driver without these counters: the rest of its state is known.
            if str(error) != self._ecc_problem:
                log.warning("no ECC counters of the NPUs: %s", error)
            self._ecc_problem = str(error)
            self._ecc = ()
