"""What a drill asks the controller: through a handle of its own each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from raylaunch.errors import ClusterError, UnknownDeploymentError
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.controller_client import (
    ControllerClient,
    find_controller,
    require_controller,
)
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.deployment_summary import narrow

P = ParamSpec("P")
T = TypeVar("T")


def ask(
    deployment: str,
    method: Callable[Concatenate[ControllerClient, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call a method of the deployment's controller.

    Raises:
        UnknownDeploymentError: the deployment was stopped meanwhile.
    """
    try:
        return method(require_controller(deployment), *args, **kwargs)
    except ClusterError:
        if find_controller(deployment) is None:
            raise UnknownDeploymentError(f"{deployment} was stopped") from None
        raise


def events_of(key: GroupKey, after: int = 0) -> list[Event]:
    """Return the events of the group and of the whole deployment."""
    events = ask(key.deployment, ControllerClient.events, after)
    return [event for event in events if event.group in ("", key.group)]


def status_of(key: GroupKey) -> Status:
    """Return the status of the group."""
    return narrow(ask(key.deployment, ControllerClient.status), key.group)
