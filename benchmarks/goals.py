"""What the supervision is to reach, and which outcomes of a drill fall short of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DETECTED_S = 1.0
NOTICED_S = {"kill-agent": 2.0, "stop-headless": 30.0}
"""Goals for the notice, by fault; DETECTED_S for the others."""
BEYOND_S, CONTROLLER_S = 3.0, 5.0
UNCOUNTED_S = {"steal-port": 5.0}
"""So long the drill itself holds the port that it steals."""


def shortfalls(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The goals that were not met, a sentence each."""
    for one in outcomes:
        fault, noticed, back = one["fault"], one["detection_s"], one["recovery_s"]
        if back is None and one.get("problem"):
            yield f"{fault}: no recovery ({one['problem']})"
        if fault == "kill-controller" and (one["failed"] or back is None or back > CONTROLLER_S):
            yield f"{fault}: {one['failed']} requests failed, back after {back} s, goal {CONTROLLER_S:g} s"
        limit = NOTICED_S.get(fault, DETECTED_S)
        if noticed is not None and noticed > limit:
            yield f"{fault}: noticed after {noticed:.1f} s, the goal is {limit:g} s"
        if back is None or one.get("start_s") is None:
            continue
        beyond = back - one["start_s"] - UNCOUNTED_S.get(fault, 0.0)
        if fault == "stop-headless":
            beyond -= noticed or 0.0  # to tell a hang from a long request takes its time
        if beyond > BEYOND_S:
            yield f"{fault}: {beyond:.1f} s beyond the servers' own start, the goal is {BEYOND_S:g} s"
