"""Faults on real Ray with the stand-in: what is noticed, what follows, and that nothing is left.

One cluster for the whole file. The stand-in takes 16 s to notice a dead engine, as real vLLM does: what is noticed
earlier was noticed by raylaunch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from drilled import check_causes
from own_processes import kill_own
from ray_clusters import STANDIN, RayNodes, await_true, clean_env, free_ports

from raylaunch import api
from raylaunch.errors import (
    BusyError,
    LaunchError,
    NotReadyError,
    PlacementError,
    UnknownDeploymentError,
)
from raylaunch.node.process import guard_socket
from raylaunch.node.process.process_markers import find_marked
from raylaunch.recipe.group_names import GATEWAY_GROUP
from raylaunch.supervise.state import Phase

pytestmark = pytest.mark.ray

QUICK = {
    "health.canary_idle_s": 1,
    "health.canary_timeout_s": 4,
    "health.stall_s": 5,
    "health.progress_period_s": 0.5,
}
READY_S = 120


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of 8 NPUs: one more than a deployment takes."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    settings = {
        "RAYLAUNCH_VLLM": str(STANDIN),
        "STANDIN_NOTICE_S": "16",
        "RAY_worker_niceness": "0",
    }
    home = folder / "home"
    nodes = RayNodes(
        folder / "ray", folder / "record", clean_env(home, RAY_AUTH_MODE="disabled", **settings)
    )
    before = {name: os.environ.get(name) for name in ("RAYLAUNCH_HOME", "RAY_AUTH_MODE")}
    os.environ.update(RAYLAUNCH_HOME=str(home), RAY_AUTH_MODE="disabled")
    try:
        nodes.start([8, 8, 8])
        yield nodes
    finally:
        from raylaunch.runtime.cluster.connection import disconnect

        disconnect()
        nodes.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        kill_own("test-")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(cluster, request):
    """Starts local-dual on the cluster; whatever the test does, it is stopped and nothing may be left."""
    name = (
        "test-" + request.node.name.removeprefix("test_").replace("_", "-").partition("[")[0][:50]
    )
    started = []

    def start(wait=True, recipe="local-dual", **changes):
        http, rpc = free_ports(2)
        ports = {"network.http_port": http} | (
            {"network.rpc_port": rpc} if recipe == "local-dual" else {}
        )
        started.append(name)
        changes = {
            **QUICK,
            **ports,
            **{path.replace("__", "."): value for path, value in changes.items()},
        }
        return api.deploy(recipe, set=changes, deployment=name, address=cluster.address, wait=wait)

    yield start
    with contextlib.suppress(UnknownDeploymentError):
        assert api.attach(name, cluster.address).stop().left == ()
    await_true(lambda: not find_marked(name), f"nothing left of {name}")


def await_phase(handle, phase, deadline_s=READY_S):
    return await_true(
        lambda: (status := handle.status()).phase is phase and status, f"{phase}", deadline_s
    )


def kinds(handle):
    return [event.kind for event in handle.events()]


def child(handle, server, title):
    """Pid of a process below a server."""
    below = psutil.Process(handle.status().servers[server].seen.pid).children(recursive=True)
    return next(one.pid for one in below if one.cmdline()[0].startswith(title))


def own_guard(handle, server):
    """What the guard of a server says of itself."""
    for report in guard_socket.find_guards(Path(os.environ["RAYLAUNCH_HOME"]), handle.name):
        if report.server == server:
            return report
    raise AssertionError(f"no guard of server {server}")


def ask(endpoint, tokens=4):
    body = {"model": "tiny", "prompt": "hi", "max_tokens": tokens}
    return httpx.post(f"{endpoint}/completions", json=body, trust_env=False, timeout=60)


def test_every_fault_of_the_drill_is_recovered_from(start, cluster):
    handle = start()
    outcomes = api.drill(handle.name, address=cluster.address)
    for one in outcomes:
        print(
            one.fault,
            one.detection_s,
            one.recovery_s,
            one.beyond_s,
            one.failed,
            one.requests,
            one.detected_by,
        )
    assert {one.fault: one.problem for one in outcomes if one.problem or one.skipped} == {}
    assert {one.fault for one in outcomes} >= {
        "kill-engine",
        "stop-headless",
        "kill-agent",
        "kill-controller",
    }
    by_name = {one.fault: one for one in outcomes}
    assert "EngineCore" in by_name["kill-engine"].detected_by
    assert "agent died" in by_name["kill-agent"].detected_by
    assert (by_name["kill-agent"].adopted, by_name["kill-agent"].failed) == (True, 0)
    assert "rank 1" in by_name["stop-headless"].detected_by
    assert by_name["kill-controller"].failed == 0
    check_causes(handle.events(), by_name)
    status = handle.status()
    assert status.phase is Phase.READY
    restarts = len(outcomes) - len(("kill-agent", "kill-controller"))
    assert status.attempt == 1 + restarts, "the servers outlive their agents and the controller"
    assert ask(status.endpoint).status_code == 200


def why_too_few(cluster):
    """What a start is told for which no two nodes are free."""
    changes = {"timeouts.reserve": 0.5}
    with pytest.raises(PlacementError) as caught:
        api.deploy("local-dual", set=changes, deployment="test-few", address=cluster.address)
    return caught.value.evidence


@pytest.mark.long  # the same on hosts is short: test_spare_host.py, a cut host
def test_a_lost_node_is_replaced_by_a_spare_one(start, cluster):
    # Nothing starts the raylet again: the spare node is used when the grace is over.
    handle = start(health__orphan_grace_s=3)
    (outcome,) = api.drill(handle.name, ["kill-raylet"], address=cluster.address)
    print(outcome)
    # Ray's own health check takes longer to notice it.
    await_true(lambda: ": lost, " in why_too_few(cluster), "the lost node in the error")
    cluster.add(8)  # for the tests that follow
    assert outcome.skipped == ""
    assert outcome.problem == ""
    assert "node died" in outcome.detected_by
    assert handle.status().phase is Phase.READY


@contextlib.contextmanager
def asking(endpoint):
    """Ask all the while, without retries; yields the list of what failed."""
    failures: list[str] = []
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            try:
                code = ask(endpoint).status_code
            except httpx.HTTPError as error:
                code = repr(error)
            if code != 200:
                failures.append(str(code))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield failures
    finally:
        is_over.set()
        thread.join()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_smaller_recipe_serves_while_a_node_is_lost_and_no_request_fails_when_it_is_back(
    start, cluster
):
    from raylaunch.runtime.cluster.node_tasks import head_node
    from raylaunch.runtime.controller.controller_client import find_controller

    handle = start(
        parallel__data=3,
        health__degrade_after_s=5,
        health__grow_back_after_s=5,
        # This machine lives: with a grace the servers would serve on without the raylet.
        health__orphan_grace_s=0,
        fallback=[{"set": {"parallel.data": 1}}],
    )
    controller = find_controller(handle.name)
    head = head_node()["NodeID"]
    lost = next(server for server, node in controller.node_ids(None).items() if node != head)
    controller.inject("kill-raylet", lost, None)
    try:
        status = await_true(
            lambda: (now := handle.status()).fallback and now.serves_all and now,
            "the fallback serves",
            deadline_s=300,
        )
        assert (status.phase, len(status.servers)) == (Phase.DEGRADED, 1)
        assert ask(status.endpoint).status_code == 200
    finally:
        with asking(handle.status().endpoint) as failures:
            cluster.add(8)  # for the tests that follow, too
            try:
                status = await_phase(handle, Phase.READY, deadline_s=300)
            finally:
                print(*handle.events(), sep="\n")
    assert failures == []
    assert (status.fallback, len(status.servers)) == ("", 3)
    assert "degraded" in kinds(handle)


def test_a_drill_that_cannot_be_says_why(start, cluster):
    handle = start()
    (outcome,) = api.drill(handle.name, ["cut-node"], address=cluster.address)
    assert "RAYLAUNCH_DRILL_CUT" in outcome.skipped


TWO_GROUPS = {"parallel.replicas": 2, "parallel.data": 1, "parallel.data_local": 1}


def test_a_groups_failure_touches_no_other_group(start, cluster):
    """Two groups on three nodes: one is killed, then the controller; the other never notices."""
    from raylaunch.runtime.controller.controller_client import find_controller

    handle = start(**TWO_GROUPS)
    status = handle.status()
    assert [group.name for group in status.groups] == ["serve-0", "serve-1"]
    endpoints = [group.endpoint for group in status.groups]
    assert len(set(endpoints)) == 2, "both are on this machine"
    assert [ask(endpoint).status_code for endpoint in endpoints] == [200, 200]
    before = {one.pid for one in find_marked(handle.name) if one.group == "serve-0"}
    assert before

    os.kill(status.groups[1].servers[0].seen.pid, signal.SIGKILL)
    degraded = await_phase(handle, Phase.DEGRADED)
    assert degraded.groups[0].phase is Phase.READY
    assert ask(endpoints[0]).status_code == 200
    status = await_phase(handle, Phase.READY)
    assert [(group.attempt, group.restarts) for group in status.groups] == [(1, 0), (2, 1)]
    assert status.groups[1].endpoint == endpoints[1]
    assert {event.group for event in handle.events() if event.kind == "exit"} == {"serve-1"}
    assert api.attach(f"{handle.name}/serve-1", cluster.address).status().attempt == 2
    bundles = Path(os.environ["RAYLAUNCH_HOME"]) / "bundles" / handle.name
    assert [folder.name for folder in bundles.iterdir()] == ["serve-1"]

    running = {one.pid for one in find_marked(handle.name)}
    find_controller(handle.name).crash()
    await_true(lambda: kinds(handle).count("adopted") == 2, "both groups are adopted")
    await_phase(handle, Phase.READY)  # the gateway answers the new controller too
    assert {one.pid for one in find_marked(handle.name)} == running >= before
    numbers = [event.number for event in handle.events()]
    assert numbers == sorted(set(numbers)), "one numbering over both groups"


def test_a_group_that_failed_keeps_the_others_and_is_not_forgotten(start):
    from raylaunch.runtime.controller.controller_client import find_controller

    broken = {"env__STANDIN_FAIL": "bad-flag", "env__STANDIN_FAIL_GROUPS": "serve-1"}
    handle = start(wait=False, **TWO_GROUPS, **broken)
    with pytest.raises(NotReadyError, match="1 of 2 groups") as refused:
        handle.wait_ready()
    assert "calculate-kv-scales" in refused.value.evidence
    status = handle.status()
    assert [group.phase for group in status.groups] == [Phase.READY, Phase.FAILED]
    endpoint = await_true(lambda: handle.status().endpoint, "the gateway is up")
    assert ask(endpoint).status_code == 200
    find_controller(handle.name).crash()
    await_true(lambda: "adopted" in kinds(handle), "a controller that has found its agents")
    status = handle.status()
    assert [group.phase for group in status.groups] == [Phase.READY, Phase.FAILED]
    assert status.groups[1].error == handle.status().groups[1].error


def answer_of(handle):
    endpoint = handle.status().endpoint
    return ask(endpoint) if endpoint else None


def test_failing_again_and_again_ends_as_failed_with_the_diagnosis(start):
    handle = start(
        env__STANDIN_FAIL="engine-exits", health__max_restarts=1, health__backoff_first_s=0.1
    )
    status = await_phase(handle, Phase.FAILED)
    assert status.attempt == 2
    assert "1 restarts within" in status.error["why"]
    assert status.error["evidence"]
    assert kinds(handle).count("diagnosis") == 2
    found = api.diagnose(handle.name)
    assert found is not None
    assert found.root in (0, 1)
    left = {one.group for one in find_marked(handle.name)}
    assert left == {GATEWAY_GROUP}, "a failed deployment keeps no server"
    answer = await_true(lambda: answer_of(handle), "the gateway answers without waiting")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "all_groups_failed")


def test_a_bad_flag_is_not_tried_twice(start):
    with pytest.raises(LaunchError, match="server 1") as refused:
        start(env__STANDIN_FAIL="bad-flag", env__STANDIN_FAIL_SERVERS="1")
    assert "--calculate-kv-scales" in str(refused.value)
    assert refused.value.todo


def test_a_start_that_fails_once_is_tried_again(start):
    handle = start(env__STANDIN_FAIL="oom-killer", env__STANDIN_FAIL_ATTEMPTS="1")
    status = handle.status()
    assert (status.phase, status.attempt, status.restarts) == (Phase.READY, 2, 1)


def test_without_a_grace_an_agents_death_stops_its_server(start):
    handle = start(health__orphan_grace_s=0)
    server = psutil.Process(handle.status().servers[1].seen.pid)
    report = own_guard(handle, 1)
    agent = psutil.Process(report.owner)
    assert "ray::Agent" in " ".join(agent.cmdline())
    ancestors = [process.pid for process in server.parents()]
    assert ancestors[:2] == [report.pid, report.keeper]
    assert agent.pid not in ancestors, "no process of Ray is above the server"
    agent.kill()
    assert not psutil.wait_procs([server], timeout=60)[1]
    await_true(lambda: handle.status().attempt == 2, "a second attempt")
    await_phase(handle, Phase.READY)


@pytest.mark.long
def test_an_agents_death_beside_the_controllers_fails_no_request(start, cluster):
    from raylaunch.runtime.controller.controller_client import find_controller

    handle = start(env__STANDIN_TOKEN_S="0.02")
    endpoint = handle.endpoint
    pids = [server.seen.pid for server in handle.status().servers]
    answers = []
    clients = [
        threading.Thread(target=lambda: answers.append(ask(endpoint, 200).status_code))
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    find_controller(handle.name).crash()
    for server in (0, 1):
        os.kill(own_guard(handle, server).owner, signal.SIGKILL)
    await_true(
        lambda: (
            [event.text for event in handle.events()].count("another agent has adopted the server")
            == 2
        ),
        "both servers have an agent again",
    )
    for client in clients:
        client.join()
    assert answers == [200] * 4
    assert await_phase(handle, Phase.READY).attempt == 1
    # The controller knows them with the agents' next reports.
    await_true(
        lambda: [server.seen.pid for server in handle.status().servers] == pids,
        "the servers are those of before",
    )
    # Under control again: the next fault is handled, and nothing of the old attempt is left.
    (outcome,) = api.drill(handle.name, ["kill-agent"], address=cluster.address)
    assert (outcome.problem, outcome.adopted, outcome.failed) == ("", True, 0)
    os.kill(child(handle, 1, "VLLM::EngineCore"), signal.SIGKILL)
    await_true(lambda: handle.status().attempt == 2, "a second attempt")
    await_phase(handle, Phase.READY)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_controllers_death_fails_no_request_in_flight(start):
    from raylaunch.runtime.controller.controller_client import find_controller

    handle = start(env__STANDIN_TOKEN_S="0.02")
    endpoint, attempt = handle.endpoint, handle.status().attempt
    answers = []
    clients = [
        threading.Thread(target=lambda: answers.append(ask(endpoint, 200).status_code))
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    find_controller(handle.name).crash()
    await_true(lambda: "adopted" in kinds(handle), "a controller that has found its agents")
    for client in clients:
        client.join()
    assert answers == [200] * 4
    assert handle.status().attempt == attempt
    os.kill(child(handle, 1, "VLLM::EngineCore"), signal.SIGKILL)
    await_true(
        lambda: handle.status().attempt == attempt + 1, "the new controller restarts as the old one"
    )


def test_the_controllers_death_during_a_start(start):
    from raylaunch.runtime.controller.controller_client import find_controller

    handle = start(wait=False, env__STANDIN_START_S="6")
    await_true(
        lambda: "launched attempt 1" in [event.text for event in handle.events()], "the launch"
    )
    find_controller(handle.name).crash()
    await_true(lambda: "adopted" in kinds(handle), "a controller that has found its agents")
    assert await_phase(handle, Phase.READY).attempt == 1


@contextlib.contextmanager
def thief(port):
    """Takes the port as soon as it is free."""
    end = threading.Event()

    def steal():
        while not end.is_set():
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind(("", port))
                    sock.listen()
                except OSError:
                    end.wait(0.001)
                else:
                    end.wait()

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def http_port(handle):
    return httpx.URL(handle.status().groups[0].endpoint).port


def test_stop_in_the_midst_of_a_restart(start):
    handle = start()
    with thief(http_port(handle)):
        os.kill(child(handle, 1, "VLLM::EngineCore"), signal.SIGKILL)
        await_phase(handle, Phase.RESTARTING)
        assert handle.stop().left == ()


def test_stop_in_the_midst_of_a_start(start):
    handle = start(wait=False, env__STANDIN_START_S="60")
    await_true(lambda: handle.status().phase is Phase.STARTING, "starting")
    assert handle.stop().left == ()


@pytest.mark.long
def test_whoever_keeps_the_port_is_named(start):
    handle = start()
    with thief(http_port(handle)):
        os.kill(child(handle, 1, "VLLM::EngineCore"), signal.SIGKILL)
        status = await_phase(handle, Phase.FAILED)
    assert f"port {http_port(handle)}" in status.error["why"]
    assert f"pid {os.getpid()}" in status.error["why"]


def test_a_restart_goes_around_whoever_took_the_port_of_the_handshake(start, tmp_path):
    """The recipe's port, that is: one from the command line is not moved."""
    (port,) = free_ports(1)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"extends: local-dual\nnetwork:\n  rpc_port: {port}\n")
    handle = start(recipe=str(recipe))
    with thief(port):
        os.kill(child(handle, 1, "VLLM::EngineCore"), signal.SIGKILL)
        await_true(lambda: handle.status().attempt == 2, "the second attempt")
        status = await_phase(handle, Phase.READY)
    (moved,) = (one.what for one in status.findings if one.id == "port-moved")
    assert f"instead of {port}: {port} is used by pid {os.getpid()}" in moved


def test_two_operators_at_once(start, cluster):
    handle = start()
    with pytest.raises(BusyError, match="already exists"):
        start()
    told = []

    def stop():
        try:
            told.append(api.Deployment(handle.name).stop().left)
        except UnknownDeploymentError as error:
            told.append(str(error))

    operators = [threading.Thread(target=stop) for _ in range(2)]
    for operator in operators:
        operator.start()
    for operator in operators:
        operator.join()
    assert () in told
    assert all(one == () or "stopped" in one or "no deployment" in one for one in told)


def test_no_drill_while_it_starts(start, cluster):
    handle = start(wait=False, env__STANDIN_START_S="30")
    with pytest.raises(BusyError, match="needs it ready"):
        api.drill(handle.name, ["kill-engine"], address=cluster.address)


def test_a_bundle_holds_what_a_person_needs(start):
    handle = start(
        env__STANDIN_FAIL="engine-exits",
        env__STANDIN_FAIL_ATTEMPTS="1",
        env__STANDIN_FAIL_SERVERS="1",
    )
    await_true(lambda: handle.status().attempt == 2, "a second attempt")
    await_phase(handle, Phase.READY)
    (bundle,) = (Path(os.environ["RAYLAUNCH_HOME"]) / "bundles" / handle.name / "serve-0").iterdir()
    names = {path.name for path in bundle.iterdir()}
    assert names >= {
        "plan.json",
        "versions.json",
        "servers.json",
        "diagnosis.json",
        "timeline.jsonl",
    }
    assert names >= {
        f"server-{index}.{what}" for index in (0, 1) for what in ("log", "processes.txt")
    }
    found = api.diagnose(str(bundle))
    assert found is not None
    assert found.root == 1
    assert found == api.diagnose(handle.name)


ROUNDS = 100
SETTLED = 20


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_rounds_leave_nothing_and_grow_nothing(start):
    """Start, kill, restart: processes, open files and memory of the controller and the agents level off."""
    handle = start(health__max_restarts=10_000, health__backoff_first_s=0, health__device_pause_s=0)
    sizes = []
    for number in range(1, ROUNDS + 1):
        title = "VLLM::EngineCore" if number % 2 else "VLLM::Worker"
        os.kill(child(handle, number % 2, title), signal.SIGKILL)
        await_true(
            lambda attempt=number + 1: handle.status().attempt == attempt, f"attempt {number + 1}"
        )
        await_phase(handle, Phase.READY)
        sizes.append(measure(handle))
        assert {one.attempt for one in find_marked(handle.name)} == {number + 1}
    for what in ("processes", "files", "megabytes"):
        early, late = (
            max(one[what] for one in part)
            for part in (sizes[SETTLED : SETTLED * 2], sizes[-SETTLED:])
        )
        print(what, sizes[0][what], early, late)
        assert late <= early * 1.1, f"{what} grew from {early} to {late} over {ROUNDS} rounds"
    logs = Path(handle.status().servers[0].log).parent.parent
    assert len(list(logs.glob("attempt-*"))) <= 6, "old attempts' logs are removed"
    assert (
        len(
            list(
                (Path(os.environ["RAYLAUNCH_HOME"]) / "bundles" / handle.name / "serve-0").iterdir()
            )
        )
        <= 10
    )


def ours(process):
    """Whether it is an actor of this file's cluster: Ray's workers inherit the environment of `ray start`."""
    return process.environ().get("RAYLAUNCH_HOME") == os.environ["RAYLAUNCH_HOME"]


def measure(handle):
    """Of the actors of a deployment: all processes below them, their open files, their memory."""
    guards = guard_socket.find_guards(Path(os.environ["RAYLAUNCH_HOME"]), handle.name)
    agents = [psutil.Process(guard.owner) for guard in guards]
    head = [
        one
        for one in psutil.process_iter()
        if one.name().startswith("ray::Controller") and ours(one)
    ]
    actors = {one.pid: one for one in [*agents, *head]}
    return {
        "processes": len(find_marked(handle.name)),
        "files": sum(one.num_fds() for one in actors.values()),
        "megabytes": sum(one.memory_full_info().uss for one in actors.values()) / 1e6,
    }
