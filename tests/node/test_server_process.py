"""The owner's side: environment, state, termination."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_trees import PATIENCE_S, Watched, parent_of
from stopping import stop

from raylaunch.node.process import server_process as process
from raylaunch.node.process.process_markers import find_marked
from raylaunch.node.process.server_env import child_env
from raylaunch.node.process.server_process import ServerProcess, ServerSpec

MARKER = {"deployment": "d", "instance": "i", "attempt": 3, "server": 1}
MARKED = {
    "RAYLAUNCH_DEPLOYMENT": "d",
    "RAYLAUNCH_INSTANCE": "i",
    "RAYLAUNCH_ATTEMPT": "3",
    "RAYLAUNCH_SERVER": "1",
    "SPT_NOENV": "1",
}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "server-0.log"


def test_child_env_is_complete_and_without_rays_part():
    base = {
        "PATH": "/bin",
        "PYTHONPATH": "/somewhere",
        "RAY_ADDRESS": "x",
        "RAY_JOB_ID": "y",
        "ASCEND_RT_VISIBLE_DEVICES": "7,2",
        "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": "z",
    }
    env = child_env(base, {"A": "1"}, ["HTTP_PROXY"], **MARKER)
    assert env == {"PATH": "/bin", "PYTHONPATH": "/somewhere", "A": "1", **MARKED}


def test_child_env_plan_wins_over_inherited_secret_over_plan_marker_over_all():
    plan = {"A": "plan", "KEY": "", "ASCEND_RT_VISIBLE_DEVICES": "0,1", "RAYLAUNCH_ATTEMPT": "1"}
    env = child_env({"A": "base"}, plan, ["A"], **MARKER, secrets={"KEY": "secret"})
    assert env == {"A": "plan", "KEY": "secret", "ASCEND_RT_VISIBLE_DEVICES": "0,1", **MARKED}


def test_child_env_touches_nothing_else():
    base, plan = {"RAY_X": "1"}, {"A": "1"}
    child_env(base, plan, **MARKER)
    assert (base, plan) == ({"RAY_X": "1"}, {"A": "1"})


def test_spec_does_not_show_secrets():
    spec = ServerSpec(argv=("vllm",), env={"VLLM_API_KEY": "hush"}, log="/log")
    assert "hush" not in repr(spec)


def test_guard_gets_no_secrets(deployment, log):
    server = Watched(
        deployment, log, "sleep()", env={**marked_env(deployment), "VLLM_API_KEY": "hush"}
    )
    server.event("spawned")
    for pid in (server.process.guard_pid, parent_of(server.process.guard_pid)):
        proc = Path(f"/proc/{pid}")
        assert b"hush" not in (proc / "environ").read_bytes() + (proc / "cmdline").read_bytes()
    assert b"VLLM_API_KEY=hush" in Path(f"/proc/{server.process.pid}/environ").read_bytes()
    server.process.kill()
    server.end()


def test_state_follows_the_server(deployment, log):
    server = Watched(
        deployment, log, "signal.signal(signal.SIGTERM, lambda *_: os._exit(2)); say('up'); sleep()"
    )
    server.line("up")
    state = server.process.state
    assert state.running
    assert (server.process.pid, server.process.guard_pid) == (state.pid, state.guard)
    assert not server.process.wait(0)
    server.process.stop()
    server.end()
    state = server.process.state
    assert (state.exit_code, state.exit_signal, state.left, state.guard_lost) == (
        2,
        None,
        (),
        False,
    )
    assert state.spawned_at <= state.exited_at


def test_commands_after_the_exit_are_harmless(deployment, log):
    server = Watched(deployment, log, "pass")
    server.end()
    server.process.stop()
    server.process.kill()
    assert server.process.terminate() == []


def test_log_of_an_earlier_deployment_is_set_aside(deployment, log):
    log.write_text("old\n")
    server = Watched(deployment, log, "say('new')")
    server.end()
    assert log.read_text() == "new\n"
    assert (log.parent / "server-0.previous.log").read_text() == "old\n"


def test_start_raises_when_the_log_folder_cannot_be_created(deployment, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Watched(deployment, tmp_path / "file" / "server.log", "pass")


def test_terminate_leaves_nothing(deployment, log):
    server = Watched(deployment, log, "ignore_term(); fork(stubborn); say('up'); sleep()")
    server.line("up")
    assert server.process.terminate(0.1) == []
    assert server.process.state.exit_signal == signal.SIGKILL


def test_terminate_works_with_a_guard_that_does_not_answer(deployment, log, monkeypatch):
    monkeypatch.setattr(process, "ANSWER_S", 0.1)
    server = Watched(deployment, log, "fork(stubborn); say('up'); sleep()", kill_timeout_s=0)
    server.line("up")
    stop(server.process.guard_pid)
    server.process.terminate(0.1)
    assert server.end()["left"] == []
    assert server.names() == ["spawned", "guard_lost", "clean"]


def test_two_servers_of_one_owner_do_not_hold_each_other(deployment, tmp_path):
    first = Watched(deployment, tmp_path / "server-0.log", "sleep()")
    second = Watched(
        deployment, tmp_path / "server-1.log", "sleep()", env=marked_env(deployment, server=1)
    )
    first.event("spawned")
    second.event("spawned")
    assert first.process.terminate(PATIENCE_S) == []
    first.end()
    assert second.process.state.running
    second.process.kill()
    second.end()


def test_lost_guard_of_one_instance_costs_no_other_instance_its_server(deployment, tmp_path):
    """Same deployment, attempt and server, as two homes of one user on one machine have them."""
    own = Watched(deployment, tmp_path / "own.log", "say('up'); sleep()", instance="aaaa")
    other = Watched(deployment, tmp_path / "other.log", "say('up'); sleep()", instance="bbbb")
    own.line("up")
    other.line("up")
    os.kill(own.process.guard_pid, signal.SIGKILL)
    assert own.end()["left"] == []
    assert own.process.terminate(0) == []
    assert other.process.state.running
    assert {found.instance for found in find_marked(deployment)} == {"bbbb"}
    assert other.process.terminate(PATIENCE_S) == []
    other.end()


def test_server_starts_when_the_disk_of_the_log_is_full(deployment, log, monkeypatch):
    def refuse(_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(process, "set_aside_old_log", refuse)
    server = Watched(deployment, log, "say('up'); sleep()")
    server.line("up")
    assert server.process.terminate(0) == []


def test_failing_callback_does_not_hang_the_owner(deployment, log, monkeypatch):
    raised = []
    monkeypatch.setattr("threading.excepthook", raised.append)

    def fail(_event):
        raise ValueError

    spec = ServerSpec(argv=(sys.executable, "-c", ""), env=marked_env(deployment), log=str(log))
    server = ServerProcess(spec, fail)
    server.start()
    assert server.wait(PATIENCE_S)
    assert [hook.exc_type for hook in raised] == [ValueError]


@pytest.mark.parametrize(("noenv", "found"), [({"SPT_NOENV": "1"}, 1), ({}, 0)])
def test_setproctitle_hides_the_marker_without_spt_noenv(deployment, noenv, found):
    code = """
import setproctitle
setproctitle.setproctitle("VLLM::EngineCore_DP0")
print(flush=True)
input()
"""
    env = {"RAYLAUNCH_DEPLOYMENT": deployment, **noenv}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        seen = find_marked(deployment)
        process.kill()
    assert len(seen) == found


def marked_env(deployment, server=0):
    return child_env(
        {"PATH": os.environ["PATH"]},
        {},
        deployment=deployment,
        instance="i",
        attempt=1,
        server=server,
    )
