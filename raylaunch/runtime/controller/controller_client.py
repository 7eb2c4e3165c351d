"""The driver's side of a controller: making it, finding it by name, asking it across its restarts, ending it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from raylaunch.errors import BusyError, ClusterError, PlacementError, UnknownDeploymentError
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import CONTROLLER
from raylaunch.supervise.deployment_status import Status, StopReport
from raylaunch.supervise.state import Phase

if TYPE_CHECKING:
    from raylaunch.runtime.agent.gang import Gang

RESTART_PATIENCE_S = 60.0
"""How long a question waits for a controller that Ray is starting again."""
RETRY_PAUSE_S = 0.2
AT_ONCE_S = 1.0
"""In which Ray gives a reservation that it can give: 10 ms on two idle nodes (measured). It counts whole seconds."""
HEAD, HEAD_SHARE = "node:__internal_head__", 0.001
"""Keeps the controller on the head node, as Ray Serve does with its own: no cluster lives without its head, and a
worker that is cut off takes no controller along. A soft node affinity is not enough: Ray was seen to place the
controller on a worker, and 62 s passed until it was back after that worker's network had been cut.
"""


def create_controller(request: Request, secrets: Mapping[str, str]) -> None:
    """Make the detached controller and let it begin. What cannot be handed over to it is taken back.

    Raises:
        BusyError: somebody else made one of that name at the same moment, or an accident left agents of that name.
        ClusterError: the controller does not answer.
    """
    import ray

    from raylaunch.runtime.agent.gang import Gang
    from raylaunch.runtime.controller.controller import Controller

    actor = ray.remote(packaged(Controller)).options(
        name=CONTROLLER + request.deployment,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        resources={HEAD: HEAD_SHARE},
    )
    try:
        controller = actor.remote(request)
    except ValueError as error:  # Ray: the name is taken
        raise BusyError(
            f"a deployment named {request.deployment!r} is being started by somebody else",
            todo=f"`raylaunch status {request.deployment}` follows it",
        ) from error
    gang = Gang(request.deployment)
    try:
        _assemble(gang, request)
        ask(controller, "begin", secrets, gang, timeout_s=RESTART_PATIENCE_S)
    except BaseException:
        ray.kill(controller, no_restart=True)
        _dissolve(gang)
        raise


def _assemble(gang: Gang, request: Request) -> None:
    """Put the agents into their places while the controller starts: all of them need the same half second.

    What cannot be had at once is left to the controller, which waits for it, or says what is missing.
    """
    from raylaunch.runtime.cluster import placement
    from raylaunch.runtime.controller.planning import put_primary_first

    try:
        gang.group = placement.reserve(
            request.deployment, request.loaded.recipe, timeout_s=AT_ONCE_S
        )
        gang.create(put_primary_first(placement.slots(gang.group), request.primary))
    except PlacementError:
        _dissolve(gang)


def _dissolve(gang: Gang) -> None:
    from raylaunch.runtime.cluster import placement

    gang.kill()
    if gang.group is not None:
        placement.release(gang.group)
        gang.group = None


def find_controller(deployment: str) -> Any | None:  # noqa: ANN401
    """The controller of a deployment, None when there is none."""
    import ray

    try:
        return ray.get_actor(CONTROLLER + deployment, NAMESPACE)
    except ValueError:
        return None


def ask(controller: Any, question: str, *args: Any, timeout_s: float) -> Any:  # noqa: ANN401
    """Call a method of the controller, again while Ray restarts it.

    Raises:
        ClusterError: it did not answer in time.
    """
    import ray

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(
                getattr(controller, question).remote(*args),
                timeout=max(0.1, deadline - time.monotonic()),
            )
        except ray.exceptions.ActorUnavailableError as error:
            problem: Exception = error
        except ray.exceptions.ActorDiedError as error:
            raise _silent(error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise _silent(error) from error
        if time.monotonic() >= deadline:
            raise _silent(problem) from problem
        time.sleep(RETRY_PAUSE_S)  # Ray restarts it by itself, and tells nobody


def _silent(error: Exception) -> ClusterError:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return ClusterError(
        "the controller of the deployment does not answer",
        why=first[0],
        todo="`ray status` shows whether the cluster is alive; the servers run on without their controller",
    )


def stop_controller(
    controller: Any,  # noqa: ANN401
    on_update: Callable[[Status], None] | None = None,
) -> StopReport:
    """Have everything ended, then end the controller itself; a controller that dies meanwhile is asked again.

    Raises:
        UnknownDeploymentError: somebody else stopped it at the same moment, and was first.
    """
    import ray

    while True:
        try:
            report = _stop_once(controller, on_update)
        except ray.exceptions.ActorUnavailableError:
            time.sleep(RETRY_PAUSE_S)  # Ray restarts it by itself, and tells nobody
        except ray.exceptions.ActorDiedError as error:
            raise UnknownDeploymentError(
                "the deployment was stopped by another command at the same moment"
            ) from error
        else:
            ray.kill(controller, no_restart=True)
            return report


def _stop_once(controller: Any, on_update: Callable[[Status], None] | None) -> StopReport:  # noqa: ANN401
    import ray

    pending = controller.stop.remote()
    version = -1
    while on_update is not None and not ray.wait([pending], timeout=0)[0]:
        version, status = ray.get(controller.wait_change.remote(version, 1.0))
        on_update(status)
        if status.phase is Phase.STOPPED:
            break
    report: StopReport = ray.get(pending)
    return report
