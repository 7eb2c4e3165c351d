"""Drills that break Ray: when a deployment counts as under control, and what the outcome says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raylaunch.runtime.drill import drill_run
from raylaunch.runtime.drill.ray_faults import CONTROL_S, Seen, judge
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.drills import FAULTS
from raylaunch.supervise.state import Phase, ServerSeen

BY_NAME = {fault.name: fault for fault in FAULTS}


def status(phase=Phase.READY, attempt=1, pids=(10, 11), lost=()):
    servers = [
        SimpleNamespace(
            index=index,
            seen=ServerSeen(index, pid=pid, agent_lost="node died" if index in lost else None),
        )
        for index, pid in enumerate(pids)
    ]
    return SimpleNamespace(phase=phase, attempt=attempt, servers=servers)


def event(kind, server=None, text="agent died", at=0.0):
    return Event(1, at, 1, kind, text, server)


ORPHANED = [event("orphaned", 0), event("orphaned", 1)]
ADOPTED = [event("adopted"), event("adopted", 0), event("adopted", 1)]


@pytest.mark.parametrize(
    ("fault", "found", "events", "is_under_control"),
    [
        ("kill-gcs", status(), [], True),
        ("kill-gcs", status(lost=(1,)), [], False),
        ("kill-ray", status(), [], False),
        ("kill-ray", status(), ORPHANED, False),
        ("kill-ray", status(), [*ORPHANED, ADOPTED[1]], False),
        ("kill-ray", status(), [*ORPHANED, *ADOPTED], True),
        ("kill-ray", status(pids=(10, None)), [*ORPHANED, *ADOPTED], False),
        ("kill-ray", status(Phase.RESTARTING, attempt=2), ORPHANED, False),
        ("kill-ray", status(attempt=2, pids=(20, 21)), ORPHANED, True),
    ],
)
def test_a_deployment_is_under_control_once_each_orphan_has_an_agent(
    fault, found, events, is_under_control
):
    assert Seen(found, events).is_under_control(fault, status()) is is_under_control


def outcome(fault="kill-ray", found=None, took_s=5.0, grace_s=600.0):
    seen = Seen(found or status(), [*ORPHANED, *ADOPTED])
    return judge(BY_NAME[fault], event("drill"), status(), seen, took_s=took_s, grace_s=grace_s)


def test_servers_that_ran_on_are_adopted():
    one = outcome()
    assert (one.adopted, one.problem, one.recovery_s) == (True, "", 5.0)
    assert one.detected_by == "agent died"


def test_control_is_back_when_the_last_server_has_another_agent():
    events = [*ORPHANED, event("adopted", 0, at=112.0), event("adopted", 1, at=138.0)]
    assert Seen(status(), events).adopted_after_s(event("drill", at=100.0)) == 38.0
    assert Seen(status(), ORPHANED).adopted_after_s(event("drill", at=100.0)) is None


def test_servers_that_were_restarted_are_a_problem_where_they_should_have_run_on():
    restarted = status(attempt=2, pids=(20, 21))
    assert "should have been adopted" in outcome(found=restarted).problem
    assert outcome(found=restarted, grace_s=0.0).problem == ""
    assert "should have been adopted" in outcome("kill-gcs", restarted, grace_s=0.0).problem
    assert not outcome(found=restarted).adopted


def test_control_that_comes_back_too_late_is_a_problem():
    assert "not within 60 s" in outcome(took_s=CONTROL_S + 1).problem


@pytest.mark.parametrize(
    ("fault", "restarts_ray", "why"),
    [
        ("kill-gcs", "supervisor", ""),
        ("kill-ray", "loop", ""),
        ("restart-ray", "supervisor", ""),
        ("restart-ray", "loop", "takes SIGTERM for `ray stop`"),
        ("kill-ray", "", "nothing starts Ray again here"),
    ],
)
def test_ray_is_broken_only_where_something_starts_it_again(fault, restarts_ray, why):
    refusal = drill_run._why_not_break(BY_NAME[fault], restarts_ray)
    assert (why in refusal) if why else refusal == ""
