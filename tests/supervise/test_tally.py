"""What is counted of a group's life."""

from __future__ import annotations

import pytest

from raylaunch.supervise.detect import FailureSeen
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import CanarySeen, Exit, HttpSeen, RankSeen, ServerSeen
from raylaunch.supervise.tally import (
    MAX_CAUSES,
    Histogram,
    Observed,
    Tally,
    fault_began,
    stage_seconds,
)


def test_a_histogram_counts_up_to_each_bound_and_all_at_last():
    histogram = Histogram((1.0, 5.0))
    for seconds in (0.5, 1.0, 3.0, 100.0, -2.0):
        histogram = histogram.observe(seconds, 1.0, 2)
    assert histogram.cumulative() == [3, 4, 5]
    assert histogram.total_s == 104.5
    assert histogram.newest == Observed(0.0, 1.0, 2)
    assert Histogram((1.0,)).cumulative() == [0, 0]


def test_a_failure_in_a_restart_counts_but_the_outage_is_one():
    failure = FailureSeen("ended", 0, "x")
    tally = Tally().failed(failure, 100.0, 0.1, 1).restarted("killed", "transient")
    tally = tally.failed(failure, 130.0, None, 2).restarted("killed", "transient")
    tally = tally.became_ready(190.0, {}, 3)
    assert tally.failures == 2
    assert tally.restarts == {("killed", "transient"): 2}
    assert tally.recovery.cumulative()[-1] == 1
    assert tally.recovery.total_s == 90.0
    assert tally.down_since is None


def test_the_first_start_is_no_recovery():
    assert Tally().became_ready(10.0, {}, 1).recovery.cumulative()[-1] == 0


def test_causes_are_bounded():
    tally = Tally()
    for number in range(MAX_CAUSES + 5):
        tally = tally.restarted(f"cause-{number}", "transient")
    assert len(tally.restarts) == MAX_CAUSES + 1
    assert tally.restarts["other", "transient"] == 5


@pytest.mark.parametrize(
    ("detected", "certain", "cause"),
    [("ended", False, "hbm-oom"), ("stalled", True, "hbm-oom"), ("stalled", False, "stalled")],
)
def test_the_diagnosis_names_the_failure_that_it_explains(detected, certain, cause):
    found = Diagnosis("hbm-oom", "deterministic", 0, "", None, "", "", "", certain=certain)
    tally = Tally().failed(FailureSeen(detected, 1, "x"), 5.0, 0.1, 1)
    last = tally.diagnosed(found, 0).last_failure
    assert last is not None
    assert (last.cause, last.at) == (cause, 5.0)


def test_a_failure_has_no_cause_until_it_is_diagnosed_or_the_group_moves_on():
    """A scrape in between would show another cause than the next one: two alerts for one fault."""
    failure = FailureSeen("ended", 1, "x")
    killed = Diagnosis("killed", "transient", 0, "", None, "", "", "")
    old = Tally().failed(failure, 5.0, 0.1, 1).diagnosed(killed, 0)
    new = old.failed(failure, 9.0, 0.1, 2)
    assert new.failures == 2
    assert new.last_failure == old.last_failure
    for named, cause in ((new.diagnosed(killed, 0), "killed"), (new.settled(), "ended")):
        assert named.last_failure is not None
        assert (named.last_failure.at, named.last_failure.cause) == (9.0, cause)
        assert named.unnamed is None


@pytest.mark.parametrize(
    ("cause", "server", "began"),
    [
        ("ended", ServerSeen(0, exit=Exit(7.0)), 7.0),
        ("agent-lost", ServerSeen(0, agent_at=6.0), 6.0),
        ("http-dead", ServerSeen(0, http=HttpSeen(failing_since=5.0)), 5.0),
        ("stalled", ServerSeen(0, ranks=(RankSeen(0), RankSeen(1, still_since=4.0))), 4.0),
        (
            "canary-failed",
            ServerSeen(0, canary=CanarySeen(ok=False, at=9.0, failing_since=3.0)),
            3.0,
        ),
        ("step-failed", ServerSeen(0, exit=Exit(7.0)), None),
    ],
)
def test_detection_counts_from_the_first_trace(cause, server, began):
    assert fault_began(FailureSeen(cause, 0, "x"), [server]) == began


def test_stages_last_until_the_next_one_or_until_ready():
    began = {(0, "spawned"): 1.0, (0, "weights"): 4.0, (1, "spawned"): 2.0}
    assert stage_seconds(began, 10.0) == {
        (0, "spawned"): 3.0,
        (0, "weights"): 6.0,
        (1, "spawned"): 8.0,
    }
