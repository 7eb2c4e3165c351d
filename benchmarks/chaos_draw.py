"""Which faults the chaos benchmark draws, and which exit statuses it accepts."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.errors import ClusterError
from raylaunch.runtime.cluster.ray_start import TOO_LATE

RUNNING_KINDS = (
    "kill-server",
    "kill-engine",
    "kill-guard",
    "kill-keeper",
    "kill-agent",
    "kill-controller",
    "kill-server-then-agent",
    "full-log-disk",
    "read-only-bundles",
    "clock-step",
    "slow-disk",
)
START_KINDS = ("stop-during-start", "signal-during-start", "start-with-256-files")
MOUNTING_KINDS = ("full-log-disk", "read-only-bundles")
PRELOADING_KINDS = ("clock-step", "slow-disk")


@dataclass(frozen=True)
class Draw:
    """One round as the seed decides it. `moment` is 0 to 1, of the time that a start takes."""

    number: int
    kind: str
    moment: float
    server: int
    signal: int


def draw(seed: int, rounds: int, kinds: Sequence[str]) -> list[Draw]:
    """Return the rounds for a seed; every kind comes up before any is repeated."""
    dice = random.Random(seed)
    drawn: list[Draw] = []
    while len(drawn) < rounds:
        for kind in dice.sample(kinds, len(kinds)):
            moment = dice.random()
            number = dice.choice((signal.SIGTERM, signal.SIGHUP))
            drawn.append(Draw(len(drawn), kind, moment, dice.randrange(2), number))
    return drawn[:rounds]


def possible_kinds(*, can_mount: bool, can_preload: bool) -> tuple[list[str], dict[str, str]]:
    """Return the kinds for this machine, and why others are left out."""
    left_out = {}
    if not can_mount:
        left_out |= dict.fromkeys(MOUNTING_KINDS, "needs root that may mount a tmpfs")
    if not can_preload:
        left_out |= dict.fromkeys(PRELOADING_KINDS, "needs a C compiler")
    kinds = [kind for kind in (*RUNNING_KINDS, *START_KINDS) if kind not in left_out]
    return kinds, left_out


def start_exit_problem(kind: str, code: int, number: int, text: str = "") -> str:
    """Return why the exit status of a `raylaunch start` is not a documented one; "" when it is.

    Args:
        kind: Of the round.
        code: As `subprocess` reports it.
        number: The signal that was sent, in a round that sends one.
        text: What the command printed.
    """
    allowed: dict[str, tuple[int, ...]] = {
        # 0: ready before the stop or the signal; 7: stopped while it started; 9: stopped since.
        "stop-during-start": (0, 7, 9),
        # 130: interrupted; the signal itself: before or after the part that must not be cut off.
        "signal-during-start": (0, 130, -number),
        # 4, 5, 7: refused, with a reason.
        "start-with-256-files": (0, 4, 5, 7),
    }
    expected = (ClusterError.exit_code,) if TOO_LATE in text else allowed[kind]
    if code in expected:
        return ""
    return f"start exited with {code}, expected one of {expected}"
