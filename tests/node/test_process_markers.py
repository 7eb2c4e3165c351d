"""Finds and terminates processes by marker, with real processes."""

import os
import signal
import subprocess
import sys
import uuid

import pytest
from process_trees import PATIENCE_S, python
from stopping import stop

from raylaunch.node.process import process_markers
from raylaunch.node.process.guard import Process, read_process, send_signal
from raylaunch.node.process.process_markers import (
    ANY_INSTANCE,
    find_marked,
    new_instance,
    terminate_marked,
)


@pytest.fixture
def deployment():
    name = f"test-{uuid.uuid4().hex}"
    yield name
    terminate_marked(name, instance=ANY_INSTANCE, grace_s=0)
    assert find_marked(name) == []


@pytest.fixture
def run():
    """Start a marked Python script and wait for its first line."""
    started = []

    def start(deployment, attempt=1, server=0, script="say('up'); sleep()", instance="i"):
        env = {
            "RAYLAUNCH_DEPLOYMENT": deployment,
            "RAYLAUNCH_INSTANCE": instance,
            "RAYLAUNCH_ATTEMPT": str(attempt),
            "RAYLAUNCH_SERVER": str(server),
        }
        process = subprocess.Popen(
            python(script), env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def test_finds_by_deployment_attempt_and_server(deployment, run):
    first, second, third = run(deployment, 1, 0), run(deployment, 2, 0), run(deployment, 2, 1)
    other = run(deployment + "-other", 1, 0)

    def pids(*narrow):
        return {found.pid for found in find_marked(*narrow)}

    assert pids(deployment) == {first.pid, second.pid, third.pid}
    assert pids(deployment, 2) == {second.pid, third.pid}
    assert pids(deployment, 2, 1) == {third.pid}
    assert {first.pid, other.pid} <= pids()


def test_describes_what_it_finds(deployment, run):
    process = run(deployment, 7)
    (found,) = find_marked(deployment)
    assert (found.pid, found.deployment, found.attempt) == (process.pid, deployment, 7)
    assert found.command.startswith(sys.executable)
    assert 0 <= found.age_s < PATIENCE_S


def test_marker_without_a_number_is_still_found(deployment, run):
    run(deployment, "x", "y")
    (found,) = find_marked(deployment)
    assert found.attempt == 0


def test_a_zombie_is_dead(deployment, run):
    process = run(deployment)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert find_marked(deployment) == []


def test_terminates_exactly_the_marked(deployment, run):
    polite = run(
        deployment,
        1,
        script="signal.signal(signal.SIGTERM, lambda *_: os._exit(9)); say('up'); sleep()",
    )
    stopped = run(
        deployment,
        1,
        script="signal.signal(signal.SIGTERM, lambda *_: os._exit(9)); say('up'); sleep()",
    )
    later = run(deployment, 2)
    stop(stopped.pid)
    assert terminate_marked(deployment, 1, instance=ANY_INSTANCE, grace_s=PATIENCE_S) == []
    assert (polite.wait(PATIENCE_S), stopped.wait(PATIENCE_S)) == (9, 9)
    assert [found.pid for found in find_marked(deployment)] == [later.pid]


def test_only_the_given_instance_is_terminated(deployment, run):
    """Another cluster, or another home, runs a deployment of the same name."""
    own = run(deployment, instance="aaaa")
    other = run(deployment, instance="bbbb")
    unmarked = run(deployment, instance="")
    assert terminate_marked(deployment, instance="aaaa", grace_s=PATIENCE_S) == []
    assert own.wait(PATIENCE_S) == -signal.SIGTERM
    assert {found.pid for found in find_marked(deployment)} == {other.pid, unmarked.pid}
    (found,) = find_marked(deployment, instance="bbbb")
    assert (found.pid, found.instance) == (other.pid, "bbbb")
    assert terminate_marked(deployment, instance="", grace_s=0) == []
    assert other.poll() is None, "no instance is not any instance"


def test_whoever_terminates_has_to_name_the_instance(deployment):
    with pytest.raises(TypeError, match="instance"):
        terminate_marked(deployment)


def test_instances_are_random():
    assert len({new_instance() for _ in range(100)}) == 100


def test_kills_what_ignores_sigterm(deployment, run):
    process = run(deployment, script="ignore_term(); fork(stubborn); say('up'); sleep()")
    assert terminate_marked(deployment, instance=ANY_INSTANCE, grace_s=0.1) == []
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_without_grace_there_is_no_sigterm(deployment, run):
    process = run(
        deployment,
        script="signal.signal(signal.SIGTERM, lambda *_: os._exit(9)); say('up'); sleep()",
    )
    assert terminate_marked(deployment, instance=ANY_INSTANCE, grace_s=0) == []
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_terminates_them_on_a_kernel_without_pidfds(deployment, run, monkeypatch):
    def refuse(_pid):
        raise OSError(38, "Function not implemented")

    process = run(deployment, script="ignore_term(); say('up'); sleep()")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert terminate_marked(deployment, instance=ANY_INSTANCE, grace_s=0.1) == []
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_reports_what_resists(deployment, run, monkeypatch):
    process = run(deployment)
    monkeypatch.setattr(process_markers, "send_signal", lambda *_: None)
    left = terminate_marked(deployment, instance=ANY_INSTANCE, grace_s=0, kill_timeout_s=0.1)
    assert [found.pid for found in left] == [process.pid]


def test_a_recycled_pid_is_left_alone(deployment, run):
    script = """
signal.signal(signal.SIGHUP, lambda *_: say("hit"))
signal.signal(signal.SIGTERM, lambda *_: (say("terminated"), os._exit(0)))
say("up"); sleep()
"""
    process = run(deployment, script=script)
    now = read_process(process.pid)
    send_signal(Process(now.pid, now.ppid, now.state, now.started - 1), signal.SIGHUP)
    send_signal(now, signal.SIGTERM)
    assert process.stdout.read() == b"terminated\n"


def test_the_caller_is_never_a_target(deployment):
    """An owner that carries the marker itself terminates the others and survives."""
    code = (
        "from raylaunch.node.process.process_markers import ANY_INSTANCE, terminate_marked\n"
        f"print(terminate_marked({deployment!r}, instance=ANY_INSTANCE, grace_s=0))"
    )
    env = {**os.environ, "RAYLAUNCH_DEPLOYMENT": deployment}
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, check=True
        ).stdout
        == b"[]\n"
    )
