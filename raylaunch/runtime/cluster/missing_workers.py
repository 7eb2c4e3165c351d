"""Workers of `ray up` that have not joined the cluster, from what it left on the head."""

from __future__ import annotations

from pathlib import Path

from raylaunch.checks.join_checks import MissingWorkers, find_missing_workers
from raylaunch.errors import ClusterError, ClusterFileError
from raylaunch.recipe.cluster_yaml import read_cluster_file
from raylaunch.runtime.cluster.connection import (
    alive_nodes,
    read_own_file,
    recorded_cluster,
    session_folder,
)

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""`ray up` leaves this for the autoscaler: its file, completed."""
LOGS = ("monitor.log", "monitor.out", "monitor.err")
TAIL_BYTES = 200_000


def missing_workers() -> MissingWorkers | None:
    """Find the workers of `ray up` that the connected cluster lacks.

    None when all have joined, or when this process does not run on the head of that cluster.
    """
    import ray

    try:
        text = Path(BOOTSTRAP).expanduser().read_text(encoding="utf-8")
        wanted = read_cluster_file(text, BOOTSTRAP)
        recorded = recorded_cluster()
    except (OSError, UnicodeDecodeError, ClusterFileError, ClusterError):
        return None
    # An embedded cluster on the same machine is not the one that `ray up` started.
    if recorded != ray.get_runtime_context().gcs_address:
        return None
    folder = session_folder() / "session_latest" / "logs"
    alive = [node["NodeManagerAddress"] for node in alive_nodes()]
    logs = {name: _tail(folder / name) for name in LOGS}
    return find_missing_workers(wanted, alive, logs, str(folder))


def _tail(path: Path) -> str:
    try:
        return read_own_file(path, TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
