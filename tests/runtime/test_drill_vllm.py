"""The drill on real vLLM, dp=2: the faults that test_start_vllm.py leaves out."""

from __future__ import annotations

import pytest
from drilled import drill

from raylaunch.node.process.process_markers import find_marked

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

FAULTS = (
    "kill-agent",
    "kill-headless",
    "kill-primary",
    "kill-guard",
    "stop-headless",
    "steal-port",
)
"""Each start of real vLLM takes a minute or two. With the stand-in, every fault is tried each time
(test_recovery_from_faults.py)."""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_other_processes_a_hang_and_a_stolen_port(user, ports):
    started = user.run("start", "local-dual", "--name", "test-drill", *ports)
    assert started.code == 0, started.out + started.err
    outcomes, _ = drill(user, "test-drill", FAULTS, 1300)
    assert not any(one["left"] or one["problem"] for one in outcomes.values())
    assert "rank 1" in outcomes["stop-headless"]["detected_by"]
    stopped = user.run("stop", "test-drill")
    assert stopped.code == 0, stopped.out + stopped.err
    assert find_marked("test-drill") == []
