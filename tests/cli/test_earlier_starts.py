"""`start` beside servers of an earlier start: adopted, stopped, or left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raylaunch.api import earlier_starts
from raylaunch.deployment.deployment_records import Record, write_record
from raylaunch.errors import BusyError, NodeError
from raylaunch.plan.launch_plan import LaunchPlan, Place, Ports, ServerPlan
from raylaunch.recipe.catalog import read
from raylaunch.render.host_service import FINAL_EXIT_CODES
from raylaunch.runtime.cluster import connection
from raylaunch.runtime.cluster.remote_call import ActorLostError, ActorTimeoutError
from raylaunch.runtime.controller import controller_client, guard_search, orphan_search
from raylaunch.runtime.controller.deployment_record import DeploymentJournal
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.runtime.controller.guard_search import EarlierStart, RunningServer
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.takeover import Found

SERVER = RunningServer("10.0.0.1", "aa.serve", "serve", 0, 1, 4711, has_owner=False)
FIRST = EarlierStart("aa", (SERVER,))
SECOND = EarlierStart("bb", (SERVER,))
OLD = read("a2-dual", ["args.max-num-seqs=7"])


def make_plan() -> LaunchPlan:
    place = Place("10.0.0.1", "eth0", node_id="node-0")
    server = ServerPlan(0, (0,), "primary", place, (0,), {}, (), Ports(1, 2), "log")
    return LaunchPlan("d", "r", "cpu", "m", "/m", "http://x", (server,))


@pytest.fixture
def world(monkeypatch, tmp_path):
    """What runs, which of it can be adopted, what is stopped, and what a stop leaves."""

    found = SimpleNamespace(running=[FIRST], adoptable=[FIRST], stopped=[], left=[], searched=0)

    def search(_):
        found.searched += 1
        return found.running

    def stop(_, start):
        found.stopped.append(start)
        return found.left

    def read_journals(start, _):
        if start not in found.adoptable:
            return Found(None, {})
        group = Journal(1.0, plan=make_plan(), attempt=1)
        return Found(DeploymentJournal(OLD, ()), {"serve": group})

    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.setattr(guard_search, "find_earlier_starts", search)
    monkeypatch.setattr(EarlierStart, "read_journals", read_journals)
    monkeypatch.setattr(guard_search, "stop_earlier_start", stop)
    monkeypatch.setattr(orphan_search, "kill_agents", lambda _: None)
    write_record(tmp_path, Record("d", "a2-dual", "10.0.0.1:6379", 1.0))
    return found


def instance(adopt=None, grace_s=600):
    """The instance that is adopted; None when new servers are started."""
    loaded = read("a2-dual", [f"health.orphan_grace_s={grace_s}"])
    given = Request("d", loaded)
    found = earlier_starts.request_to_adopt(given, adopt)
    if not found.adopts:
        assert found is given
        return None
    assert found.loaded is OLD, "the servers run on with it"
    return found.instance


@pytest.mark.parametrize("adopt", [None, True])
def test_what_runs_is_adopted_by_default(world, adopt):
    assert instance(adopt) == "aa"
    assert world.stopped == []


def test_fresh_stops_what_runs(world):
    assert instance(False) is None
    assert world.stopped == [FIRST]


def test_what_cannot_be_adopted_is_stopped_first(world):
    world.running, world.adoptable = [FIRST, SECOND], [SECOND]
    assert instance() == "bb"
    assert world.stopped == [FIRST]


def test_servers_of_two_starts_are_a_decision_of_the_user(world):
    world.running = world.adoptable = [FIRST, SECOND]
    with pytest.raises(BusyError, match="2 starts") as refused:
        instance()
    assert "--fresh" in refused.value.todo
    assert "pid 4711" in refused.value.evidence


def test_nothing_is_started_beside_what_resists(world):
    world.left = ["10.0.0.1: pid 4711 vllm"]
    with pytest.raises(NodeError, match="could not be stopped") as refused:
        instance(False)
    assert "pid 4711" in refused.value.evidence
    # A host that did not answer comes back: systemd must try again.
    assert refused.value.exit_code not in FINAL_EXIT_CODES


def test_nodes_are_asked_only_where_something_may_run(world, tmp_path):
    assert instance(grace_s=0) is None
    assert world.searched == 0
    (tmp_path / "deployments" / "d.json").unlink()
    assert instance() is None
    assert world.searched == 0, "it was stopped, or started elsewhere"
    assert instance(True) == "aa", "on request"


def test_what_runs_and_cannot_be_stopped_is_tried_again_by_systemd(monkeypatch):
    report = SimpleNamespace(left=("server 1: 10.0.0.2 cannot be reached",))
    monkeypatch.setattr(earlier_starts, "stop_deployment", lambda *_: report)
    monkeypatch.setattr(connection, "disconnect", lambda: None)
    with pytest.raises(NodeError, match=r"d was not started") as refused:
        earlier_starts.stop_running("d", None)
    assert "10.0.0.2" in refused.value.evidence
    assert refused.value.exit_code not in FINAL_EXIT_CODES


@pytest.fixture
def controller(monkeypatch):
    """A controller that answers after some time-outs, and then not at all."""
    found = SimpleNamespace(silences=2, asked=0, error=ActorTimeoutError("no answer"), clock=0.0)

    def await_known(timeout_s):
        found.asked += 1
        found.clock += timeout_s
        if found.silences:
            found.silences -= 1
            raise found.error

    monkeypatch.setattr(earlier_starts, "connect_to", lambda *_: None)
    monkeypatch.setattr(earlier_starts, "time", SimpleNamespace(monotonic=lambda: found.clock))
    client = SimpleNamespace(await_known=await_known)
    monkeypatch.setattr(controller_client, "require_controller", lambda _: client)
    monkeypatch.setattr(connection, "disconnect", lambda: None)
    return found


def test_a_controller_that_ray_restarts_is_awaited(controller):
    waits = []
    running = earlier_starts.find_running("d", None, on_silence=lambda: waits.append(1))
    assert running is not None
    assert running.adopted
    assert len(waits) == 2


def test_a_controller_that_stays_silent_does_not_run(controller):
    controller.silences = 1000
    assert earlier_starts.find_running("d", None, patience_s=20.0) is None
    assert controller.asked == 4


def test_a_dead_controller_is_not_awaited(controller):
    controller.error = ActorLostError("it is dead")
    assert earlier_starts.find_running("d", None) is None
    assert controller.asked == 1
