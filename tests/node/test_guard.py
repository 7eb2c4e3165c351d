"""The guard with real process trees: nothing below it survives, and no line is lost."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from process_trees import (
    PATIENCE_S,
    PRELUDE,
    Watched,
    await_exit,
    await_gone,
    await_true,
    parent_of,
    python,
)
from stopping import stop

from raylaunch.node.process import guard
from raylaunch.node.process.guard import Events, Log, SafeLog
from raylaunch.node.process.process_markers import find_marked
from raylaunch.node.process.server_process import GUARD

NOBODY_UID = 65534
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin")

FAMILY = """
fork(sleep)
fork(stubborn)
def daemon():
    os.setsid()
    fork(stubborn)
fork(daemon)
signal.signal(signal.SIGTERM, lambda *_: (say("terminated"), os._exit(0)))
say("server", os.getpid())
"""


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_is_reported_and_nothing_is_left(deployment, log, code):
    server = Watched(deployment, log, f"say('bye'); sys.exit({code})")
    pid = server.event("spawned")["pid"]
    exit_ = server.event("exit")
    assert (exit_["code"], exit_["signal"]) == (code, None)
    assert server.end()["left"] == []
    assert log.read_text() == "bye\n"
    state = server.process.state
    assert (state.pid, state.exit_code, state.clean, state.running) == (pid, code, True, False)


def test_death_by_signal_is_reported(deployment, log):
    server = Watched(deployment, log, "os.kill(os.getpid(), signal.SIGSEGV); sleep()")
    exit_ = server.event("exit")
    assert (exit_["code"], exit_["signal"]) == (None, signal.SIGSEGV)
    server.end()


def test_stop_terminates_the_family_with_its_daemons(deployment, log):
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    server.line("stubborn")
    server.process.stop(PATIENCE_S)
    assert server.event("exit")["code"] == 0
    assert "terminated" in log.read_text()
    assert server.end()["left"] == []


def test_server_that_ignores_sigterm_is_killed_at_the_deadline(deployment, log):
    server = Watched(
        deployment, log, "ignore_term(); fork(stubborn); say('server', os.getpid()); sleep()"
    )
    server.line("server")
    server.process.stop(0.1)
    assert server.event("exit")["signal"] == signal.SIGKILL
    assert server.end()["left"] == []


def test_later_stop_brings_the_deadline_forward(deployment, log):
    server = Watched(deployment, log, "ignore_term(); say('server', os.getpid()); sleep()")
    server.line("server")
    server.process.stop(PATIENCE_S * 10)
    server.process.stop(0.1)
    assert server.event("exit")["signal"] == signal.SIGKILL
    server.end()


def test_kill_does_not_ask_first(deployment, log):
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    server.process.kill()
    assert server.event("exit")["signal"] == signal.SIGKILL
    assert server.end()["left"] == []
    assert "terminated" not in log.read_text()


def test_orphans_of_a_server_that_exits_are_killed(deployment, log):
    server = Watched(deployment, log, FAMILY + "sys.exit(0)")
    assert server.event("exit")["code"] == 0
    assert server.end()["left"] == []


def test_stopped_server_gets_its_sigterm(deployment, log):
    script = """
signal.signal(signal.SIGTERM, lambda *_: (say('terminated'), os._exit(5)))
say('server', os.getpid())
sleep()
"""
    server = Watched(deployment, log, script)
    stop(server.number("server"))
    server.process.stop(PATIENCE_S)
    assert server.event("exit")["code"] == 5
    assert "terminated" in log.read_text()
    server.end()


def test_stopped_daemon_is_killed(deployment, log):
    server = Watched(deployment, log, "fork(stubborn); say('server', os.getpid()); sleep()")
    stop(server.number("stubborn"))
    server.process.stop(0.1)
    server.event("exit")
    assert server.end()["left"] == []


def test_everything_printed_while_exiting_is_logged_in_order(deployment, log):
    lines = 120_000
    script = f"""
print("\\n".join(f"line {{n:08d}}" for n in range({lines})))
sys.stdout.flush()
os._exit(7)
"""
    server = Watched(deployment, log, script, rotate_bytes=300_000, keep=50)
    server.event("exit")
    expected = "".join(f"line {n:08d}\n" for n in range(lines))
    assert whole_log(log) == expected, "complete when the exit is reported"
    server.end()
    assert all(file.read_text().endswith("\n") for file in log.parent.iterdir())


def test_log_is_complete_before_the_exit_is_reported(deployment, log):
    """The guard is stopped while the server prints and exits, so it wakes up to both."""
    script = """
signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b"x" * 500_000), os._exit(0)))
say("up")
sleep()
"""
    server = Watched(deployment, log, script)
    server.line("up")
    stop(server.process.guard_pid)
    os.kill(server.process.pid, signal.SIGUSR1)
    await_exit(server.process.pid)
    os.kill(server.process.guard_pid, signal.SIGCONT)
    server.end()
    events = [event["event"] for event in server.seen]
    assert events[events.index("exit") :] == ["exit", "clean"], "no log after exit"
    assert log.stat().st_size == len("up\n") + 500_000 + len("\n")


def test_unfinished_last_line_is_finished(deployment, log):
    server = Watched(deployment, log, "os.write(2, b'no newline')")
    server.end()
    assert log.read_text() == "no newline\n"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"argv": ("/no/such/program",)}, "/no/such/program"),
        ({"cwd": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_failed_start_is_reported(deployment, log, changes, word):
    argv = changes.pop("argv", python("sleep()"))
    server = Watched(deployment, log, argv, **changes)
    failed = server.event("failed")
    assert failed["errno"] == 2
    assert word in failed["error"]
    assert server.end()["left"] == []
    assert word in server.process.state.error


def test_log_that_cannot_be_opened_is_reported(deployment, tmp_path):
    (tmp_path / "file").write_text("")
    process = run_guard(deployment, tmp_path / "file" / "server.log", python("sleep()"))
    events = read_events(process)
    assert [event["event"] for event in events] == ["failed", "clean"]


def test_full_disk_loses_lines_but_not_the_server(deployment, tmp_path):
    process = run_guard(deployment, Path("/dev/full"), python("say('a'); say('b'); sys.exit(4)"))
    events = read_events(process)
    assert [event["event"] for event in events] == ["spawned", "log_failed", "exit", "clean"]
    assert "No space left" in events[1]["error"]
    assert events[2]["code"] == 4


def test_outage_and_recovery_of_the_log_disk_are_reported_once(deployment, log):
    """A limit on the file size stands in for a full disk: writes fail, and work again later."""
    script = """
signal.signal(signal.SIGUSR1, lambda *_: say("burst " + "x" * 5000))
say("server", os.getpid())
while True: time.sleep(0.01); say("tick")
"""
    server = Watched(deployment, log, script)
    server.line("server")
    soft, hard = resource.prlimit(server.process.guard_pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.guard_pid, resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    failed = server.event("log_failed")
    assert failed["errno"] == errno.EFBIG
    assert os.strerror(errno.EFBIG) in failed["error"]
    assert server.process.state.log_error
    resource.prlimit(server.process.guard_pid, resource.RLIMIT_FSIZE, (soft, hard))
    recovered = server.event("log_recovered")
    note = server.line("[raylaunch]")
    assert recovered["lost_bytes"] > 0
    assert note.startswith(f"[raylaunch] {recovered['lost_bytes']} bytes of output lost")
    assert not server.process.state.log_error
    server.process.kill()
    server.end()
    assert server.names() == ["spawned", "log_failed", "log_recovered", "exit", "clean"]


def test_server_starts_without_a_log_on_a_full_disk(tmp_path, monkeypatch):
    sent = []
    events = Events(os.open(os.devnull, os.O_WRONLY))
    monkeypatch.setattr(events, "send", lambda name, **facts: sent.append((name, facts)))
    monkeypatch.setattr(events, "send_log", lambda: sent.append(("log", {})))
    monkeypatch.setattr(os, "dup2", lambda *_args, **_named: None)
    log = SafeLog(str(tmp_path / "server.log"), 1000, 1, events)
    with monkeypatch.context() as full:
        full.setattr(guard, "Log", raise_no_space)
        log.open()
        log.write(b"lost\n")
        log.retry_at = 0.0
        log.retry()
    assert [name for name, _ in sent] == ["log_failed"], "once per outage"
    assert sent[0][1]["errno"] == errno.ENOSPC
    log.retry_at = 0.0
    log.retry()
    log.write(b"kept\n")
    assert [name for name, _ in sent[1:]] == ["log_recovered", "log", "log"]
    note = f"[raylaunch] 5 bytes of output lost: {os.strerror(errno.ENOSPC)}\n"
    assert (tmp_path / "server.log").read_text() == f"{note}kept\n"


def test_retries_of_a_log_that_keeps_failing_back_off(tmp_path, monkeypatch):
    events = Events(os.open(os.devnull, os.O_WRONLY))
    log = SafeLog(str(tmp_path / "server.log"), 1000, 1, events)
    monkeypatch.setattr(guard, "Log", raise_no_space)
    log.open()
    delays = []
    for _ in range(7):
        delays.append(log.retry_s)
        log.retry_at = 0.0
        log.retry()
    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_log_and_its_folders_are_private(deployment, tmp_path):
    log = tmp_path / "logs" / "attempt-1" / "server-0.log"
    script = "print('x' * 99, flush=True); print('y' * 99); sys.stdout.flush(); say(os.umask(0o22))"
    process = start_guard(deployment, umask=0)
    send_spec(process, deployment, log, python(script), rotate_bytes=60)
    read_events(process)
    assert mode_of(log.parent) == mode_of(log.parent.parent) == 0o700
    files = list(log.parent.iterdir())
    assert len(files) > 1
    assert {mode_of(file) for file in files} == {0o600}
    assert log.read_text().strip() == "0", "the server keeps the umask it inherits"


def test_owner_that_does_not_read_blocks_nothing(deployment, log):
    script = "for n in range(30000): say('line', n)"
    process = run_guard(deployment, log, python(script))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nothing was read up to here
    assert log.read_text().count("\n") == 30000
    events = [event["event"] for event in read_events(process)]
    assert events == ["spawned", "log", "exit", "clean"]


def test_nothing_outlives_a_killed_owner(deployment, log):
    owner = start_owner(deployment, log, FAMILY + "sleep()")
    assert len(find_marked(deployment)) >= 4
    owner.kill()
    owner.communicate()
    await_gone(deployment)
    assert "terminated" in log.read_text()


def test_nothing_outlives_a_killed_guard(deployment, log):
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    server.line("stubborn")
    os.kill(server.process.guard_pid, signal.SIGKILL)
    assert server.end()["left"] == []
    assert server.names() == ["spawned", "guard_lost", "clean"]
    assert server.process.state.guard_lost
    assert not server.process.state.running


def test_loss_of_the_guard_is_reported_before_the_keeper_is_done(deployment, log):
    server = Watched(deployment, log, "fork(stubborn); say('up'); sleep()")
    server.line("up")
    keeper = parent_of(server.process.guard_pid)
    stop(keeper)
    os.kill(server.process.guard_pid, signal.SIGKILL)
    server.event("guard_lost")
    os.kill(keeper, signal.SIGCONT)
    assert server.end()["left"] == []


def test_killed_guard_and_keeper_leave_nothing_either(deployment, log):
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    server.line("stubborn")
    keeper = parent_of(server.process.guard_pid)
    stop(server.process.guard_pid)  # neither may act on the other's death
    os.kill(keeper, signal.SIGKILL)
    os.kill(server.process.guard_pid, signal.SIGKILL)
    assert server.end()["left"] == []


def test_keeper_alone_kills_what_a_killed_guard_leaves(deployment, log):
    process = run_guard(deployment, log, python(FAMILY + "sleep()"))
    spawned = json.loads(process.stdout.readline())
    while b"stubborn" not in log.read_bytes():
        process.stdout.readline()
    os.kill(spawned["guard"], signal.SIGKILL)
    with process:
        assert process.wait(PATIENCE_S) == 1
    await_gone(deployment)


def test_kernel_alone_kills_the_server_of_a_killed_guard(deployment, log):
    process = run_guard(deployment, log, python("sleep()"))
    spawned = json.loads(process.stdout.readline())
    stop(spawned["guard"])  # it may not act on the keeper's death
    process.kill()
    os.kill(spawned["guard"], signal.SIGKILL)
    with process:
        await_gone(deployment)


def test_killed_keeper_is_reported_and_the_server_is_stopped_in_order(deployment, log):
    """Without a keeper, nothing would kill what a SIGKILL of the guard leaves behind."""
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    server.line("stubborn")
    os.kill(parent_of(server.process.guard_pid), signal.SIGKILL)
    assert server.event("exit")["code"] == 0, "SIGTERM first"
    assert server.end()["left"] == []
    assert server.names() == ["spawned", "keeper_lost", "exit", "clean"]
    assert server.process.state.keeper_lost


def test_keeper_killed_before_the_spec_arrives_is_noticed_too(deployment, log):
    process = start_guard(deployment)
    (keeper,) = [found.pid for found in find_marked(deployment) if found.pid == process.pid]
    await_true(lambda: len(find_marked(deployment)) == 2, "the guard is forked")
    os.kill(keeper, signal.SIGKILL)
    send_spec(process, deployment, log, python("say('up'); sleep()"))
    names = [event["event"] for event in read_events(process)]
    assert [name for name in names if name != "log"] == ["spawned", "keeper_lost", "exit", "clean"]
    await_gone(deployment)


def test_keeper_is_no_earlier_victim_of_the_oom_killer_than_the_guard(deployment, log):
    """Ray's workers have a score of 1000, and the keeper is their child."""
    process = start_guard(deployment, preexec_fn=raise_oom_score)
    send_spec(process, deployment, log, python("sleep()"))
    guard_pid = json.loads(process.stdout.readline())["guard"]
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (process.pid, guard_pid)
    ]
    assert scores[0] == scores[1] <= 0
    process.stdin.close()
    read_events(process)


def test_guard_handles_sigterm_as_stop_and_ignores_a_terminal(deployment, log):
    server = Watched(deployment, log, FAMILY + "sleep()")
    server.line("server")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(server.process.guard_pid, number)
    assert server.event("exit")["code"] == 0
    assert server.end()["left"] == []


HIDDEN_FAMILY = """
import ctypes
def undumpable():
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: hidden from its own user
    fork(stubborn)
    stubborn()
def daemon():
    os.setsid()
    fork(undumpable)
fork(daemon)
fork(stubborn)
while len(open("/proc/thread-self/children").read().split()) < 2: time.sleep(0.01)
say("server", os.getpid())
"""


@pytest.fixture
def foreign_folder():
    """A folder of a user without privileges; such a user cannot enter pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY_UID, NOBODY_UID)
        yield Path(folder)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not SYSTEM_PYTHON,
    reason="needs root, unshare, and a python3 that other users may run",
)
@pytest.mark.parametrize("fault", ["stop", "kill-guard", "owner-lost"])
def test_tree_is_stopped_when_proc_hides_other_users(deployment, foreign_folder, fault):
    """With hidepid=1, reading /proc/PID of another user is a PermissionError, except for root."""
    log = foreign_folder / "server.log"
    argv = (SYSTEM_PYTHON, "-I", "-S", "-c", PRELUDE + HIDDEN_FAMILY + "sleep()")
    process = start_guard(deployment, command=hidden_proc())
    try:
        send_spec(process, deployment, log, argv)
        assert json.loads(process.stdout.readline())["event"] == "spawned"
        await_true(lambda: log.read_bytes().count(b"stubborn") == 3, "three daemons")
        guards = [one.pid for one in find_marked(deployment) if "guard.py" in one.command]
        # `unshare` has the guard's command line too: the guard is the last of the chain.
        parents = {parent_of(pid) for pid in guards}
        (guard_pid,) = [pid for pid in guards if pid not in parents]
        assert Path(f"/proc/{guard_pid}").stat().st_uid == NOBODY_UID
        if fault == "kill-guard":
            os.kill(guard_pid, signal.SIGKILL)
        elif fault == "owner-lost":
            process.stdin.close()
        else:
            process.stdin.write(b'{"do": "stop", "term_timeout_s": 0.1}\n')
            process.stdin.flush()
        await_true(lambda: not servers_of(deployment), "nothing of the server is left")
    finally:
        with process:
            process.kill()  # and with it the namespace


def test_tree_is_stopped_when_proc_can_not_be_read_at_all(deployment, log):
    """The kernel's list of children is enough: what each one leaves becomes the guard's child."""
    code = """
import builtins, runpy, sys
real = open
def refuse(path, *args, **kwargs):
    if str(path).endswith("/stat"):
        raise PermissionError(1, "Operation not permitted", path)
    return real(path, *args, **kwargs)
builtins.open = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    process = start_guard(deployment, command=(sys.executable, "-I", "-S", "-c", code, str(GUARD)))
    send_spec(process, deployment, log, python(FAMILY + "sleep()"))
    while not (log.exists() and log.read_bytes().count(b"stubborn") == 2):
        process.stdout.readline()
    process.stdin.write(b'{"do": "stop", "term_timeout_s": 0.1}\n')
    process.stdin.flush()
    assert read_events(process)[-1] == {"event": "clean", "left": []}
    await_gone(deployment)


def test_server_starts_in_an_ordinary_place(deployment, log):
    script = """
say("group", int(os.getpgrp() == os.getpid()))
say("stdin", os.readlink("/proc/self/fd/0"))
say("same", int(os.fstat(1).st_ino == os.fstat(2).st_ino))
say("niceness", os.nice(0))
say("oom", open("/proc/self/oom_score_adj").read())
say("fds", *sorted(os.listdir("/proc/self/fd")))
for line in open("/proc/self/status"):
    if line.startswith(("SigBlk", "SigIgn")): say(*line.split())
"""
    wanted = os.getpriority(os.PRIO_PROCESS, 0) + 3  # lowering is always permitted
    server = Watched(deployment, log, script, niceness=wanted)
    assert server.event("spawned")["niceness"] == wanted
    server.end()
    said = dict(line.split(" ", 1) for line in log.read_text().splitlines() if line)
    assert (said["group"], said["stdin"], said["same"]) == ("1", "/dev/null", "1")
    assert (said["niceness"], said["oom"].strip()) == (str(wanted), "0")
    assert said["fds"].split() == ["0", "1", "2", "3"], "3 is the folder being listed"
    assert int(said["SigBlk:"], 16) == 0
    ours = [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD]
    assert not [number for number in ours if int(said["SigIgn:"], 16) & 1 << (number - 1)]


def test_niceness_that_is_not_permitted_is_reported_not_fatal(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    assert guard.set_niceness(-20) == os.getpriority(os.PRIO_PROCESS, 0)


def test_rotation_cuts_between_lines_and_keeps_order(tmp_path):
    pick = random.Random(7)
    path = tmp_path / "server.log"
    text = b"".join(b"%d %s\n" % (n, b"x" * pick.randrange(60)) for n in range(2000))
    log, rest = Log(str(path), rotate_bytes=1000, keep=1000), text
    while rest:
        cut = pick.randrange(1, 3000)
        log.write(rest[:cut])
        rest = rest[cut:]
    files = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    assert whole_log(path).encode() == text
    assert files[-1].stat().st_size <= 1000
    assert all(file.read_bytes().endswith(b"\n") for file in files)


def test_endless_line_is_rotated_too(tmp_path):
    log = Log(str(tmp_path / "server.log"), rotate_bytes=1000, keep=3)
    for _ in range(100):
        log.write(b"50%\r" * 100)
    assert len(list(tmp_path.iterdir())) == 4
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4 * 3000


def test_only_so_many_rotated_files_are_kept(tmp_path):
    log = Log(str(tmp_path / "server.log"), rotate_bytes=100, keep=2)
    for n in range(100):
        log.write(b"line %04d .............\n" % n)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "server.log",
        "server.log.1",
        "server.log.2",
    ]
    assert (tmp_path / "server.log").read_text().endswith("line 0099 .............\n")


def test_log_goes_on_when_its_folder_is_removed(tmp_path):
    folder = tmp_path / "gone"
    log = Log(str(folder / "server.log"), rotate_bytes=50, keep=2)
    (folder / "server.log").unlink()
    folder.rmdir()
    for _ in range(10):
        log.write(b"a line of some length\n")


def whole_log(path: Path) -> str:
    files = []
    for number in itertools.count(1):
        file = path.with_name(f"{path.name}.{number}")
        if not file.exists():
            break
        files.append(file)
    return "".join(file.read_text() for file in [*reversed(files), path])


def run_guard(deployment, log, argv):
    process = start_guard(deployment)
    send_spec(process, deployment, log, argv)
    return process


def start_guard(deployment, command=(sys.executable, "-I", "-S", str(GUARD)), **how):
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"RAYLAUNCH_DEPLOYMENT": deployment},
        **how,
    )


def send_spec(process, deployment, log, argv, rotate_bytes=1 << 20):
    spec = {
        "argv": argv,
        "env": {"RAYLAUNCH_DEPLOYMENT": deployment},
        "cwd": "/",
        "log": str(log),
        "rotate_bytes": rotate_bytes,
        "keep": 2,
        "term_timeout_s": 5,
        "orphan_grace_s": 0.2,
        "kill_timeout_s": 20,
        "niceness": None,
        "socket": "",
        "owner_wait_s": 0.0,
        "owner": os.getpid(),
        "memo": {},
    }
    process.stdin.write(json.dumps(spec).encode() + b"\n")
    process.stdin.flush()


def servers_of(deployment):
    """The marked processes, but for those that hold the namespace open."""
    found = find_marked(deployment)
    return [one for one in found if not one.command.startswith(("unshare", "sleep", "sh "))]


def hidden_proc():
    """The guard as a user without privileges, in a mount and pid namespace with hidepid=1."""
    script = """
mount -t proc -o hidepid=1 proc /proc || exit 99
setpriv --reuid=65534 --regid=65534 --clear-groups "$0" -I -S "$1"
exec sleep 300
"""
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    return (*namespaces, "sh", "-c", script, SYSTEM_PYTHON, str(GUARD))


def raise_oom_score():
    Path("/proc/self/oom_score_adj").write_text("1000")


def raise_no_space(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def read_events(process):
    with process:
        return [json.loads(line) for line in process.stdout]


def start_owner(deployment, log, script):
    """Another Python that owns the server, as an agent does."""
    code = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from process_trees import Watched
from pathlib import Path
server = Watched(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
server.line("server"), server.line("stubborn")
print("up", flush=True)
threading.Event().wait()
"""
    here = str(Path(__file__).parent)
    owner = subprocess.Popen(
        [sys.executable, "-c", code, here, deployment, str(log), script], stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b"up\n"
    return owner
