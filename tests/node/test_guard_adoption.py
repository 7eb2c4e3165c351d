"""A guard whose owner goes away: the server runs on, and the next owner gets all of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_trees import PATIENCE_S, Watched, await_exit, await_gone, await_true

from raylaunch.errors import BusyError, NodeError
from raylaunch.node.process import guard_socket
from raylaunch.node.process.guard import short_path
from raylaunch.node.process.guard_socket import describe, find_guards, keep_note, socket_path
from raylaunch.node.process.process_markers import find_marked
from raylaunch.node.process.server_process import GUARD

SERVER = """
fork(stubborn)
signal.signal(signal.SIGTERM, lambda *_: (say("terminated"), os._exit(0)))
signal.signal(signal.SIGUSR1, lambda *_: say("signalled"))
signal.signal(signal.SIGUSR2, lambda *_: os._exit(9))
say("server", os.getpid())
sleep()
"""
FOR_EVER_S = 3600.0
JUMPING_GUARD = """
import runpy, sys, time
from pathlib import Path
real = time.time
time.time = lambda: real() + float(Path({jump!r}).read_text())
sys.argv[0] = {guard!r}
runpy.run_path({guard!r}, run_name="__main__")
"""


@pytest.fixture
def path(tmp_path):
    return socket_path(tmp_path, "i", "serve-0", 0)


@pytest.fixture
def orphan(deployment, log, path):
    """A guard whose owner was killed, with the pids that it had before."""

    def make(wait_s=FOR_EVER_S):
        owner, spawned = start_owner(deployment, log, path, wait_s)
        owner.kill()
        owner.communicate()
        return spawned

    return make


def start_owner(deployment, log, path, wait_s, guard=GUARD):
    """Another process that owns a server, as an agent does; `guard` is the guard's program."""
    code = """
import json, sys, threading
from pathlib import Path
here, deployment, log, script, path, wait_s, guard = sys.argv[1:]
sys.path.insert(0, here)
from process_trees import Watched
from raylaunch.node.process import server_process
server_process.GUARD = Path(guard)
server = Watched(
    deployment, Path(log), script,
    socket=path, owner_wait_s=float(wait_s), memo={"secret": "hush"},
)
spawned = server.event("spawned")
server.line("server"), server.line("stubborn")
print(json.dumps(spawned), flush=True)
threading.Event().wait()
"""
    here = str(Path(__file__).parent)
    words = (here, deployment, str(log), SERVER, str(path), str(wait_s), str(guard))
    owner = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    return owner, json.loads(owner.stdout.readline())


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def await_orphaned(path):
    await_true(lambda: describe(path).owner is None, "the guard has noticed the death")


def test_the_server_of_a_killed_owner_is_adopted_as_it_runs(orphan, log, path):
    spawned = orphan()
    await_orphaned(path)
    os.kill(spawned["pid"], signal.SIGUSR1)
    await_true(lambda: "signalled" in log.read_text(), "the log of an orphan goes on")

    server = Watched.adopt(path, log)
    assert server.event("spawned") == spawned
    assert (server.report.server_pid, server.report.attempt) == (spawned["pid"], 1)
    assert server.process.state.running
    assert describe(path).owner == os.getpid()
    server.process.stop(PATIENCE_S)
    assert server.event("exit")["code"] == 0
    assert server.end()["left"] == []
    assert not path.exists()


def test_a_guard_is_adopted_again_and_again(orphan, log, path, deployment):
    code = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from process_trees import Watched
Watched.adopt(Path(sys.argv[2]), Path(sys.argv[3])).event("spawned")
print("up", flush=True)
threading.Event().wait()
"""
    spawned = orphan()
    await_orphaned(path)
    words = (str(Path(__file__).parent), str(path), str(log))
    for _ in range(3):
        owner = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
        assert owner.stdout.readline() == b"up\n"
        owner.kill()
        owner.communicate()
        await_orphaned(path)
    descriptors = open_files(spawned["guard"])
    server = Watched.adopt(path, log)
    assert server.event("spawned") == spawned
    assert open_files(spawned["guard"]) <= descriptors + 2
    server.process.kill()
    assert server.end()["left"] == []


def test_an_orphan_that_nobody_adopts_is_stopped_in_order_and_leaves_nothing(
    orphan, log, path, deployment
):
    orphan(wait_s=0.3)
    await_gone(deployment)
    assert "terminated" in log.read_text()
    assert not path.exists()


def test_without_a_grace_the_server_stops_with_its_owner(orphan, log, deployment):
    orphan(wait_s=0.0)
    await_gone(deployment)
    assert "terminated" in log.read_text()


def test_a_second_owner_learns_who_the_first_is(deployment, log, path):
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    with pytest.raises(BusyError, match="has an owner") as refused:
        Watched.adopt(path, log)
    assert f"agent pid {os.getpid()}" in refused.value.why
    server.process.kill()
    server.end()


def test_of_many_agents_that_want_one_guard_at_the_same_moment_one_gets_it(orphan, log, path):
    orphan()
    await_orphaned(path)

    def try_to_adopt(_):
        try:
            return guard_socket.adopt(path)
        except BusyError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(try_to_adopt, range(8)))
    owners = [one for one in answers if not isinstance(one, BusyError)]
    assert len(owners) == 1
    assert len([one for one in answers if isinstance(one, BusyError)]) == 7
    _, connection, events = owners[0]
    events.close()
    connection.close()
    await_orphaned(path)
    server = Watched.adopt(path, log)
    server.event("spawned")
    assert server.process.state.running
    server.process.kill()
    server.end()


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
def test_a_wall_clock_that_jumps_neither_ends_nor_prolongs_the_grace(
    deployment, log, path, tmp_path, jump_s
):
    jump = tmp_path / "jump"
    jump.write_text("0")
    guard = tmp_path / "guard.py"
    guard.write_text(JUMPING_GUARD.format(jump=str(jump), guard=str(GUARD)))
    owner, _ = start_owner(deployment, log, path, FOR_EVER_S, guard)
    owner.kill()
    owner.communicate()
    await_orphaned(path)
    waits_s = describe(path).owner_wait_s
    jump.write_text(str(jump_s))
    for _ in range(3):  # each visit makes the guard look at its deadlines
        seen = describe(path)
        assert (seen.phase, seen.owner) == ("running", None)
        assert 0 < seen.owner_wait_s <= waits_s
    server = Watched.adopt(path, log)
    server.event("spawned")
    server.process.kill()
    shown_s = server.event("exit")["at"] - time.time()
    assert abs(shown_s) > 3600, "the clock of the guard has jumped"
    server.end()


def test_a_second_guard_of_the_same_server_does_not_start(deployment, log, path, tmp_path):
    first = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    first.event("spawned")
    second = Watched(deployment, tmp_path / "2.log", SERVER, socket=str(path), owner_wait_s=9.0)
    assert "another guard of this server still runs" in second.event("failed")["error"]
    second.end()
    assert describe(path).pid == first.process.guard_pid, "the first one's socket is untouched"
    first.process.kill()
    first.end()


def test_the_socket_of_a_killed_guard_is_replaced(deployment, log, path, tmp_path):
    first = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    first.event("spawned")
    os.kill(first.process.guard_pid, signal.SIGKILL)
    first.end()
    assert path.exists()
    assert find_guards(tmp_path) == []
    with pytest.raises(NodeError, match="no guard listens"):
        describe(path)
    second = Watched(deployment, tmp_path / "2.log", SERVER, socket=str(path), owner_wait_s=9.0)
    second.event("spawned")
    assert describe(path).pid == second.process.guard_pid
    second.process.kill()
    second.end()


def test_without_a_usable_folder_the_server_runs_but_cannot_be_adopted(deployment, log, tmp_path):
    (tmp_path / "guards").write_text("a file")
    path = socket_path(tmp_path, "i", "serve-0", 0)
    owner, _ = start_owner(deployment, log, path, FOR_EVER_S)
    assert len(find_marked(deployment)) >= 3
    owner.kill()
    owner.communicate()
    await_gone(deployment)
    assert "terminated" in log.read_text()


def test_what_is_wrong_with_the_folder_is_an_event(deployment, log, tmp_path):
    (tmp_path / "guards").write_text("a file")
    path = socket_path(tmp_path, "i", "serve-0", 0)
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=9.0)
    assert str(path) in server.event("socket_failed")["error"]
    server.event("spawned")
    assert server.process.state.socket_error
    server.process.kill()
    server.end()


def test_notes_and_memo_go_to_the_next_owner_and_the_memo_to_no_visitor(orphan, log, path):
    orphan()
    keep_note(path, "serve-0", 2, "x" * 300_000)
    keep_note(path, "serve-0", 1, "older")
    keep_note(path, "", 5, "of the deployment")
    notes = {"serve-0": (2, "x" * 300_000), "": (5, "of the deployment")}
    assert describe(path).notes == notes
    assert describe(path).memo == {}
    await_orphaned(path)
    server = Watched.adopt(path, log)
    assert (server.report.notes, server.report.memo) == (notes, {"secret": "hush"})
    assert "hush" not in repr(server.report)
    server.process.kill()
    server.end()


def test_the_exit_of_an_orphan_leaves_nothing(orphan, deployment, path):
    spawned = orphan()
    await_orphaned(path)
    os.kill(spawned["pid"], signal.SIGUSR2)
    await_gone(deployment)
    assert not path.exists()


def test_a_killed_adopted_guard_is_reported_and_leaves_nothing(orphan, log, path):
    spawned = orphan()
    await_orphaned(path)
    server = Watched.adopt(path, log)
    server.event("spawned")
    os.kill(spawned["guard"], signal.SIGKILL)
    assert server.event("guard_lost")
    assert server.end()["left"] == []


def connect(visitor, path):
    """Connect to a socket, whose path may be longer than an address can be."""
    with short_path(str(path.parent), path.name) as address:
        visitor.connect(address)


@pytest.mark.parametrize(
    "message", [b"", b"\n", b"{}\n", b"[1]\n", b'{"do": "fly"}\n', b'{"do": "keep"}\n', b"\xff\n"]
)
def test_a_message_without_sense_harms_nothing(deployment, log, path, message):
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    with socket.socket(socket.AF_UNIX) as visitor:
        connect(visitor, path)
        visitor.sendall(message)
        visitor.shutdown(socket.SHUT_WR)
        answer = visitor.makefile().read()
    assert "refused" in answer or not answer
    assert describe(path).server_pid == server.process.pid
    server.process.kill()
    server.end()


def test_visitors_that_say_nothing_are_limited_and_harm_nothing(deployment, log, path):
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for one in silent:
        connect(one, path)
        one.settimeout(PATIENCE_S)
    assert silent[-1].recv(1) == b"", "the last of too many is turned away"
    for one in silent:
        one.close()
    await_true(lambda: find_guards(path.parents[1]), "it answers again")
    server.process.kill()
    server.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_turned_away(deployment, log, path):
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    with socket.socket(socket.AF_UNIX) as visitor:
        child = os.fork()
        if child == 0:
            # As if the folder were open to all: only the credentials are left to stop it.
            path.parent.chmod(0o777)
            path.chmod(0o777)
            os.chdir(path.parent)
            os.setuid(65534)
            os._exit(_visit(visitor, path.name))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert server.process.state.running
    server.process.kill()
    server.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_socket_on_which_another_user_listens_is_refused(path):
    """As if the folder had been open to all: notes and secrets must not go there."""
    path.parent.mkdir()
    path.parent.chmod(0o777)
    up, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(path.parent)
        os.setuid(65534)
        os._exit(_listen(path.name, ready))
    os.close(ready)
    assert os.read(up, 1)
    with pytest.raises(NodeError, match="is of another user") as refused:
        keep_note(path, "serve-0", 1, "hush")
    assert "user 65534" in refused.value.why
    with pytest.raises(NodeError, match="is of another user"):
        guard_socket.adopt(path)
    assert find_guards(path.parents[1]) == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(up)


def _listen(name, ready):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    os.chmod(name, 0o777)  # noqa: PTH101 - the path may be longer than an address
    os.write(ready, b"1")
    signal.pause()
    return 0


def _visit(visitor, name):
    try:
        visitor.connect(name)
        visitor.sendall(b'{"do": "describe"}\n')
        return 0 if visitor.recv(1) else 1
    except ConnectionError:
        return 1
    except OSError:
        return 2


def test_folders_with_long_paths_work_too(deployment, log, tmp_path):
    home = tmp_path / ("x" * 120)
    path = socket_path(home, "i", "serve-0", 0)
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    (found,) = find_guards(home)
    assert (found.pid, found.deployment) == (server.process.guard_pid, deployment)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    server.process.kill()
    server.end()
    assert find_guards(home) == []


def test_a_guard_that_is_stopped_is_passed_over(deployment, log, path, monkeypatch):
    monkeypatch.setattr(guard_socket, "ANSWER_S", 0.1)
    server = Watched(deployment, log, SERVER, socket=str(path), owner_wait_s=FOR_EVER_S)
    server.event("spawned")
    os.kill(server.process.guard_pid, signal.SIGSTOP)
    with pytest.raises(NodeError, match="does not answer"):
        describe(path)
    assert find_guards(path.parents[1]) == []
    os.kill(server.process.guard_pid, signal.SIGCONT)
    server.process.kill()
    server.end()


def test_an_orphan_handles_sigterm_as_stop(orphan, log, path, deployment):
    spawned = orphan()
    await_orphaned(path)
    os.kill(spawned["guard"], signal.SIGTERM)
    await_exit(spawned["guard"])
    await_gone(deployment)
    assert "terminated" in log.read_text()
