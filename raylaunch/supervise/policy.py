"""What to do next with a deployment: wait, restart the gang, give up, become ready, stop.

Pure: phase, observations, history, settings and the time go in, one decision comes out; the controller applies it.
`find_failure` says what counts as a failure, `decide` what follows from it. When there is trouble the controller
freezes the evidence, has it diagnosed, and only then asks for the decision.
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


@dataclass(frozen=True)
class Wait:
    """Nothing to do; look again at `until` at the latest."""

    until: float


@dataclass(frozen=True)
class BecomeReady:
    """Every condition of readiness holds."""


@dataclass(frozen=True)
class Restart:
    """End the whole gang and launch the next attempt, not before `not_before` and not on `excluded` nodes."""

    cause: str
    kind: str
    root: int | None
    not_before: float
    reason: str
    collateral: tuple[int, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class GiveUp:
    """End the gang and leave it ended: failed."""

    cause: str
    kind: str
    root: int | None
    reason: str
    collateral: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stop:
    """Somebody asked for it."""


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
    """Decide the next step.

    Args:
        phase: Where the deployment is.
        servers: The last observations, of the current attempt only.
        history: What happened before.
        health: Periods, thresholds and the restart budget.
        now: Controller's clock.
        gang: Ranks and nodes of the plan.
        diagnosis: What the frozen evidence says, once `find_failure` has found something; None: not asked.
        jitter: A random number from 0 to 1, drawn by the caller.
    """
    if phase in (Phase.STOPPING, Phase.STOPPED):
        return Wait(now + health.heartbeat_s)
    if history.stop_requested:
        return Stop()
    trouble = find_failure(phase, servers, history, health, now, gang=gang)
    if trouble is not None:
        return decide_on_failure(
            trouble, phase, history, health, now, gang=gang, diagnosis=diagnosis, jitter=jitter
        )
    if phase is Phase.STARTING and not find_unready(servers, history, gang=gang):
        return BecomeReady()
    return Wait(now + health.heartbeat_s)


def decide_on_failure(
    trouble: FailureSeen,
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

    The controller calls it directly for its own unexpected errors, in whatever phase they occur.
    """
    if phase in (Phase.STOPPING, Phase.STOPPED, Phase.FAILED):
        return Wait(now + health.heartbeat_s)
    if history.stop_requested:
        return Stop()
    failure = _name(trouble, history, now, gang, diagnosis)
    collateral = diagnosis.collateral if diagnosis else trouble.collateral
    refusal = _refuse(
        failure, history, health, now, gang, certain=diagnosis is None or diagnosis.certain
    )
    if refusal:
        reason = f"{trouble.reason}; {refusal}"
        return GiveUp(failure.cause, failure.kind, failure.root, reason, collateral)
    return Restart(
        cause=failure.cause,
        kind=failure.kind,
        root=failure.root,
        not_before=now + _pause(failure, history, health, now, gang, jitter),
        reason=trouble.reason,
        collateral=collateral,
        excluded=_excluded(failure, history, gang),
    )


def _name(
    trouble: FailureSeen,
    history: History,
    now: float,
    gang: GroupShape,
    diagnosis: Diagnosis | None,
) -> Failure:
    """The failure as history will know it: by its diagnosis, or by the detector when the evidence says little.

    A running server's log may hold exceptions of single requests; a mere guess from them does not explain a hang.
    """
    guess = (
        diagnosis is not None
        and not diagnosis.certain
        and trouble.cause in ("stalled", "http-dead", "canary-failed")
    )
    known = diagnosis is not None and diagnosis.id != "no-evidence" and not guess
    cause, kind, root = trouble.cause, trouble.kind, trouble.root
    if diagnosis is not None and known:
        cause, kind, root = diagnosis.id, diagnosis.kind, diagnosis.root
    node = (diagnosis.node if diagnosis else "") or (
        gang.nodes[root] if root is not None and root < len(gang.nodes) else ""
    )
    return Failure(0, now, cause, kind, root, was_ready=history.ready_at is not None, node=node)


def _refuse(
    failure: Failure,
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
    *,
    certain: bool,
) -> str:
    """Why there is no restart; empty when there is one. A launch that did become ready cannot be wrong as such."""
    if failure.kind == "deterministic" and not failure.was_ready:
        return f"{failure.cause} would fail the same way again"
    if failure.kind == "device" and not gang.spare:
        return f"{failure.cause}: node {failure.node} is not used again, and no other node has the NPUs"
    if spent_restarts(history, health, now) >= health.max_restarts:
        return f"{health.max_restarts} restarts within {health.restart_window_s:g} s are used up"
    alike = takewhile(
        lambda old: old.cause == failure.cause and not old.was_ready, reversed(history.failures)
    )
    if not certain and not failure.was_ready and len(list(alike)) >= health.unknown_retries:
        return f"the start failed {health.unknown_retries + 1} times for a reason nobody knows"
    return ""


def spent_restarts(history: History, health: HealthConfig, now: float) -> int:
    """Restarts that count against the cap: those in the window, or those in a row that never led to ready.

    The second keeps slow starts from being tried for ever, as each of them outlasts the window.
    """
    recent = sum(now - failure.at < health.restart_window_s for failure in history.failures)
    if history.ready_at is not None:
        return recent
    row = sum(
        1 for _ in takewhile(lambda failure: not failure.was_ready, reversed(history.failures))
    )
    return max(recent, row)


def _pause(
    failure: Failure,
    history: History,
    health: HealthConfig,
    now: float,
    gang: GroupShape,
    jitter: float,
) -> float:
    """Seconds to wait: none for the first failure of a service that ran, then growing up to the maximum."""
    delay = 0.0
    for _ in range(spent_restarts(history, health, now) + (not failure.was_ready)):
        delay = min(
            delay * health.backoff_factor if delay else health.backoff_first_s, health.backoff_max_s
        )
        if delay in (0.0, health.backoff_max_s):
            break
    delay *= 1 + health.jitter * jitter
    return max(delay, health.device_pause_s) if gang.holds_devices else delay


def _excluded(failure: Failure, history: History, gang: GroupShape) -> tuple[str, ...]:
    """Nodes with a device fault for good; a lost node as long as there is another to take its place."""
    nodes = list(history.excluded_nodes)
    if failure.kind == "device" or (failure.cause == "node-lost" and gang.spare):
        nodes.append(failure.node)
    return tuple(dict.fromkeys(node for node in nodes if node))
