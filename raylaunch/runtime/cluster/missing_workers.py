"""What `ray up` left on the head, for the question whether all of its workers have joined."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from raylaunch.checks.join_checks import Absent, find_absent
from raylaunch.errors import ClusterFileError
from raylaunch.recipe.cluster_yaml import read_cluster_file
from raylaunch.runtime.cluster.connection import alive_nodes, recorded_cluster

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""`ray up` leaves this for the autoscaler: its file, completed."""
LOGS = ("monitor.log", "monitor.out", "monitor.err")
TAIL_BYTES = 200_000


def absent_workers() -> Absent | None:
    """The workers of `ray up` that the connected cluster lacks; None when all are there, or this is not its head."""
    import ray

    try:
        told = read_cluster_file(
            Path(BOOTSTRAP).expanduser().read_text(encoding="utf-8"), BOOTSTRAP
        )
    except (OSError, UnicodeDecodeError, ClusterFileError):
        return None
    # An embedded cluster on the same machine is not the one that `ray up` brought up.
    if recorded_cluster() != ray.get_runtime_context().gcs_address:
        return None
    folder = (
        Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        / "ray"
        / "session_latest"
        / "logs"
    )
    alive = [node["NodeManagerAddress"] for node in alive_nodes()]
    return find_absent(told, alive, {name: _tail(folder / name) for name in LOGS}, str(folder))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
