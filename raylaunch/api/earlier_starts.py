"""What `start` finds of an earlier start of the same name: it adopts it, or stops it first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from raylaunch.deployment import Deployment, connect_to, stop_deployment
from raylaunch.deployment.deployment_records import read_record
from raylaunch.errors import BusyError, ClusterError, NodeError, UnknownDeploymentError
from raylaunch.home import home
from raylaunch.recipe.load import LoadedRecipe

if TYPE_CHECKING:
    from raylaunch.runtime.controller.guard_search import EarlierStart
    from raylaunch.runtime.controller.launch_request import Request

log = logging.getLogger(__name__)

ANSWER_S = 90.0
"""Longer than Ray needs to restart a controller, and it to adopt its agents."""
SILENCE_S = 5.0


def find_running(
    deployment: str,
    address: str | None,
    *,
    patience_s: float = ANSWER_S,
    on_silence: Callable[[], object] = lambda: None,
) -> Deployment | None:
    """Return the deployment of that name if its controller answers.

    Args:
        deployment: Its name.
        address: Ray cluster, as for `attach`.
        patience_s: How long a controller may take that Ray restarts.
        on_silence: Called every few seconds meanwhile.
    """
    from raylaunch.runtime.cluster.connection import disconnect

    running = Deployment(deployment)
    try:
        connect_to(deployment, address)
        _await_controller(deployment, patience_s, on_silence)
    except (ClusterError, UnknownDeploymentError) as error:
        log.info("%s does not run: %s", deployment, error.what)
        disconnect()  # perhaps from another cluster than the one that it is started on
        return None
    running.adopted = True
    return running


def _await_controller(deployment: str, patience_s: float, on_silence: Callable[[], object]) -> None:
    from raylaunch.runtime.cluster.remote_call import ActorTimeoutError, ActorUnavailableError
    from raylaunch.runtime.controller.controller_client import require_controller

    deadline = time.monotonic() + patience_s
    while True:
        try:
            require_controller(deployment).await_known(SILENCE_S)
        except (ActorTimeoutError, ActorUnavailableError):
            if time.monotonic() >= deadline:
                raise
            on_silence()
        else:
            return


def stop_running(deployment: str, address: str | None) -> None:
    """Stop the deployment of that name, if there is one that has a cluster.

    Raises:
        NodeError: something of it resists.
    """
    from raylaunch.runtime.cluster.connection import disconnect

    try:
        report = stop_deployment(deployment, address)
    except (ClusterError, UnknownDeploymentError) as error:
        log.info("nothing to stop of %s: %s", deployment, error.what)
        return
    finally:
        disconnect()
    if report.left:
        raise NodeError(
            f"{deployment} was not started: the one that runs could not be stopped",
            evidence="\n".join(report.left),
            todo=f"`raylaunch clean --yes --deployment {deployment}`, then start it again",
        )


def request_to_adopt(request: Request, adopt: bool | None) -> Request:
    """Return the request to adopt servers that run without a controller; else the given one.

    They run on with the recipe that they were started with.
    What cannot be adopted is stopped, so that no second server starts beside it.

    Args:
        request: What to start. No controller has the name of the deployment.
        adopt: False stops what runs. None searches only where something may run.

    Raises:
        BusyError: servers of several starts run.
        NodeError: what runs cannot be stopped.
    """
    deployment = request.deployment
    if adopt is None and not _may_run(deployment, request.loaded):
        return request
    from raylaunch.runtime.cluster.clock import SystemClock
    from raylaunch.runtime.controller.guard_search import find_earlier_starts

    clock = SystemClock()
    starts = find_earlier_starts(deployment)
    journals = {} if adopt is False else {one: one.read_journals(clock) for one in starts}
    adoptable = [one for one in journals if journals[one].may_be_adopted(secrets_are_missing=True)]
    if len(adoptable) > 1:
        raise BusyError(
            f"servers of {len(adoptable)} starts of {deployment} run, and only one can be adopted",
            evidence="\n".join(one.describe() for one in adoptable),
            todo="`raylaunch start --fresh` stops all of them first",
        )
    for one in starts:
        if one not in adoptable:
            _stop(deployment, one)
    if not adoptable:
        return request
    log.warning("%s: adopting %s", deployment, adoptable[0].describe())
    known = journals[adoptable[0]].deployment
    loaded = request.loaded if known is None else known.loaded
    return replace(request, loaded=loaded, instance=adoptable[0].instance, adopts=True)


def _may_run(deployment: str, loaded: LoadedRecipe) -> bool:
    """Return whether it is worth to ask every node, which takes a second or two.

    A deployment that was stopped has no record, and its guards no socket.
    """
    from raylaunch.node.process.guard_socket import find_guards

    if find_guards(home(), deployment):
        return True
    has_grace = loaded.recipe.health.orphan_grace_s > 0
    return has_grace and read_record(home(), deployment) is not None


def _stop(deployment: str, start: EarlierStart) -> None:
    """Stop what an earlier start left, on every node.

    Raises:
        NodeError: something resists, or a node does not answer.
    """
    from raylaunch.runtime.controller.guard_search import stop_earlier_start
    from raylaunch.runtime.controller.orphan_search import kill_agents

    log.warning("%s: stopping %s", deployment, start.describe())
    left = stop_earlier_start(deployment, start)
    kill_agents(deployment)
    if left:
        raise NodeError(
            f"servers of an earlier start of {deployment} could not be stopped",
            why="a second server beside them would have neither their NPUs nor their ports",
            evidence="\n".join(left),
            todo=f"`raylaunch clean --yes --deployment {deployment}`, then start it again",
        )
