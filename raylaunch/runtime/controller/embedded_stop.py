"""Stops a deployment on an embedded cluster, also while Ray starts and when Ray is dead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raylaunch.errors import ClusterError, RaylaunchError, UnknownDeploymentError
from raylaunch.node.process.cluster_records import read_record
from raylaunch.runtime.cluster.connection import connect, disconnect
from raylaunch.runtime.cluster.local_cleanup import cancel_start, kill_local
from raylaunch.runtime.cluster.local_cluster import find_local
from raylaunch.runtime.controller.controller_client import find_controller, stop_controller
from raylaunch.supervise.deployment_status import Status, StopReport

log = logging.getLogger(__name__)

CONNECT_LIMIT_S = 10.0
"""In which Ray must answer; otherwise its processes are killed by their marker."""
CONTROLLER_WAIT_S = 5.0
"""Between the cluster and its controller `start` needs a second or less."""
POLL_S = 0.1


def stop_embedded(
    home: Path, name: str, on_update: Callable[[Status], None] | None = None
) -> StopReport | None:
    """Stop a deployment and its embedded cluster; None when this home has no cluster for it.

    A start that is under way is cancelled. A cluster that does not answer is killed by its marker,
    together with the servers below its agents; the report says so.

    Raises:
        ClusterError: the record of the cluster cannot be read.
    """
    if read_record(home, name) is None:
        return None
    started = time.monotonic()
    because = ""
    killed = cancel_start(home, name)
    if killed is None:
        try:
            _connect(home, name)
            report = stop_controller(find_controller(name), on_update)
        except (ClusterError, UnknownDeploymentError) as error:
            because = f"{error.what}: {error.why}" if error.why else error.what
            log.warning("killing the embedded cluster of %s by its marker: %s", name, because)
            killed = kill_local(home, name)
        else:
            disconnect()
            left = kill_local(home, name).left
            return replace(report, left=(*report.left, *left), local_cluster_stopped=not left)
    return StopReport(
        deployment=name,
        processes_ended=killed.processes,
        seconds=time.monotonic() - started,
        left=killed.left,
        local_cluster_stopped=not killed.left,
        killed_because=because,
    )


def _connect(home: Path, name: str) -> None:
    """Connect to the cluster and wait for its controller, which may be about to be created.

    In a thread: Ray's calls have no time-outs, and wait for minutes when a daemon is frozen.

    Raises:
        ClusterError: the cluster does not answer within CONNECT_LIMIT_S.
        UnknownDeploymentError: it has no controller, and gets none within CONTROLLER_WAIT_S.
    """
    errors: list[RaylaunchError] = []

    def work() -> None:
        try:
            _connect_slowly(home, name)
        except RaylaunchError as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CONNECT_LIMIT_S)
    if thread.is_alive():
        raise ClusterError(
            f"the embedded Ray cluster of {name} does not answer",
            why=f"no connection within {CONNECT_LIMIT_S:g} s",
        )
    if errors:
        raise errors[0]


def _connect_slowly(home: Path, name: str) -> None:
    cluster = find_local(home, name)
    if cluster is None:
        raise UnknownDeploymentError(f"the embedded cluster of {name} was stopped meanwhile")
    connect(cluster.address, token_file=cluster.token_file)
    deadline = time.monotonic() + CONTROLLER_WAIT_S
    while find_controller(name) is None:
        if time.monotonic() >= deadline:
            raise UnknownDeploymentError(f"the embedded cluster of {name} has no controller")
        time.sleep(POLL_S)
