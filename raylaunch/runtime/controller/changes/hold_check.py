"""Before an upgrade in place: whether the gateway can hold requests for as long as it takes."""

from __future__ import annotations

from collections.abc import Sequence

from raylaunch.errors import RecipeError
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.supervise.state import Phase
from raylaunch.supervise.upgrade_plan import Step, find_gap


def refuse_short_hold(steps: Sequence[Step], groups: GroupSet, gateway: Gateway) -> None:
    """Refuse an upgrade in which requests would wait for longer than the gateway holds them.

    Args:
        steps: Of the upgrade.
        groups: Those that run.
        gateway: The settings that will be in force.

    Raises:
        RecipeError: the last start of the only group took longer than `gateway.hold_s`.
    """
    serving = {one.name: one for one in groups if one.journal.phase is Phase.READY}
    gap = find_gap(steps, serving)
    start_s = None if gap is None else serving[gap].journal.start_s
    if start_s is None or start_s <= gateway.hold_s:
        return
    raise RecipeError(
        f"requests would fail during this upgrade: no group serves while {gap} is replaced",
        why=f"its last start took {start_s:.0f} s, and the gateway holds requests for"
        f" {gateway.hold_s:g} s; there are no free NPUs for the new group beside the old one",
        todo=f"add `--set gateway.hold_s={round_up(2 * start_s)}`: it is in force before the"
        " group is removed",
    )


def round_up(seconds: float) -> int:
    """Return whole minutes, in seconds."""
    return 60 * (int(seconds // 60) + 1)
