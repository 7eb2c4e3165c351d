"""Orphans: marked processes that no controller, guard or recorded embedded cluster owns any more.

They are what a killed guard or a lost cluster left behind. A process counts as in service if one of
these exists: a controller of its deployment, a guard above it (which waits for an agent no longer
than its grace), or the record of its embedded cluster. When in doubt it is left alone: another
cluster, or another home, may run a deployment of the same name on this machine.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from raylaunch.home import home, home_of
from raylaunch.node.process.cluster_records import pid_space, read_records
from raylaunch.node.process.guard_socket import find_guards
from raylaunch.node.process.process_markers import find_marked, terminate_marked
from raylaunch.plan.facts import MarkedProcess
from raylaunch.recipe.group_names import GATEWAY_GROUP

GRACE_S = 5.0
_GUARD = ("node", "process", "guard.py")
_CLUSTER_MARKER = re.compile(r"@(.*)-[0-9a-f]{8}", re.DOTALL)


@dataclass(frozen=True)
class KnownDeployments:
    """What a cluster knows of its deployments, by name; instances by their random ids."""

    deployments: tuple[str, ...] = ()
    """With a controller."""
    orphaned: tuple[str, ...] = ()
    """Without a controller, while agents live on."""
    orphaned_instances: tuple[str, ...] = ()
    """Instances of `orphaned`. A server below a living guard is an orphan only if its instance is
    listed here: a name alone may mean another cluster's healthy deployment."""


def find_orphans(known: KnownDeployments, deployment: str | None = None) -> list[MarkedProcess]:
    """Find living marked processes of this machine that nothing owns, of one deployment or all."""
    orphans = []
    known = replace(
        known, orphaned_instances=(*known.orphaned_instances, *_ownerless(known, deployment))
    )
    for found in find_marked():
        wanted = deployment in (None, deployment_of(found.deployment))
        if wanted and not _in_service(found, known, deployment):
            orphans.append(found)
    return orphans


def _ownerless(known: KnownDeployments, deployment: str | None) -> list[str]:
    """Return the instances whose guards wait for an agent, of a deployment that a person named.

    In doubt they are left alone: the agents of another cluster may come back. A guard that waits
    for too long stops its server itself.
    """
    if deployment is None or deployment in known.deployments:
        return []
    guards = find_guards(home(), deployment)
    owned = {guard.instance for guard in guards if guard.owner is not None}
    return sorted({guard.instance for guard in guards} - owned)


def terminate_orphans(
    found: Collection[MarkedProcess],
    grace_s: float = GRACE_S,
) -> list[MarkedProcess]:
    """Terminate exactly these: SIGTERM, `grace_s` seconds, SIGKILL; return what is left."""
    pids_of: dict[tuple[str, str], set[int]] = {}
    for process in found:
        owner = (process.deployment, process.instance)
        pids = pids_of.setdefault(owner, set())
        pids.add(process.pid)
    left = []
    for (deployment, instance), pids in pids_of.items():
        left += terminate_marked(deployment, instance=instance, grace_s=grace_s, pids=pids)
    return left


def deployment_of(marker: str) -> str:
    """Return the deployment of a marker.

    "@local-dual-1a2b3c4d" marks the embedded cluster of local-dual.
    """
    match = _CLUSTER_MARKER.fullmatch(marker)
    return match[1] if match else marker.removeprefix("@")


def machine_identity() -> tuple[str, str]:
    """Return a key that two Ray nodes on the same machine have in common, and the host name."""
    return pid_space(), socket.gethostname()


def _in_service(found: MarkedProcess, known: KnownDeployments, deployment: str | None) -> bool:
    try:
        process = psutil.Process(found.pid)
        # The home of the process, not ours: a process of another user has records of its own.
        home = home_of(process.environ())
        if found.deployment.startswith("@"):
            # In doubt it is left alone, unless a person names the deployment.
            in_doubt = deployment is None and _in_damaged_record(found.deployment, home)
            return found.deployment in _recorded_markers(home) or in_doubt
        if found.group == GATEWAY_GROUP:
            return _is_gateway_in_service(found, known, home, deployment)
        if _is_guarded(process):
            return not _is_orphaned_instance(found, known)
        if found.deployment in known.orphaned:
            return False
        if found.deployment in known.deployments:
            return True
        return _has_cluster(found.deployment, home)
    except psutil.Error:  # it exited meanwhile, or its user has changed
        return True


def _is_gateway_in_service(
    found: MarkedProcess, known: KnownDeployments, home: Path, deployment: str | None
) -> bool:
    """Return whether a process of a gateway is owned, or in doubt: no guard is above it.

    One without an owner stops by itself. So it is an orphan only where the agents of its start are,
    or where a person names a deployment that neither a controller nor an embedded cluster has.
    """
    if found.deployment in known.orphaned:
        starts = {instance.partition(".")[0] for instance in known.orphaned_instances}
        return found.instance not in starts
    if found.deployment in known.deployments:
        return True
    return deployment is None or _has_cluster(found.deployment, home)


def _is_orphaned_instance(found: MarkedProcess, known: KnownDeployments) -> bool:
    return found.instance in known.orphaned_instances


def _has_cluster(deployment: str, home: Path) -> bool:
    """Return whether an embedded cluster of the deployment is recorded and has processes.

    Between two attempts its servers may have no guard.
    """
    markers = _recorded_markers(home)
    own = [marker for marker in markers if deployment_of(marker) == deployment]
    return any(find_marked(marker) for marker in own)


def _is_guarded(process: psutil.Process) -> bool:
    """Return whether the process is a guard, a keeper, or below one.

    /proc may hide the ancestors of another user (hidepid). A guard has its server's user, so the
    first hidden one is above every guard.
    """
    current: psutil.Process | None = process
    while current is not None:
        try:
            if _is_guard_command(current.cmdline()):
                return True
            current = current.parent()
        except (psutil.AccessDenied, psutil.ZombieProcess):
            return False
    return False


def _is_guard_command(command: list[str]) -> bool:
    paths = [Path(word) for word in command]
    return any(path.parts[-3:] == _GUARD for path in paths)


def _recorded_markers(home: Path) -> list[str]:
    """Return the markers of a home's embedded clusters, except of interrupted starts."""
    records, _ = read_records(home)
    return [record.marker for record in records if not record.is_abandoned()]


def _in_damaged_record(marker: str, home: Path) -> bool:
    """Return whether the record of this cluster is there, but cannot be read."""
    _, problems = read_records(home)
    return deployment_of(marker) in [problem.deployment for problem in problems]
