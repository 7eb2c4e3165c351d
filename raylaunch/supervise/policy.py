"""Supervision policy: wait, restart the group, give up, become ready, or stop.

Pure: phase, observations, history, settings and the time go in, one decision comes out; the
controller applies it. `find_failure` detects a failure, `decide` and `decide_on_failure` say what
follows from it. On a failure the controller freezes the evidence, has it diagnosed, and only then
asks for the decision. All times are seconds on the controller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from raylaunch.supervise.detect import FailureSeen, find_failure, find_unready, internal_failure
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.health_config import GroupShape, HealthConfig
from raylaunch.supervise.state import Failure, History, Phase, ServerSeen

__all__ = [
    "BecomeReady",
    "Decision",
    "FailureSeen",
    "GiveUp",
    "GroupShape",
    "HealthConfig",
    "Restart",
    "Stop",
    "Wait",
    "decide",
    "decide_on_failure",
    "find_failure",
    "find_unready",
    "internal_failure",
    "spent_restarts",
]

LOST_CAUSES = ("agent-lost", "node-lost")
HANG_CAUSES = ("stalled", "http-dead", "canary-failed")
"""Detectors of a server that runs but does not serve."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do; decide again at `until` at the latest."""

    until: float


@dataclass(frozen=True)
class BecomeReady:
    """Every condition of readiness holds."""


@dataclass(frozen=True)
class Restart:
    """Stop the whole group, then launch the next attempt.

    Not before `not_before` (monotonic clock) and not on the `excluded` nodes.
    """

    cause: str
    kind: str
    root: int | None
    not_before: float
    reason: str
    collateral: tuple[int, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class GiveUp:
    """Stop the group and do not restart it: failed."""

    cause: str
    kind: str
    root: int | None
    reason: str
    collateral: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stop:
    """A user asked for it."""


Decision = Wait | BecomeReady | Restart | GiveUp | Stop


def decide(
    phase: Phase,
    servers: Sequence[ServerSeen],
    history: History,
    health: HealthConfig,
    now: float,
    *,
    gang: GroupShape,
    diagnosis: Diagnosis | None = None,
    jitter: float = 0.0,
) -> Decision:
    """Decide the next step from the observations.

    Args:
        phase: Phase of the deployment.
        servers: The last observations, of the current attempt only.
        history: What happened before.
        health: Periods, thresholds and the restart budget.
        now: Controller's monotonic clock.
        gang: Ranks and nodes of the plan.
        diagnosis: Verdict on the frozen evidence, once `find_failure` has found something;
            None: nothing was diagnosed.
        jitter: A random number from 0 to 1, drawn by the caller.
    """
    if phase in (Phase.STOPPING, Phase.STOPPED):
        return Wait(now + health.heartbeat_s)
    if history.stop_requested:
        return Stop()
    failure = find_failure(phase, servers, history, health, now, gang=gang)
    if failure is not None:
        return decide_on_failure(
            failure,
            phase,
            history,
            health,
            now,
            gang=gang,
            diagnosis=diagnosis,
            jitter=jitter,
        )
    if phase is Phase.STARTING and not find_unready(servers, history, gang=gang):
        return BecomeReady()
    return Wait(now + health.heartbeat_s)


def decide_on_failure(
    seen: FailureSeen,
    phase: Phase,
    history: History,
    health: HealthConfig,
    now: float,
    *,
    gang: GroupShape,
    diagnosis: Diagnosis | None = None,
    jitter: float = 0.0,
) -> Decision:
    """Decide what follows from a failure: restart within the budget, or give up.

    The controller calls it directly for its own unexpected errors, in whatever phase they occur:
    `decide_on_failure(internal_failure("TimeoutError: ..."), phase, history, health, now, ...)`.
    Such a failure has the kind "internal". It counts in the restart budget like any other, so one
    error is retried and a lasting one does not loop for ever.

    Arguments as in `decide`. After `stop`, and in the phases that end a deployment, nothing is
    restarted.
    """
    if phase in (Phase.STOPPING, Phase.STOPPED, Phase.FAILED):
        return Wait(now + health.heartbeat_s)
    if history.stop_requested:
        return Stop()
    failure = _classify(seen, history, now, gang, diagnosis)
    collateral = diagnosis.collateral if diagnosis else seen.collateral
    certain = diagnosis is None or diagnosis.certain or _is_known(failure)
    refusal = _why_not_restart(failure, history, health, now, gang, certain=certain)
    if refusal:
        reason = f"{seen.reason}; {refusal}"
        return GiveUp(failure.cause, failure.kind, failure.root, reason, collateral)
    return Restart(
        cause=failure.cause,
        kind=failure.kind,
        root=failure.root,
        not_before=now + _back_off(failure, history, health, now, gang, jitter),
        reason=seen.reason,
        collateral=collateral,
        excluded=_excluded_nodes(failure, history, gang, certain=certain),
    )


def _classify(
    seen: FailureSeen,
    history: History,
    now: float,
    gang: GroupShape,
    diagnosis: Diagnosis | None,
) -> Failure:
    """Return the failure for the history: by its diagnosis, else by its detector."""
    cause = seen.cause
    kind = seen.kind
    root = seen.root
    if diagnosis is not None and explains(diagnosis, seen.cause):
        cause = diagnosis.id
        kind = diagnosis.kind
        root = diagnosis.root
    node = diagnosis.node if diagnosis else ""
    # Without a plan yet (an error while the nodes are reserved) there is no node to name.
    if not node and root is not None and root < len(gang.nodes):
        node = gang.nodes[root]
    was_ready = history.ready_at is not None
    return Failure(0, now, cause, kind, root, was_ready=was_ready, node=node)


def explains(diagnosis: Diagnosis, detected: str) -> bool:
    """Return whether the diagnosis is the cause of what a detector saw."""
    if diagnosis.id == "no-evidence":
        return False
    # The log of a server that still runs may hold exceptions of single requests: an uncertain
    # diagnosis made from them does not explain a hang.
    return diagnosis.certain or detected not in HANG_CAUSES


def _is_known(failure: Failure) -> bool:
    """Return whether the cause itself was seen: no log has to explain it."""
    return failure.cause in LOST_CAUSES


def _why_not_restart(
    failure: Failure,
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
    *,
    certain: bool,
) -> str:
    """Return why there is no restart; "" when there is one."""
    # A launch that became ready once is not wrong as such, whatever the signature claims. And a
    # diagnosis that is not certain is one of several: tried again like an unknown failure.
    if failure.kind == "deterministic" and certain and not failure.was_ready:
        return f"{failure.cause} would fail the same way again"
    if certain and failure.kind == "device" and not gang.spare:
        return (
            f"{failure.cause}: node {failure.node} is not used again, "
            f"and no other node has enough NPUs"
        )
    if spent_restarts(history, health, now) >= health.max_restarts:
        return f"{health.max_restarts} restarts within {health.restart_window_s:g} s are used up"
    if certain or failure.was_ready:
        return ""
    same = takewhile(
        lambda old: old.cause == failure.cause and not old.was_ready,
        reversed(history.failures),
    )
    if len(list(same)) >= health.unknown_retries:
        return f"the start failed {health.unknown_retries + 1} times for an unknown reason"
    return ""


def spent_restarts(history: History, health: HealthConfig, now: float) -> int:
    """Count the restarts against the cap: those in the window, or those in a row without ready.

    The second keeps slow starts from being retried for ever, as each of them outlasts the window.
    """
    recent = sum(now - failure.at < health.restart_window_s for failure in history.failures)
    if history.ready_at is not None:
        return recent
    in_a_row = takewhile(lambda failure: not failure.was_ready, reversed(history.failures))
    return max(recent, len(list(in_a_row)))


def _back_off(
    failure: Failure,
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
    jitter: float,
) -> float:
    """Return the seconds to wait before the next attempt.

    None for the first failure of a service that was ready, then growing up to the maximum.
    """
    steps = spent_restarts(history, health, now)
    if not failure.was_ready:
        steps += 1
    delay = 0.0
    for _ in range(steps):
        grown = delay * health.backoff_factor if delay else health.backoff_first_s
        delay = min(grown, health.backoff_max_s)
        if delay in (0.0, health.backoff_max_s):
            break  # it would not change any more, and `steps` may be large
    delay *= 1 + health.jitter * jitter
    # An NPU needs a pause before another process may use it.
    return max(delay, health.device_pause_s) if gang.holds_devices else delay


def _excluded_nodes(
    failure: Failure, history: History, gang: GroupShape, *, certain: bool
) -> tuple[str, ...]:
    """Return nodes with a device fault, and a lost node if a spare one can replace it."""
    nodes = list(history.excluded_nodes)
    has_device_fault = certain and failure.kind == "device"
    # Without a spare node the lost one must come back, so it stays allowed.
    can_be_replaced = failure.cause == "node-lost" and gang.spare
    if has_device_fault or can_be_replaced:
        nodes.append(failure.node)
    known = [node for node in nodes if node]
    return tuple(dict.fromkeys(known))
