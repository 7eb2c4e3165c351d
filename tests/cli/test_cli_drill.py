"""The verb drill: what it refuses, what it asks, what it prints."""

from __future__ import annotations

import json

import pytest

from raylaunch.runtime.drill.drill_run import choose
from raylaunch.supervise.drills import FAULTS, Outcome

DONE = Outcome(
    "kill-engine",
    "SIGKILL to it",
    "server 1 ended with signal 9",
    0.03,
    31.5,
    30.2,
    requests=40,
    failed=12,
)
LEFT = Outcome(
    "kill-agent", "SIGKILL to it", "agent died", 0.1, 5.0, 4.0, left=("pid 7",), problem="1 is left"
)
SKIPPED = Outcome("cut-node", skipped="no node allows it")


@pytest.fixture
def drilled(api, monkeypatch):
    """The outcomes of the next drill."""
    outcomes = []
    monkeypatch.setattr(api, "drill", lambda *_, **__: outcomes, raising=False)
    return outcomes


def test_an_unknown_fault_is_refused_with_the_list(cli):
    result = cli("drill", "a2-dual", "--fault", "flood", "--yes")
    assert result.exit_code == 2
    assert all(fault.name in result.output.replace("\n", " ") for fault in FAULTS)


def test_a_pipe_must_say_yes(cli):
    result = cli("drill", "a2-dual")
    assert result.exit_code == 2
    assert "--yes" in result.output


def test_the_table(cli, drilled):
    drilled += [DONE, SKIPPED]
    result = cli("drill", "a2-dual", "--yes")
    assert result.exit_code == 0
    header, done, skipped = (line.split() for line in result.stdout.splitlines())
    assert header[:5] == ["FAULT", "DETECTED", "RECOVERED", "OWN", "START"]
    assert done[:5] == ["kill-engine", "0.03", "31.50", "30.20", "1.30"]
    assert "12 of 40" in " ".join(done)
    assert "no node allows it" in " ".join(skipped)


def test_json(cli, drilled):
    drilled.append(DONE)
    (found,) = json.loads(cli("drill", "a2-dual", "--yes", "-o", "json").stdout)
    assert found["fault"] == "kill-engine"
    assert found["beyond_s"] == pytest.approx(1.3)


def test_what_is_left_is_an_error(cli, drilled):
    drilled.append(LEFT)
    result = cli("drill", "a2-dual", "--yes")
    assert result.exit_code == 7
    assert "1 is left" in result.stderr


def test_faults_that_hit_more_than_the_deployment_are_never_chosen_unasked():
    assert {fault.name for fault in FAULTS} - {fault.name for fault in choose(())} == {
        "kill-gcs",
        "kill-raylet",
        "kill-ray",
        "restart-ray",
        "cut-node",
    }
    assert [fault.name for fault in choose(("cut-node",))] == ["cut-node"]
