"""The result of a check."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raylaunch.errors import RecipeError

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")

CHECK_IDS = frozenset(
    (
        "alloc-conf",
        "api-host",
        "balance-scheduling",
        "clock-skew",
        "cpu-affinity",
        "cross-node-tp",
        "cuda-torchvision",
        "dead-env",
        "dead-flag",
        "devices-too-few",
        "drafter-missing",
        "ep-without-flashcomm1",
        "flag-value",
        "flashcomm1",
        "fused-mc2",
        "gloo-address",
        "hccl-exec-timeout",
        "hccl-intra",
        "hccl-ports-not-reserved",
        "hccl-range",
        "heads",
        "hostname-loopback",
        "image-board",
        "interface-down",
        "ipv6-mooncake",
        "launch-blocking",
        "layer-size",
        "leftovers",
        "loopback-interface",
        "memory-small",
        "mixed-families",
        "model-missing",
        "model-type",
        "neighbour-silent",
        "niced",
        "no-vllm",
        "npu-address-twice",
        "npu-back-to-back",
        "npu-busy",
        "npu-cabling",
        "npu-link-down",
        "npu-mtu-differs",
        "npu-net-health",
        "npu-no-address",
        "npu-not-pinged",
        "npu-smi-hangs",
        "npu-tls-differs",
        "npu-unhealthy",
        "npu-unreachable",
        "npus-per-server",
        "open-files",
        "other-board",
        "pcp-dp",
        "port-busy",
        "port-clash",
        "port-moved",
        "port-range",
        "probe-failed",
        "proxies",
        "same-address",
        "server-too-big",
        "shm-full",
        "shm-small",
        "tuning",
        "unknown-additional-config",
        "unknown-env",
        "unknown-flag",
        "unknown-parser",
        "unreachable",
        "version-mismatch",
        "vllm-ascend-board",
        "weights-differ",
        "weights-incomplete",
        "weights-on-network",
        "weights-too-big",
        "worker-absent",
    )
)
"""The ids of all that the checks can find, written down so that an id can be looked up without loading the checks.
`tools/refusals.py` compares them.
"""


def hint_for(check: str) -> str:
    """What may have been meant by an id that no check has; "" for one that a check has."""
    if check in CHECK_IDS:
        return ""
    close = difflib.get_close_matches(check, sorted(CHECK_IDS), n=1, cutoff=0.5)
    return (
        f"did you mean {close[0]}?"
        if close
        else "`raylaunch check` gives the id of each finding in brackets"
    )


def refuse_unknown(skipped: Mapping[str, str]) -> None:
    """Make sure that `skipped` (id: reason) names checks that exist.

    Raises:
        RecipeError: one does not.
    """
    for check in skipped:
        if hint := hint_for(check):
            raise RecipeError(f"skip_checks: no check has the id {check!r}", todo=hint)


@dataclass(frozen=True)
class Finding:
    """One thing a check saw: how bad, what, where, and what to do about it."""

    id: str
    level: Level
    what: str
    todo: str = ""
    where: str = ""
    """Host address, recipe field or "" for the whole deployment."""
    seen: str = ""
    """The raw value or line the finding rests on."""


def worst(findings: tuple[Finding, ...] | list[Finding]) -> Level | None:
    """The gravest level among `findings`; None when there are none."""
    present = {finding.level for finding in findings}
    return next((level for level in LEVELS if level in present), None)


def forgive(findings: Sequence[Finding], skipped: Mapping[str, str]) -> list[Finding]:
    """Make warnings of the errors whose ids are in `skipped`; its values, the reasons, are kept in the words of all."""
    return [_forgiven(one, skipped[one.id]) if one.id in skipped else one for one in findings]


def _forgiven(one: Finding, reason: str) -> Finding:
    level: Level = "warning" if one.level == "error" else one.level
    return replace(one, level=level, what=f"{one.what} (skipped: {reason})")
