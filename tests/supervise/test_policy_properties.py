"""What holds for every sequence of observations, searched for counter-examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from raylaunch.supervise.policy import GiveUp, GroupShape, HealthConfig, Restart, Wait, decide
from raylaunch.supervise.state import (
    REMEMBERED,
    TRANSITIONS,
    CanarySeen,
    Exit,
    Failure,
    History,
    HttpSeen,
    Phase,
    RankSeen,
    ServerSeen,
    move,
)

NOW = 1e6
GANG = GroupShape(ranks=((0,), (1,)), nodes=("a", "b"), holds_devices=False)
HEALTH = HealthConfig()
past = st.floats(0, 1e5).map(lambda ago: NOW - ago)
maybe_past = st.none() | past

https = st.builds(
    HttpSeen,
    status=st.none() | st.sampled_from([200, 500, 503]),
    latency_s=st.none(),
    at=past,
    failing_since=maybe_past,
)
canaries = st.none() | st.builds(CanarySeen, ok=st.booleans(), at=past, failing_since=maybe_past)


@given(http=https, canary=canaries, hang_lines=st.integers(0, 99), load=st.floats(0, 1e4))
def test_never_restarts_while_all_counters_move(
    http: HttpSeen, canary: CanarySeen | None, hang_lines: int, load: float
) -> None:
    """Saturation: /health and canaries may fail as they like, vLLM may complain, as long as tokens come."""
    ranks = tuple(
        RankSeen(rank, running=load, waiting=load, moved_at=NOW, at=NOW) for rank in (0, 1)
    )
    servers = (
        ServerSeen(
            0, pid=1, agent_at=NOW, http=http, ranks=ranks, canary=canary, hang_lines=hang_lines
        ),
        ServerSeen(1, pid=2, agent_at=NOW, hang_lines=hang_lines),
    )
    history = History(started_at=0, ready_at=1)
    assert isinstance(decide(Phase.READY, servers, history, HEALTH, NOW, gang=GANG), Wait)


steps = st.lists(st.tuples(st.floats(1, 5000), st.booleans(), st.floats(0, 1)), max_size=40)


@given(steps=steps, cap=st.integers(0, 5), window=st.floats(1, 10_000))
def test_never_exceeds_the_cap(
    steps: list[tuple[float, bool, float]], cap: int, window: float
) -> None:
    """However the attempts go: no more restarts in a window, nor in a row without ready, than the cap allows."""
    health = replace(HEALTH, max_restarts=cap, restart_window_s=window)
    ended = (ServerSeen(0, pid=1, agent_at=None, exit=Exit(0.0, signal=9)), ServerSeen(1, pid=2))
    history, now = History(), 0.0
    restarts: list[float] = []
    row = 0
    for lasted, became_ready, jitter in steps:
        history = replace(
            history, started_at=now, ready_at=now + lasted / 2 if became_ready else None
        )
        now += lasted
        phase = Phase.READY if became_ready else Phase.STARTING
        decision = decide(phase, ended, history, health, now, gang=GANG, jitter=jitter)
        if isinstance(decision, GiveUp):
            break
        assert isinstance(decision, Restart)
        assert now <= decision.not_before <= now + health.backoff_max_s * (1 + health.jitter)
        restarts.append(now)
        row = 0 if became_ready else row + 1
        assert sum(now - at < window for at in restarts) <= cap
        assert row <= cap
        history = history.remember(
            Failure(0, now, "killed", "transient", 0, was_ready=became_ready)
        )
        now = decision.not_before


@given(count=st.integers(0, 300))
def test_history_is_bounded(count: int) -> None:
    history = History()
    for number in range(count):
        history = history.remember(Failure(number, float(number), "killed", "transient"))
    assert len(history.failures) == min(count, REMEMBERED)
    assert not history.failures or history.failures[-1].attempt == count - 1


def test_history_keeps_device_faults() -> None:
    history = History().remember(Failure(1, 1.0, "npu-lost", "device", 1, node="b"))
    for number in range(2 * REMEMBERED):
        history = history.remember(Failure(number, 2.0, "killed", "transient"))
    assert history.excluded_nodes == ("b",)


@given(now=st.sampled_from(Phase), to=st.sampled_from(Phase))
def test_transitions_are_the_table(now: Phase, to: Phase) -> None:
    if to in TRANSITIONS[now]:
        assert move(now, to) is to
    else:
        with pytest.raises(AssertionError, match="illegal transition"):
            move(now, to)


def test_every_phase_but_the_last_can_be_stopped() -> None:
    reaches = {phase for phase, following in TRANSITIONS.items() if Phase.STOPPING in following}
    # DEGRADED is never a group's.
    assert reaches == set(Phase) - {Phase.STOPPING, Phase.STOPPED, Phase.DEGRADED}
