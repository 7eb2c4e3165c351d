"""Findings: the results of checks."""

from __future__ import annotations

import difflib
import re
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
        "dense-data-parallel",
        "devices-too-few",
        "drafter-missing",
        "engine-deprecated",
        "engine-differs",
        "engine-not-asked",
        "engine-refuses",
        "engine-warns",
        "ep-without-flashcomm1",
        "fallback",
        "fallback-refused",
        "fault-tolerance",
        "flag-value",
        "flashcomm1",
        "fused-mc2",
        "gateway-certificate",
        "gateway-haproxy",
        "gateway-key",
        "gateway-port",
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
        "open-api",
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
        "secret-in-recipe",
        "server-too-big",
        "shm-full",
        "shm-small",
        "tracing-package",
        "tuning",
        "unknown-additional-config",
        "unknown-env",
        "unknown-flag",
        "unknown-parser",
        "unreachable",
        "version-mismatch",
        "vllm-ascend-board",
        "vllm-ascend-pair",
        "weights-differ",
        "weights-incomplete",
        "weights-on-network",
        "weights-too-big",
        "worker-absent",
    )
)
"""Ids of all findings, listed so that an id can be looked up without importing the checks.

`tools/refusals.py` compares the list with the checks.
"""

# C0 and C1 control characters and DEL, except tab and newline.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def strip_control_characters(text: str) -> str:
    """Remove C0 and C1 control characters and DEL from foreign text, except tab and newline.

    Names, log lines and tool output are written by others. An escape sequence in them could
    rewrite an operator's terminal or, with OSC 52, the clipboard.
    """
    return _CONTROL_CHARACTERS.sub("", text)


def hint_for(check: str) -> str:
    """Return the id that was probably meant by an unknown id; "" for a known one."""
    if check in CHECK_IDS:
        return ""
    close = difflib.get_close_matches(check, sorted(CHECK_IDS), n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return "`raylaunch check` gives the id of each finding in brackets"


def refuse_unknown_ids(skipped: Mapping[str, str]) -> None:
    """Verify that `skipped` (id: reason) names existing checks.

    Raises:
        RecipeError: One does not exist.
    """
    for check in skipped:
        if hint := hint_for(check):
            raise RecipeError(f"skip_checks: no check has the id {check!r}", todo=hint)


@dataclass(frozen=True)
class Finding:
    """One result of a check: level, what, where, and what to do.

    Control characters are removed from all texts: they quote recipes, tools and logs.
    """

    id: str
    level: Level
    what: str
    todo: str = ""
    where: str = ""
    """Host address, recipe field or "" for the whole deployment."""
    seen: str = ""
    """The raw value or line that the finding rests on."""

    def __post_init__(self) -> None:
        """Remove control characters from what others wrote."""
        for name in ("what", "todo", "where", "seen"):
            # The class is frozen, so the plain assignment is not available here.
            object.__setattr__(self, name, strip_control_characters(getattr(self, name)))


def worst(findings: tuple[Finding, ...] | list[Finding]) -> Level | None:
    """Return the most severe level among `findings`; None when there are none."""
    present = {finding.level for finding in findings}
    return next((level for level in LEVELS if level in present), None)


def waive(findings: Sequence[Finding], skipped: Mapping[str, str]) -> list[Finding]:
    """Turn errors whose ids are in `skipped` into warnings.

    The values of `skipped`, the reasons, are appended to the text of each such finding.
    """
    return [
        _waive_one(finding, skipped[finding.id]) if finding.id in skipped else finding
        for finding in findings
    ]


def _waive_one(finding: Finding, reason: str) -> Finding:
    level = finding.level
    if level == "error":
        level = "warning"
    what = f"{finding.what} (skipped: {reason})"
    return replace(finding, level=level, what=what)
