"""The supervisor of an embedded cluster's daemons. Shells stand in for Ray's GCS and raylets."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys

import pytest
from ray_clusters import await_true

from raylaunch.errors import ClusterError
from raylaunch.node.process.guard import Process, read_process
from raylaunch.node.process.process_markers import ANY_INSTANCE, is_alive, terminate_marked
from raylaunch.node.process.ray_daemons import RayDaemon, marked_daemons
from raylaunch.runtime.cluster.daemon_supervisor import (
    GCS_CLOSED_S,
    GCS_POLL_S,
    GCS_WAIT_S,
    LONGEST_PAUSE_S,
    STEADY_S,
    DaemonSupervisor,
    find_supervisors,
    prepared_supervisor,
    supervise,
)

NODE = "ab" * 28


@pytest.fixture
def marker():
    """Of its own: tests run beside each other."""
    return f"@test-supervised-{secrets.token_hex(4)}"


@pytest.fixture
def daemons(marker, tmp_path):
    """A GCS and two raylets with the marker; whatever has it is killed afterwards."""
    os.mkfifo(tmp_path / "never")
    env = {"RAYLAUNCH_DEPLOYMENT": marker, "PATH": os.environ["PATH"], "KEPT": "a b"}
    with contextlib.ExitStack() as stack:
        for name, *options in (
            ("gcs_server", f"--node-id={NODE}"),
            ("raylet", f"--node_id={NODE}", "--head"),
            ("raylet", f"--node_id={'cd' * 28}"),
        ):
            program = tmp_path / name
            if not program.exists():
                shutil.copy(shutil.which("bash"), program)
            process = subprocess.Popen(
                [str(program), "-c", "echo; read -r line <> never", "", *options],
                env=env,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            process.stdout.readline()
        yield lambda: marked_daemons(marker)
        assert not terminate_marked(marker, instance=ANY_INSTANCE, grace_s=0)


@pytest.fixture
def supervised(daemons, marker, tmp_path):
    """The real supervisor, as `raylaunch start` runs it."""
    env = {**os.environ, "RAYLAUNCH_DEPLOYMENT": marker}
    with prepared_supervisor(marker, str(tmp_path), env) as process:
        supervise(process)
        assert process.wait(60) == 0, "no child of the command"
    return daemons


def pids(daemons):
    return [daemon.process.pid for daemon in daemons]


def kill(daemon: RayDaemon) -> None:
    os.kill(daemon.process.pid, signal.SIGKILL)


def test_a_killed_daemon_is_started_again_as_it_was(supervised, marker, tmp_path):
    gcs, first, second = supervised()
    kill(gcs)
    # The killed one is listed until the kernel has taken it away.
    await_true(
        lambda: (now := supervised()[0]).kind == "gcs_server" and pids([now]) != pids([gcs]),
        "another GCS",
    )
    again = supervised()[0]
    assert (again.argv, again.env, again.cwd) == (gcs.argv, gcs.env, gcs.cwd)
    assert pids(supervised())[1:] == pids([first, second]), "the raylets are left alone"
    (supervisor,) = find_supervisors(marker)
    assert os.getsid(supervisor.pid) != os.getsid(0)
    told = tmp_path / "daemons.log"
    await_true(lambda: "started gcs_server again" in told.read_text(), "a line in its log")


def test_all_daemons_killed_at_the_same_moment_are_started_again(supervised):
    before = supervised()
    for daemon in before:
        kill(daemon)
    await_true(
        lambda: len(found := supervised()) == 3 and not set(pids(found)) & set(pids(before)),
        "all daemons again",
    )
    assert [daemon.kind for daemon in supervised()] == ["gcs_server", "raylet", "raylet"]
    nodes = {daemon.node_id for daemon in supervised()[1:]}
    assert len(nodes) == 2
    assert not nodes & {daemon.node_id for daemon in before}
    assert {"--head" in daemon.argv for daemon in supervised()[1:]} == {True, False}


def test_a_start_that_is_given_up_leaves_no_supervisor(marker, tmp_path):
    env = {**os.environ, "RAYLAUNCH_DEPLOYMENT": marker}
    with prepared_supervisor(marker, str(tmp_path), env):
        pass
    await_true(lambda: not find_supervisors(marker), "no supervisor")


def test_a_supervisor_that_does_not_start_is_an_error():
    command = [sys.executable, "-c", ""]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        pytest.raises(ClusterError, match="did not start"),
    ):
        supervise(process)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def dead(kind: str) -> RayDaemon:
    """A daemon that has exited before it is watched."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return RayDaemon(Process(process.pid, 1, "S", 1), (f"/bin/{kind}",), (), "/")


@pytest.fixture
def failing():
    """A supervisor of a dead GCS and a dead raylet, whose starts fail as they are told to."""
    clock = Clock()
    started: list[str] = []
    broken: set[str] = set()

    def start(daemon: RayDaemon) -> Process:
        started.append(daemon.kind)
        if daemon.kind in broken:
            raise OSError("no space left")
        return read_process(os.getpid())

    supervisor = DaemonSupervisor([dead("gcs_server"), dead("raylet")], start, clock=clock)
    return supervisor, clock, started, broken


def test_a_raylet_waits_until_the_gcs_is_started(failing):
    supervisor, clock, started, broken = failing
    broken.add("gcs_server")
    supervisor.step()
    assert set(started) == {"gcs_server"}
    broken.clear()
    clock.now += LONGEST_PAUSE_S
    supervisor.step()
    assert started[-2:] == ["gcs_server", "raylet"]


def test_a_gcs_that_exits_after_its_raylet_is_not_waited_for_but_started():
    """As when both are killed, and the kernel takes longer for the one with more memory."""
    with subprocess.Popen(["sleep", "600"]) as gcs:
        alive = RayDaemon(read_process(gcs.pid), ("/bin/gcs_server",), (), "/")
        clock, started, answering = Clock(), [], []

        def start(daemon: RayDaemon) -> Process:
            started.append(daemon.kind)
            return read_process(os.getpid())

        raylet = dead("raylet")
        supervisor = DaemonSupervisor([alive, raylet], start, lambda _: bool(answering), clock)
        supervisor.step()
        assert started == [], "the GCS does not answer any more, and has not exited yet"
        gcs.kill()
        supervisor.step()
        assert started == ["gcs_server"]
        answering.append(True)
        clock.now += GCS_POLL_S
        supervisor.step()
        assert started == ["gcs_server", "raylet"]


def test_a_gcs_that_hangs_in_its_shutdown_is_killed_and_one_that_has_not_begun_is_not():
    with contextlib.ExitStack() as stack:
        daemons = []
        for kind in ("gcs_server", "raylet"):
            process = stack.enter_context(subprocess.Popen(["sleep", "600"]))
            stack.callback(process.kill)
            daemons.append(RayDaemon(read_process(process.pid), (f"/bin/{kind}",), (), "/"))
        clock, answers, started = Clock(), [False], []

        def start(daemon: RayDaemon) -> Process:
            started.append(daemon.kind)
            return read_process(os.getpid())

        supervisor = DaemonSupervisor(daemons, start, lambda _: answers[-1], clock)
        supervisor._timeout_ms = lambda: 0

        def steps() -> None:
            for _ in range(3):
                supervisor.step()
                clock.now += GCS_CLOSED_S

        gcs = daemons[0].process
        steps()
        assert is_alive(gcs), "it may be loading its tables"
        answers.append(True)
        steps()
        answers.append(False)
        steps()
        await_true(lambda: supervisor.step() or started, "another GCS")
        assert started == ["gcs_server"]
        assert not is_alive(gcs)


def test_a_raylet_does_not_wait_for_ever_for_a_gcs_that_does_not_answer():
    clock, started = Clock(), []

    def start(daemon: RayDaemon) -> Process:
        started.append(daemon.kind)
        return read_process(os.getpid())

    supervisor = DaemonSupervisor([dead("raylet")], start, lambda _: False, clock)
    began = clock.now
    while not started:
        supervisor.step()
        clock.now = supervisor.watched[0].due_at or clock.now
    assert GCS_WAIT_S <= clock.now - began <= GCS_WAIT_S + 1


def test_the_pause_grows_up_to_a_limit_and_begins_again_after_a_steady_run(failing):
    supervisor, clock, _, broken = failing
    broken.add("gcs_server")
    gcs = supervisor.watched[0]
    pauses = []
    for _ in range(9):
        supervisor.step()
        pauses.append(gcs.due_at - clock.now)
        clock.now = gcs.due_at
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_S
    broken.clear()
    supervisor.step()
    assert gcs.due_at is None
    clock.now += STEADY_S
    supervisor._on_exit(gcs)
    assert gcs.due_at == clock.now, "at the first exit without a pause"
