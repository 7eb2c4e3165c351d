"""The drill on real vLLM, dp=2: faults one after the other in one deployment."""

from __future__ import annotations

import pytest

from raylaunch.node.process.process_markers import find_marked

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

PROCESS_FAULTS = ("kill-engine", "kill-agent", "kill-controller")
OTHER_FAULTS = ("kill-headless", "kill-primary", "kill-guard", "stop-headless", "steal-port")
"""Each start of real vLLM takes a minute or two. With the stand-in, every fault is tried each time
(test_recovery_from_faults.py)."""


def drill(user, ports, faults, deadline_s):
    started = user.run("start", "local-dual", "--name", "test-drill", *ports)
    assert started.code == 0, started.out + started.err
    words = [word for fault in faults for word in ("--fault", fault)]
    done = user.run("drill", "test-drill", "--yes", "-o", "json", *words, deadline_s=deadline_s)
    assert done.code == 0, done.out + done.err
    outcomes = {one["fault"]: one for one in done.json()}
    for one in outcomes.values():
        names = (
            "detection_s",
            "recovery_s",
            "start_s",
            "beyond_s",
            "failed",
            "requests",
            "detected_by",
        )
        print(one["fault"], *(f"{name}={one[name]}" for name in names))
    status = user.run("status", "test-drill", "-o", "json").json()
    assert status["phase"] == "ready"
    stopped = user.run("stop", "test-drill")
    assert stopped.code == 0, stopped.out + stopped.err
    assert find_marked("test-drill") == []
    return outcomes, status


@pytest.mark.timeout(900)
def test_deaths_of_an_engine_an_agent_and_the_controller(user, ports):
    outcomes, status = drill(user, ports, PROCESS_FAULTS, 800)
    assert set(outcomes) == set(PROCESS_FAULTS)
    assert not any(one["left"] or one["problem"] for one in outcomes.values())
    assert outcomes["kill-controller"]["failed"] == 0
    assert status["attempt"] == len(PROCESS_FAULTS), (
        "all but the controller's death start the gang again"
    )
    assert "VLLM::EngineCore" in outcomes["kill-engine"]["detected_by"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_other_processes_a_hang_and_a_stolen_port(user, ports):
    outcomes, _ = drill(user, ports, OTHER_FAULTS, 1100)
    assert not any(one["left"] or one["problem"] for one in outcomes.values())
    assert "rank 1" in outcomes["stop-headless"]["detected_by"]
