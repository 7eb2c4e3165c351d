"""Marked processes that belong to nothing that runs: what a killed guard, or a cluster that is gone, left behind.

A process counts as in service if anything speaks for it: a controller of its deployment, a guard above it (a guard
does not outlive its agent), or the record of its embedded cluster. When in doubt it is left alone.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from raylaunch.node.process.cluster_records import pid_space, read_records
from raylaunch.node.process.log_files import state_root
from raylaunch.node.process.process_markers import end_marked, find_marked
from raylaunch.plan.facts import MarkedProcess

GRACE_S = 5.0
_GUARD = ("node", "process", "guard.py")


@dataclass(frozen=True)
class Running:
    """What a cluster knows: deployments with a controller, and those that lost theirs while agents live on."""

    deployments: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()


def find_leftovers(running: Running, deployment: str | None = None) -> list[MarkedProcess]:
    """Living marked processes of this machine that nothing speaks for, of one deployment or of all."""
    every = [one for one in find_marked() if deployment in (None, deployment_of(one.deployment))]
    return [one for one in every if not _in_service(one, running, deployment)]


def end_leftovers(
    found: Collection[MarkedProcess], grace_s: float = GRACE_S
) -> list[MarkedProcess]:
    """End exactly these processes: SIGTERM, `grace_s` seconds, SIGKILL. Returns those that are left."""
    pids = {one.pid for one in found}
    markers = dict.fromkeys(one.deployment for one in found)
    return [left for marker in markers for left in end_marked(marker, grace_s=grace_s, pids=pids)]


def deployment_of(marker: str) -> str:
    """The deployment behind a marker: "@local-dual-1a2b3c4d" marks the embedded cluster of local-dual."""
    return (
        re.sub(r"-[0-9a-f]{8}$", "", marker.removeprefix("@")) if marker.startswith("@") else marker
    )


def machine() -> tuple[str, str]:
    """What two Ray nodes on the same machine have in common, and its name."""
    return pid_space(), socket.gethostname()


def _in_service(found: MarkedProcess, running: Running, deployment: str | None) -> bool:
    try:
        process = psutil.Process(found.pid)
        record = state_root(
            process.environ()
        )  # another user's records speak for a process of theirs
        if found.deployment.startswith("@"):
            # In doubt it is left alone, unless a person names the deployment.
            in_doubt = deployment is None and _in_damaged_record(found.deployment, record)
            return found.deployment in _recorded(record) or in_doubt
        if found.deployment in running.orphaned:
            return False
        return (
            found.deployment in running.deployments
            or _is_guarded(process)
            or any(
                deployment_of(marker) == found.deployment and find_marked(marker)
                for marker in _recorded(record)
            )
        )
    except psutil.NoSuchProcess:  # it ended while we looked
        return True


def _is_guarded(process: psutil.Process) -> bool:
    return any(_is_guard(each) for each in (process, *process.parents()))


def _is_guard(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(Path(word).parts[-3:] == _GUARD for word in process.cmdline())
    return False


def _recorded(home: Path) -> list[str]:
    """Markers of the embedded clusters of a home, but not of those whose start was interrupted."""
    records, _ = read_records(home)
    return [record.marker for record in records if not record.is_abandoned()]


def _in_damaged_record(marker: str, home: Path) -> bool:
    """Whether the record of this cluster is there, but cannot be read."""
    _, problems = read_records(home)
    return deployment_of(marker) in [problem.deployment for problem in problems]
