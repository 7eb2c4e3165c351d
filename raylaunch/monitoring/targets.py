"""What Prometheus scrapes, as a file for its `file_sd_configs`: one job finds all of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from raylaunch.plan.launch_plan import LaunchPlan

KIND = "raylaunch_target"
"""The label that says what a target is: raylaunch, vllm or ray."""


@dataclass(frozen=True)
class Target:
    """One address to scrape, `host:port`."""

    address: str
    kind: str
    group: str = ""
    server: int | None = None


def vllm_targets(plans: Iterable[LaunchPlan]) -> list[Target]:
    """Return the API servers: each exposes the metrics of its ranks."""
    found = []
    for plan in plans:
        address = urlsplit(plan.endpoint).netloc
        if address:
            found.append(Target(address, "vllm", plan.group, plan.primary.index))
    return found


def write_targets(deployment: str, targets: Sequence[Target]) -> str:
    """Return the file of one deployment."""
    entries = []
    for target in targets:
        labels = {"deployment": deployment, KIND: target.kind}
        # Not `server`, `group`: our own metrics carry labels of these names.
        if target.group:
            labels["raylaunch_group"] = target.group
        if target.server is not None:
            labels["raylaunch_server"] = str(target.server)
        entries.append({"targets": [target.address], "labels": labels})
    return json.dumps(entries, indent=2) + "\n"


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
