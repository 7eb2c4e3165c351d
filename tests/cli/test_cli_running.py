"""What is running: NPUs of a CPU recipe, warnings at stop, check of a running deployment, logs."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

import raylaunch
from raylaunch.api import host_verbs
from raylaunch.checks.findings import Finding
from raylaunch.deployment import Deployment
from raylaunch.plan.facts import Facts, Listener, MarkedProcess
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.controller.group.group_report import _servers
from raylaunch.runtime.controller.group.journal import Journal

WEAK = Finding("weak", "warning", "swap is on", "turn it off")


def journal_of(name):
    loaded = read(name)
    nodes = [Facts(f"192.0.2.{10 + n}", interface="eth0") for n in range(2)]
    return Journal(created_at=0.0, plan=build_plan(loaded, nodes, deployment=name))


@pytest.mark.parametrize(("name", "npus"), [("local-dual", ()), ("a2-dual", tuple(range(8)))])
def test_a_status_names_the_npus_that_there_are(name, npus):
    servers = _servers(journal_of(name), {}, {})
    assert [server.devices for server in servers] == [npus, npus]


def test_a_plan_for_cpu_names_no_npus(cli):
    text = cli(
        "plan", "local-dual", "--host", "192.0.2.10%eth0", "--host", "192.0.2.11%eth0"
    ).stdout
    head, *lines = text.splitlines()
    assert "NPU" not in head
    titles = next(number for number, line in enumerate(lines) if line.startswith("SERVER"))
    assert [row.split()[5] for row in lines[titles + 1 : titles + 3]] == ["-", "-"]


def test_stop_does_not_repeat_the_warnings_of_the_start(cli, api):
    api.script[:] = [api.look(60, api.Phase.READY, findings=(WEAK,))]
    result = cli("stop", "a2-dual")
    assert result.exit_code == 0
    assert "stopping" in result.stdout
    assert "swap" not in result.output
    assert "swap" not in cli("stop", "a2-dual", "-o", "json").output


def test_check_of_a_running_deployment_says_that_it_runs(cli, api):
    api.findings = [Finding("already-running", "info", "a2-dual is running (ready)")]
    result = cli("check", "a2-dual")
    assert result.exit_code == 0
    assert "0 errors, 0 warnings; it is running" in result.stderr


def facts_with_processes(deployment):
    return Facts(
        "127.0.0.1",
        interface="lo",
        clock=1.0,
        marked=(MarkedProcess(4242, deployment, 1, 60.0, "vllm serve"),),
        listeners=(Listener("0.0.0.0", 20004, 4242), Listener("0.0.0.0", 22, 1)),
    )


@pytest.fixture
def busy_machine(monkeypatch, tmp_path):
    """This machine, as it is while local-dual runs on its embedded cluster."""
    # A check creates the tiny model below the state folder.
    facts = replace(facts_with_processes("local-dual"), state_dir=str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(host_verbs, "default_nodes", lambda *_, **__: [facts] * 2)
    return facts


@pytest.mark.parametrize("phase", ["ready", None])
def test_check_here_leaves_out_what_belongs_to_the_running_deployment(
    busy_machine, monkeypatch, phase
):
    running = None if phase is None else host_verbs._running("local-dual", phase)
    monkeypatch.setattr(host_verbs, "_find_running_embedded", lambda _: running)
    _, findings = raylaunch.preflight("local-dual", set={"network.http_port": 20004})
    ids = {finding.id for finding in findings}
    if phase is None:
        assert {"leftovers", "port-busy"} <= ids, "they are found when nothing runs"
        assert "already-running" not in ids
    else:
        assert not {"leftovers", "port-busy"} & ids
        assert findings[0].id == "already-running"


def test_listeners_of_other_processes_stay():
    left = host_verbs._without_own(facts_with_processes("prod"), "prod")
    assert (left.marked, [one.port for one in left.listeners]) == ((), [22])
    others = facts_with_processes("other")
    assert host_verbs._without_own(others, "prod") == others


def test_the_log_of_the_controller(cli):
    assert cli("logs", "a2-dual", "--controller", "-n", "2").stdout == (
        "controller line 0\ncontroller line 1\n"
    )
    assert cli("logs", "a2-dual", "--controller", "-f").exit_code == 2
    assert cli("logs", "a2-dual", "--controller", "--server", "0").exit_code == 2


def test_the_log_of_the_controller_is_read_from_its_node(monkeypatch):
    class Reader:
        def read_log_of_controller(self, lines):
            return f"{lines} lines"

    handle = Deployment("prod")
    monkeypatch.setattr(handle, "_controller", Reader)
    assert handle.controller_log(7) == "7 lines"


@pytest.mark.parametrize(
    ("words", "level"),
    [(["-v"], "INFO"), (["-vv"], "DEBUG"), (["-v", "-v"], "DEBUG"), ([], "NOTSET")],
)
def test_the_log_of_the_driver(cli, api, monkeypatch, words, level):
    logger = logging.getLogger("raylaunch")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    seen = []
    monkeypatch.setattr(api, "overview", lambda **_: seen.append(logger.level) or api.Overview())
    cli("status", *words)
    before_verb = [*words, "status"]
    logger.setLevel(logging.NOTSET)
    cli(*before_verb)
    assert [logging.getLevelName(one) for one in seen] == [level, level]
    logger.setLevel(logging.NOTSET)
