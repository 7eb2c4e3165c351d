"""Drills that break Ray itself, below the drill: it leaves the cluster before, and returns after.

The servers run on, and requests are sent to them all the while. The deployment is under control
again once its controller answers, and each server has an agent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raylaunch.errors import RaylaunchError
from raylaunch.runtime.agent.fault_injection import LEAVE_S
from raylaunch.runtime.cluster.connection import disconnect
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.controller_client import ControllerClient
from raylaunch.runtime.drill.questions import ask, events_of, status_of
from raylaunch.supervise.deployment_status import Event, Status
from raylaunch.supervise.drills import Fault, Outcome
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

POLL_S = 1.0
PATIENCE_S = 300.0
"""Nothing of Ray that is not back by then comes back."""
CONTROL_S = 60.0
"""Ray, and the control of the deployment, must be back by then."""


@dataclass(frozen=True)
class Seen:
    """What a new connection finds."""

    status: Status
    events: Sequence[Event]
    """Since the fault."""

    def is_under_control(self, fault: str, before: Status) -> bool:
        """Return whether the deployment is ready, and each server that lost its agent has one."""
        if self.status.phase is not Phase.READY:
            return False
        seen = [server.seen for server in self.status.servers]
        # A controller that took over knows no pid before the agent has reported.
        if any(one.agent_lost or one.pid is None for one in seen):
            return False
        if self.status.attempt != before.attempt:
            return True  # the group was restarted
        orphaned = {event.server for event in self.events if event.kind == "orphaned"}
        adopted = {event.server for event in self.events if event.kind == "adopted"}
        # The death of a GCS takes no agent along. That of a raylet does, and is noticed later.
        return orphaned <= adopted and (bool(orphaned) or fault == "kill-gcs")

    def adopted_after_s(self, injected: Event) -> float | None:
        """Return the seconds from the fault until the last server had another agent.

        This is when control was back. A connection that was begun before Ray was whole may take a
        minute more: a Ray driver waits for its raylet (measured, 93 s in place of 38 s).
        """
        times = [event.at for event in self.events if event.kind == "adopted"]
        return max(0.0, max(times) - injected.at) if times else None

    def kept_servers(self, before: Status) -> bool:
        """Return whether the servers are those of before the fault."""
        return pids_of(self.status) == pids_of(before) and self.status.attempt == before.attempt


def pids_of(status: Status) -> list[int | None]:
    """Return the pids of the servers."""
    return [server.seen.pid for server in status.servers]


def break_ray(
    key: GroupKey, fault: Fault, server: int, last_event: int, reconnect: Callable[[], None]
) -> Outcome:
    """Inject a fault into Ray, and wait until the deployment is under control again.

    Args:
        key: The group.
        fault: One of those of Ray.
        server: Its agent injects the fault.
        last_event: The newest event before it.
        reconnect: Connects to the cluster again.
    """
    before = status_of(key)
    grace_s = ask(key.deployment, ControllerClient.recipe).recipe.health.orphan_grace_s
    injected = ask(key.deployment, ControllerClient.inject, fault.action, server, key.group)
    disconnect()
    began = time.monotonic() + LEAVE_S
    time.sleep(LEAVE_S)
    while time.monotonic() < began + PATIENCE_S:
        found = _look(key, last_event, reconnect)
        if isinstance(found, Seen) and found.is_under_control(fault.name, before):
            took_s = found.adopted_after_s(injected)
            if took_s is None:
                took_s = time.monotonic() - began
            return judge(fault, injected, before, found, took_s=took_s, grace_s=grace_s)
        time.sleep(POLL_S)  # no connection to wait on
    reason = str(found.status.phase) if isinstance(found, Seen) else found
    problem = f"not under control within {PATIENCE_S:.0f} s: {reason}"
    return Outcome(fault.name, injected.text, problem=problem)


def _look(key: GroupKey, last_event: int, reconnect: Callable[[], None]) -> Seen | str:
    """Return what a connection finds; why there is none otherwise."""
    try:
        reconnect()
        return Seen(status_of(key), events_of(key, last_event))
    except RaylaunchError as error:
        log.info("no control yet: %s", error)
        disconnect()
        return error.what


def judge(
    fault: Fault,
    injected: Event,
    before: Status,
    found: Seen,
    *,
    took_s: float,
    grace_s: float,
) -> Outcome:
    """Return the outcome of a fault after which the deployment is under control again.

    Without a grace for orphans, agents that die take their servers along.
    """
    kept = found.kept_servers(before)
    problem = ""
    if not kept and (grace_s > 0 or fault.name == "kill-gcs"):
        problem = "the servers were restarted, and should have been adopted"
    elif kept and took_s > CONTROL_S:
        problem = f"under control after {took_s:.0f} s, and not within {CONTROL_S:.0f} s"
    noticed = [event.text for event in found.events if event.kind in ("orphaned", "failure")]
    return Outcome(
        fault.name,
        injected.text,
        detected_by=noticed[0] if noticed else "a new connection finds the controller",
        recovery_s=took_s,
        adopted=kept,
        problem=problem,
    )
