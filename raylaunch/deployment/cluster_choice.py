"""Which cluster a deployment runs on: its embedded one, or the one that is named."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.deployment.awaited_hosts import START_HOST, read_waiting
from raylaunch.deployment.deployment_records import read_record
from raylaunch.deployment.names import check_address, is_name, shortened
from raylaunch.errors import ClusterError, NodeError, UnknownDeploymentError
from raylaunch.home import home
from raylaunch.interrupts import StartUndone
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe

if TYPE_CHECKING:
    from raylaunch.runtime.cluster.local_cluster import LocalCluster

log = logging.getLogger(__name__)

LOCAL = "local"
"""Address that always means an embedded cluster of our own."""


def writable_home() -> Path:
    """Return `home()` after making sure that it is a folder that can be written to.

    Raises:
        NodeError: it is not; the message names it.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        # Includes what is no folder (EEXIST, ENOTDIR) and what is too long (ENAMETOOLONG).
        raise _unusable(folder, error.strerror or str(error)) from error
    if not is_writable:
        raise _unusable(folder, "it is not writable for this user")
    return folder


def _unusable(folder: Path, why: str) -> NodeError:
    source = "RAYLAUNCH_HOME" if os.environ.get("RAYLAUNCH_HOME") else "raylaunch's folder"
    return NodeError(
        f"{source} {shortened(str(folder), 300)} cannot be used",
        why=why,
        todo="set RAYLAUNCH_HOME to a folder that this user can write to",
    )


def embedded_names() -> list[str]:
    """Return the names of the deployments on embedded clusters of this machine."""
    folder = home() / "clusters"
    try:
        names = sorted(path.stem for path in folder.glob("*.json"))
    except OSError as error:
        log.warning("cannot read %s: %s", folder, error)
        return []
    return [name for name in names if is_name(name)]


def find_embedded(deployment: str) -> LocalCluster | None:
    """Return the embedded cluster of a deployment, None when there is none.

    Raises:
        NodeError: its record cannot be read.
    """
    from raylaunch.runtime.cluster.local_cluster import find_local

    folder = home()
    try:
        return find_local(folder, deployment)
    except (OSError, ValueError, KeyError, TypeError) as error:
        record = folder / "clusters" / f"{deployment}.json"
        raise NodeError(
            f"the record {shortened(str(record), 300)} cannot be read",
            why=str(error),
            todo="remove that file; `raylaunch clean` finds the processes of its cluster",
        ) from error


def choose_address(address: str | None) -> str:
    """Return the GCS address that `address` means here; "" when there is no cluster.

    Raises:
        ClusterError: `address` or RAY_ADDRESS is malformed.
    """
    from raylaunch.runtime.cluster.connection import recorded_cluster

    from_environment = os.environ.get("RAY_ADDRESS") or "auto"
    if address is not None:
        check_address(address, "--address")
    else:
        check_address(from_environment, "RAY_ADDRESS")
    named = address or from_environment
    return (recorded_cluster() or "") if named == "auto" else named


def connect_to(deployment: str, address: str | None) -> None:
    """Connect to the cluster of a deployment: its embedded one, or the one that `address` names.

    Args:
        deployment: Name of the deployment; "" to connect to the cluster alone.
        address: As for `attach`.

    Raises:
        UnknownDeploymentError: there is no cluster that could run it.
        NotReadyError: its embedded cluster is being started.
        ClusterError: the named cluster does not answer.
        NodeError: the record of its embedded cluster cannot be read.
    """
    from raylaunch.runtime.cluster.connection import connect

    chosen = choose_address(address)
    local = None
    if deployment and address in (None, LOCAL):
        from raylaunch.runtime.cluster.local_cleanup import refuse_without_ray
        from raylaunch.runtime.cluster.local_cluster import await_gcs, require_started

        local = require_started(home(), deployment)
    if local is not None:
        await_gcs(local)
        try:
            connect(local.address, token_file=local.token_file)
        except ClusterError:
            refuse_without_ray(home(), deployment)
            raise
        return
    if address == LOCAL:
        raise unknown_name(deployment)
    try:
        connect(address)
    except ClusterError as error:
        raise _explain(error, deployment, address, chosen) from error


def _explain(
    error: ClusterError, deployment: str, address: str | None, chosen: str
) -> ClusterError | UnknownDeploymentError:
    """Say what this machine knows of a deployment whose cluster does not answer."""
    if deployment and read_waiting(home(), deployment):
        return unknown_name(deployment)
    record = read_record(home(), deployment) if deployment else None
    if record is not None and chosen in ("", record.address):
        return ClusterError(
            f"{deployment} does not answer: {error.what}",
            why=f"{deployment} was {record.origin}",
            todo=record.todo,
        )
    is_named = address is not None or "RAY_ADDRESS" in os.environ
    if deployment and not is_named:
        return unknown_name(deployment)
    return error


def start_embedded(deployment: str, loaded: LoadedRecipe) -> bool:
    """Start an embedded cluster for all groups of the recipe and connect to it.

    Return whether it was started again around servers that had outlived it.

    Raises:
        NodeError: RAYLAUNCH_HOME cannot be used.
        ClusterError: Ray did not come up.
        StartUndone: Ctrl-C.
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.cluster.local_cluster import start_local

    groups = [spec.loaded.recipe for spec in expand_groups(loaded)]
    cluster = start_local(
        writable_home(),
        deployment,
        nodes=sum(group.parallel.servers for group in groups),
        npus_per_node=max(group.npus_per_node for group in groups),
        secret_names=loaded.recipe.secrets,
    )
    try:
        connect(cluster.address, token_file=cluster.token_file)
    except KeyboardInterrupt as interrupt:
        if cluster.is_revived:
            raise
        raise StartUndone(stop_embedded(deployment)) from interrupt
    except BaseException:
        # A cluster without a controller would be an orphan. Around servers it is not.
        if not cluster.is_revived:
            stop_embedded(deployment)
        raise
    return cluster.is_revived


def stop_embedded(deployment: str) -> list[str]:
    """Stop the embedded cluster of a deployment; returns the processes that survived."""
    from raylaunch.runtime.cluster.local_cleanup import stop_local

    return stop_local(home(), deployment)


def unknown_name(name: str) -> UnknownDeploymentError:
    """Return the error for a deployment that is not known, or that waits to be started."""
    waiting = read_waiting(home(), name)
    if waiting:
        return UnknownDeploymentError(
            f"{shortened(name)} is not started yet: `start --follow` on this machine is {waiting}",
            todo=START_HOST,
        )
    return UnknownDeploymentError(
        f"there is no deployment named {shortened(name)!r}",
        todo="`raylaunch list --running` shows those of this cluster; "
        "--address names another cluster",
    )
