"""Follows a deployment until it stops or fails, and keeps systemd informed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from raylaunch.deployment.deployment_handle import OnUpdate
from raylaunch.deployment.service_manager import ServiceManager
from raylaunch.errors import (
    ClusterError,
    LaunchError,
    RaylaunchError,
    UnknownDeploymentError,
    from_dict,
)
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.deployment_summary import is_settled
from raylaunch.supervise.state import Phase

RETRY_S = 2.0
QUIET_S = 30.0
"""Hosts that start together need a while: only then the missing ones are reported."""

WaitChange = Callable[[int], tuple[int, Status]]
"""Returns the status as soon as it is newer than the given version, or after a short time."""
OnWait = Callable[[str], None]


@dataclass(frozen=True)
class Followed:
    """How a deployment that was followed failed."""

    error: RaylaunchError
    was_ready: bool

    @property
    def was_stopped(self) -> bool:
        """Whether another command has stopped it."""
        return isinstance(self.error, UnknownDeploymentError)


def follow_changes(
    wait_change: WaitChange, manager: ServiceManager, on_update: OnUpdate | None
) -> Followed:
    """Return when the deployment has failed or was stopped.

    A deployment that serves with some of its groups counts as ready.

    Raises:
        ClusterError: the controller does not answer.
    """
    version = -1
    is_ready = False
    while True:
        try:
            version, status = wait_change(version)
        except UnknownDeploymentError as error:
            return Followed(error, is_ready)
        if on_update is not None:
            on_update(status)
        manager.notify_status(describe(status))
        manager.notify_alive()
        if not is_ready and _serves(status):
            is_ready = True
            manager.notify_ready()
        if status.phase in (Phase.FAILED, Phase.STOPPED):
            return Followed(_explain(status), is_ready)


def describe(status: Status) -> str:
    """Return the phase, and what is still missing, as one line."""
    text = f"{status.deployment} is {status.phase.value}, attempt {status.attempt}"
    if status.waiting_for:
        text += f"; waiting for: {'; '.join(status.waiting_for)}"
    return text


class HostWatch:
    """Watches whether the cluster answers and has enough of some hosts.

    Args:
        hosts: Their addresses; may be empty, to watch the cluster alone.
        needed: How many of them are enough; all of them, if there are fewer.
        list_alive: Returns the addresses of the nodes that are alive; raises ClusterError while
            the cluster does not answer.
        clock: Seconds.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        needed: int,
        list_alive: Callable[[], Collection[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = hosts
        self._needed = needed
        self._list_alive = list_alive
        self._clock = clock
        self._started = clock()
        self.reported = ""

    def check(self, report: OnWait) -> bool:
        """Return whether enough hosts are there.

        Args:
            report: Called with what is missing, 30 s after the watch has begun and whenever it
                changes after that.
        """
        missing = self._find_missing()
        is_late = self._clock() - self._started >= QUIET_S
        if missing and is_late and missing != self.reported:
            report(missing)
            self.reported = missing
        return not missing

    @property
    def summary(self) -> str:
        """What was waited for and for how long, if anything was reported; else ""."""
        if not self.reported:
            return ""
        waited_s = self._clock() - self._started
        return f"the start began after {waited_s:.0f} s of {self.reported}"

    def _find_missing(self) -> str:
        hosts = self._hosts
        try:
            alive = self._list_alive()
        except ClusterError as error:
            return f"waiting for the Ray cluster: {error.what}"
        missing = [host for host in hosts if host not in alive]
        lacking = min(self._needed, len(hosts)) - (len(hosts) - len(missing))
        if lacking <= 0:
            return ""
        which = f"{lacking} of " if lacking < len(missing) else ""
        return f"waiting for {which}{', '.join(missing)} to join the Ray cluster"


def wait_for_hosts(
    watch: HostWatch, report: OnWait, *, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Wait without end until enough hosts are there; return the summary of the watch."""
    while not watch.check(report):
        sleep(RETRY_S)
    return watch.summary


def _serves(status: Status) -> bool:
    is_partly_ready = status.phase is Phase.DEGRADED and is_settled(status)
    return status.phase is Phase.READY or is_partly_ready


def _explain(status: Status) -> RaylaunchError:
    if status.error:
        return from_dict(status.error)
    if status.phase is Phase.STOPPED:
        return UnknownDeploymentError(f"{status.deployment} was stopped by another command")
    return LaunchError(f"{status.deployment} failed")
