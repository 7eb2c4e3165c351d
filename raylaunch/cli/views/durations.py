"""Durations as words, and what a deployment waits for, by the clock."""

from __future__ import annotations

from collections.abc import Iterator

from raylaunch.supervise.deployment_status import Status


def duration(seconds: float) -> str:
    """Write seconds for people: "4.2 s", "3 min 12 s", "2 h 05 min"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def countdowns(status: Status) -> Iterator[str]:
    """Yield how long each group that backs off waits until it launches again."""
    for group in status.groups:
        if group.relaunch_at is not None:
            left = duration(group.relaunch_at - status.now)
            yield f"{group.name}: next launch in {left}"
