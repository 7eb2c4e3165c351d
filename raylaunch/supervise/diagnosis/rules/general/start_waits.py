"""A start that waits for engines that never come."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.survival import read_life

WAITING_ANCHOR = "core engine proc(s) to "
_WAITING = re.compile(
    r"Waiting for (\d{1,5})(?: local, (\d{1,5}) remote)? core engine proc\(s\) to (start|connect)"
)
_LONG_S = 600.0
"""Time-out of the handshake: HANDSHAKE_TIMEOUT_MINS = 5, VLLM_ENGINE_READY_TIMEOUT_S = 600."""
_LAST_LINES = 8


def read_start_waits(log: ServerLog) -> Iterator[Reading]:
    """Yield a wait for engines that is the last that the log shows, after ten minutes of it."""
    notices = list(log.everything.find(_WAITING))
    if not notices or notices[-1][0] < len(log.raw) - _LAST_LINES:
        return
    progressed = read_life(log).progressed
    notices = [(line, match) for line, match in notices if line > progressed]
    if not notices:
        return
    (first, _), (last, match) = notices[0], notices[-1]
    began, now = log.times[first], log.times[last]
    if began is None or now is None or now - began < _LONG_S:
        return
    local, remote = int(match[1]), int(match[2] or 0)
    who = " and ".join(
        f"{number} engine{'s' * (number != 1)} {where}"
        for number, where in ((local, "of this node"), (remote, "of other nodes"))
        if number
    )
    yield Reading(
        reason(
            "engines-not-started",
            f"Hang during the start: the API server has waited {now - began:.0f} s for "
            f"{who or 'its engines'} to {match[3]}, and nothing has happened since. The engine is "
            "stuck in the rendezvous of its ranks, in loading, or on the device; or it never "
            "reached this address.",
            "Find where it is: `py-spy dump --pid ENGINE` (and its workers), the last line of each "
            "process's log, `~/ascend/log/debug/plog` or NCCL_DEBUG=INFO; between nodes check "
            "`network.interface`, and that each headless server runs and reaches the primary.",
            "vLLM v1/engine/utils.py; vllm-ascend#2416, HAMi-core#261",
            "transient",
        ),
        first,
        covers=frozenset(line for line, _ in notices),
        rank=Rank.HANG,
        certain=False,
    )
