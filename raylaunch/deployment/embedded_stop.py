"""Stops a deployment in every phase, also when its embedded cluster starts or does not answer."""

from __future__ import annotations

import threading
import time

from raylaunch.deployment.cluster_choice import LOCAL, connect_to, unknown_name
from raylaunch.deployment.deployment_handle import Deployment, OnUpdate
from raylaunch.deployment.names import is_name
from raylaunch.errors import ClusterError, RaylaunchError, UnknownDeploymentError
from raylaunch.home import home
from raylaunch.supervise.deployment_status import StopReport

CONNECT_LIMIT_S = 10.0
"""In which `stop` must have a connection to an embedded cluster; otherwise it kills by marker."""
CONTROLLER_WAIT_S = 5.0
"""In which a cluster that was just started gets its controller."""


def stop_deployment(
    name: str, address: str | None = None, on_update: OnUpdate | None = None
) -> StopReport:
    """Stop a deployment in every phase, also while its embedded cluster starts or does not answer.

    An embedded cluster that does not answer is killed by its marker, together with the servers
    below its agents; the report says so.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer, and it is not an embedded one of this machine.
    """
    from raylaunch.runtime.cluster.local_cleanup import cancel_start, kill_local

    if not is_name(name):
        raise unknown_name(name)
    started = time.monotonic()
    if address not in (None, LOCAL) or not _has_record(name):
        connect_to(name, address)
        return Deployment(name).stop(on_update)
    because = ""
    killed = cancel_start(home(), name)
    if killed is None:
        try:
            _connect_in_time(name)
            return Deployment(name).stop(on_update)
        except (ClusterError, UnknownDeploymentError) as error:
            because = f"{error.what}: {error.why}" if error.why else error.what
            killed = kill_local(home(), name)
    return StopReport(
        name,
        killed.processes,
        time.monotonic() - started,
        killed.left,
        local_cluster_stopped=not killed.left,
        killed_because=because,
    )


def _has_record(name: str) -> bool:
    from raylaunch.runtime.cluster.local_cleanup import has_record

    return has_record(home(), name)


def _connect_in_time(name: str) -> None:
    """Connect to an embedded cluster and find its controller, which may be about to be created.

    In a thread: Ray's calls have no time-outs, and wait for minutes when a daemon is frozen.

    Raises:
        ClusterError: the cluster does not answer within CONNECT_LIMIT_S.
        UnknownDeploymentError: it has no controller, and gets none within CONTROLLER_WAIT_S.
    """
    outcome: list[RaylaunchError] = []

    def work() -> None:
        from raylaunch.runtime.controller.controller_client import find_controller

        deadline = time.monotonic() + CONTROLLER_WAIT_S
        try:
            connect_to(name, LOCAL)
            # Between the cluster and its controller `start` needs a second or less.
            while find_controller(name) is None:
                if time.monotonic() >= deadline:
                    raise unknown_name(name)
                time.sleep(0.1)
        except RaylaunchError as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(CONNECT_LIMIT_S)
    if thread.is_alive():
        raise ClusterError(
            f"the embedded Ray cluster of {name} does not answer",
            why=f"no connection within {CONNECT_LIMIT_S:g} s",
        )
    if outcome:
        raise outcome[0]
