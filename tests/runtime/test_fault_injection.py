"""Faults of a drill: they hit the named process and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from raylaunch.errors import NodeError
from raylaunch.node.process.guard import read_process
from raylaunch.node.process.ray_daemons import RayDaemon
from raylaunch.node.process.vllm_children import VllmChild
from raylaunch.runtime.agent import fault_injection
from raylaunch.runtime.agent.fault_injection import Targets, inject_fault

PATIENCE_S = 60
NEVER = 2**22 + 1
"""No pid: above the largest pid_max of Linux."""


@pytest.fixture
def process():
    """A process with a child, both waiting for a signal."""
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as found:
        found.child = int(found.stdout.readline())
        yield found
        for pid in (found.child, found.pid):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def targets(**pids) -> Targets:
    def no_engine() -> VllmChild:
        raise NodeError("the server (pid 1) has no engine core")

    given = {"server": NEVER, "guard": NEVER, "find_engine": no_engine}
    return Targets(**{**given, "agent": NEVER, "raylet": NEVER, **pids})


def never(*_):
    raise AssertionError("nothing is to be done later")


@pytest.mark.parametrize(
    ("fault", "name"), [("kill-server", "server"), ("kill-guard", "guard")], ids=str
)
def test_a_process_is_killed_by_its_pid(process, fault, name):
    done = inject_fault(fault, 0, targets(**{name: process.pid}), never)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert f"(pid {process.pid})" in done.what


def test_an_engine_core_is_found_when_the_fault_is_injected(process):
    engine = VllmChild(process.pid, "VLLM::EngineCore_DP0", -1)
    done = inject_fault("kill-engine", 0, targets(find_engine=lambda: engine), never)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert done.what == f"SIGKILL to VLLM::EngineCore_DP0 (pid {process.pid})"


def test_a_server_is_stopped_with_everything_below_it(process):
    done = inject_fault("stop-server", 0, targets(server=process.pid), never)
    child = psutil.Process(process.child)
    deadline = time.monotonic() + PATIENCE_S
    while child.status() != psutil.STATUS_STOPPED:  # no notice to a process that is not the parent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.waitpid(process.pid, os.WUNTRACED)[1] & 0xFF == 0x7F
    assert str(process.child) in done.what


@pytest.mark.parametrize("fault", ["kill-agent", "kill-raylet"])
def test_what_the_answer_needs_is_killed_after_the_answer(process, fault):
    later = []
    name = fault.removeprefix("kill-")
    given = targets(**{name: process.pid})
    done = inject_fault(fault, 0, given, lambda after, kill: later.append((after, kill)))
    assert process.poll() is None
    [(after, kill)] = later
    wanted = {"kill-agent": fault_injection.ANSWER_S, "kill-raylet": fault_injection.LEAVE_S}
    assert after == wanted[fault]
    kill()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert f"(pid {process.pid})" in done.what


@pytest.mark.parametrize("fault", ["kill-server", "kill-guard", "kill-raylet", "stop-server"])
def test_init_is_never_a_target(fault):
    given = targets(server=1, guard=1, raylet=1)
    with pytest.raises(NodeError, match=r"pid 1\) has exited already"):
        inject_fault(fault, 0, given, never)


@pytest.mark.parametrize("fault", ["kill-server", "kill-guard", "kill-agent", "stop-server"])
def test_a_target_that_has_exited_is_named(fault):
    with pytest.raises(NodeError, match=f"pid {NEVER}. has exited already"):
        inject_fault(fault, 0, targets(), never)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("kill-engine", "no engine core"),
        ("steal-port", "no engine core"),
        ("kill-moon", "no such fault: kill-moon"),
        ("cut-node", "may not be cut off"),
    ],
    ids=str,
)
def test_what_cannot_be_injected_says_why(monkeypatch, fault, what):
    monkeypatch.delenv(fault_injection.CUT_VARIABLE, raising=False)
    with pytest.raises(NodeError, match=what):
        inject_fault(fault, 0, targets(), never)


def test_a_guard_that_does_not_run_yet_is_not_killed():
    with pytest.raises(NodeError, match="not running yet"):
        inject_fault("kill-guard", 0, targets(guard=None), never)


def test_a_port_is_taken_the_moment_it_is_free():
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        thief = threading.Thread(target=fault_injection.steal_port, args=(port, 0.5), daemon=True)
        thief.start()
    deadline = threading.Event()
    while thief.is_alive():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        deadline.wait(0.005)
    else:
        pytest.fail("nothing listened on the stolen port")
    thief.join(PATIENCE_S)


def daemon(process, name: str) -> RayDaemon:
    return RayDaemon(read_process(process.pid), (f"/bin/{name}",), (), "/")


def await_gone(process: psutil.Process) -> None:
    """Wait for the exit of a process whose new parent may not reap it."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # no notice to a process that is not the parent


@pytest.mark.parametrize(
    ("fault", "number", "hit"),
    [
        ("kill-gcs", signal.SIGKILL, [True, False]),
        ("restart-ray", signal.SIGTERM, [True, True]),
        ("kill-ray", signal.SIGKILL, [True, True]),
    ],
)
def test_daemons_of_ray_are_signalled_after_the_clients_have_left(process, fault, number, hit):
    with subprocess.Popen(["sleep", "600"]) as gcs:
        try:
            found = [daemon(gcs, "gcs_server"), daemon(process, "raylet")]
            later = []
            done = inject_fault(
                fault,
                0,
                targets(find_ray=lambda: found),
                lambda after, work: later.append((after, work)),
            )
            child = psutil.Process(process.child)
            [(after, work)] = later
            assert after == fault_injection.LEAVE_S
            assert f"gcs_server (pid {gcs.pid})" in done.what
            work()
            assert gcs.wait(PATIENCE_S) == -number
            if hit[1]:
                assert process.wait(PATIENCE_S) == -number
            assert (process.poll() is not None) is hit[1]
            # Only "kill-ray" takes what a raylet has started along.
            if fault == "kill-ray":
                await_gone(child)
            else:
                assert child.is_running()
        finally:
            gcs.kill()


def test_a_node_without_the_gcs_says_so(process):
    found = [daemon(process, "raylet")]
    with pytest.raises(NodeError, match="no daemon of Ray on this node for kill-gcs"):
        inject_fault("kill-gcs", 0, targets(find_ray=lambda: found), never)


def test_what_a_drill_may_do_is_in_the_environment_of_the_raylet():
    env = {fault_injection.CUT_VARIABLE: "eth9", "RAYLAUNCH_RAY_RESTARTS": "supervisor"}
    assert fault_injection.drill_limits(env) == fault_injection.DrillLimits("eth9", "supervisor")
    assert fault_injection.drill_limits({}) == fault_injection.DrillLimits("", "")
