"""The embedded cluster: interrupted, cancelled, dead or frozen, and what others see of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray_clusters import await_true

from raylaunch.api import deployment_verbs
from raylaunch.deployment import cluster_choice
from raylaunch.errors import BusyError, ClusterError, LaunchError, NotReadyError
from raylaunch.interrupts import StartUndone, signals_as_interrupt, sigterm_handler_kept
from raylaunch.node.process import cluster_records
from raylaunch.node.process.cluster_records import (
    ClusterRecord,
    Starter,
    encode,
    pid_space,
    read_records,
    record_path,
    this_process,
)
from raylaunch.node.process.orphans import KnownDeployments, find_orphans
from raylaunch.node.process.process_markers import find_marked
from raylaunch.recipe.catalog import read
from raylaunch.runtime.cluster import connection, local_cleanup, local_cluster, ray_start
from raylaunch.runtime.cluster.daemon_supervisor import SUPERVISOR_GROUP, find_supervisors

NAME = "test-embedded"
MARKER = f"@{NAME}-1a2b3c4d"
GONE = Starter(pid=2**22 - 1, started=1, machine=pid_space(), host=socket.gethostname())
BOUND_S = 60.0
"""`stop` must have finished by then, whatever state Ray is in."""


def put_record(home: Path, **changes: object) -> ClusterRecord:
    folder = home / "session"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "deployment": NAME,
        "marker": MARKER,
        "folder": str(folder),
        "token_file": str(home / "clusters" / "a.token"),
        **changes,
    }
    record = ClusterRecord(**parts)
    path = record_path(home, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(encode(record))
    return record


@pytest.fixture
def marked(tmp_path):
    """Start processes that carry the marker of the cluster, in the home of this test."""
    with contextlib.ExitStack() as stack:

        def start(
            marker: str = MARKER,
            instance: str = "",
            program: str = "print(flush=True); import time; time.sleep(600)",
        ) -> subprocess.Popen[bytes]:
            env = {
                "RAYLAUNCH_DEPLOYMENT": marker,
                "RAYLAUNCH_INSTANCE": instance,
                "RAYLAUNCH_HOME": str(tmp_path),
            }
            command = [sys.executable, "-c", program]
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            process.stdout.readline()
            return process

        yield start


RAYLET_WITH_SERVER = """
import os, subprocess, sys, time
cluster = {"RAYLAUNCH_EMBEDDED_IN": os.environ["RAYLAUNCH_DEPLOYMENT"]}
own = {"RAYLAUNCH_DEPLOYMENT": "test-embedded", "RAYLAUNCH_INSTANCE": "1" * 16}
env = {**os.environ, **own, **cluster}
program = "print(flush=True); import time; time.sleep(600)"
with subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE) as server:
    server.stdout.readline()
    print(flush=True)
    time.sleep(600)
"""


def test_the_servers_of_a_killed_cluster_are_those_of_its_instance(tmp_path, marked):
    """One process has lost its marker of the cluster: nothing but its instance leads there."""
    record = put_record(tmp_path, starter=GONE)
    marked(program=RAYLET_WITH_SERVER)
    guardless = marked(NAME, "1" * 16)
    of_another_cluster = marked(NAME, "2" * 16)
    killed = local_cleanup.kill_cluster(tmp_path, record)
    assert killed == local_cleanup.KilledCluster(3)
    assert guardless.wait(60) == -signal.SIGTERM
    assert of_another_cluster.poll() is None


def test_an_interrupted_start_is_an_orphan_and_a_running_one_is_not(tmp_path, marked):
    process = marked()
    put_record(tmp_path, starter=this_process())
    assert find_orphans(KnownDeployments(), NAME) == []
    assert local_cleanup.judge_records(tmp_path, None).stale == ()
    with pytest.raises(NotReadyError, match="is being started"):
        local_cluster.require_started(tmp_path, NAME)

    put_record(tmp_path, starter=GONE)
    assert [found.pid for found in find_orphans(KnownDeployments(), NAME)] == [process.pid]
    assert local_cleanup.judge_records(tmp_path, None).stale == (NAME,)
    with pytest.raises(ClusterError, match="was interrupted"):
        local_cluster.require_started(tmp_path, NAME)


def test_a_reused_pid_is_not_the_starter(tmp_path):
    own = this_process()
    assert not own.is_gone()
    assert Starter(own.pid, own.started + 1, own.machine, own.host).is_gone()
    assert Starter(own.pid, own.started, "an earlier boot", own.host).is_gone()
    assert not Starter(1, 1, "an earlier boot", "another-host").is_gone(), "cannot be known here"


@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])
def test_the_next_start_removes_what_an_interrupted_one_left(tmp_path, marked, address):
    process = marked()
    record = put_record(tmp_path, starter=GONE, address=address)
    if address:
        process.kill()
        process.wait()
    local_cluster._remove_garbage(tmp_path, NAME)
    assert process.wait(20) in (-signal.SIGTERM, -signal.SIGKILL)
    assert not Path(record.folder).exists()
    assert not record_path(tmp_path, NAME).exists()


def test_a_cluster_that_is_there_is_not_started_over(tmp_path, marked):
    process = marked()
    put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    with pytest.raises(BusyError, match="already there"):
        local_cluster.start_local(tmp_path, NAME, nodes=1, npus_per_node=1)
    assert process.poll() is None


def test_a_start_that_was_cancelled_aborts(tmp_path):
    record = put_record(tmp_path, starter=this_process())
    local_cluster.refuse_cancelled(tmp_path, NAME)

    def starter() -> None:
        """As `start_local` does: notice the cancellation, kill, remove the record."""
        with contextlib.suppress(LaunchError):
            while True:
                local_cluster.refuse_cancelled(tmp_path, NAME)
        local_cleanup.kill_cluster(tmp_path, record)

    thread = threading.Thread(target=starter)
    thread.start()
    killed = local_cleanup.cancel_start(tmp_path, NAME)
    thread.join(20)
    assert killed == local_cleanup.KilledCluster(0)
    assert list((tmp_path / "clusters").iterdir()) == []


def test_a_start_that_does_not_notice_is_killed_by_its_marker(tmp_path, marked, monkeypatch):
    monkeypatch.setattr(local_cleanup, "CANCEL_TIMEOUT_S", 0.5)
    process = marked()
    put_record(tmp_path, starter=this_process())
    killed = local_cleanup.cancel_start(tmp_path, NAME)
    assert (killed.processes, killed.left) == (1, ())
    assert process.wait(20) == -signal.SIGKILL
    with pytest.raises(LaunchError, match="was stopped while it started"):
        local_cluster.refuse_cancelled(tmp_path, NAME)


def guard(marker: str = MARKER, owner: int | None = None):
    marker = {"RAYLAUNCH_EMBEDDED_IN": marker}
    return SimpleNamespace(owner=owner, marker=marker, server_pid=42, owner_wait_s=500.4)


@pytest.mark.parametrize(
    ("guards", "has_tables", "is_revived"),
    [
        ([guard()], True, True),
        ([guard(owner=7)], True, False),
        ([guard("@other-1a2b3c4d")], True, False),
        ([], True, False),
        ([guard()], False, False),
    ],
)
def test_a_dead_cluster_with_servers_is_started_again_with_its_tables(
    tmp_path, monkeypatch, guards, has_tables, is_revived
):
    record = put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    Path(record.token_file).write_text("a token")
    if has_tables:
        local_cleanup.gcs_store_of(record).mkdir()
    started = []
    monkeypatch.setattr(local_cleanup, "find_guards", lambda *_: guards)
    monkeypatch.setattr(local_cluster, "_start_nodes", lambda *given: started.append(given[1]))
    cluster = local_cluster.start_local(tmp_path, NAME, nodes=1, npus_per_node=1)
    assert started == [replace(cluster, is_revived=is_revived)]
    assert (cluster.is_revived, cluster.marker == MARKER) == (is_revived, is_revived)
    assert (cluster.address == "127.0.0.1:1") is is_revived
    assert cluster.gcs_store.is_dir()
    local_cleanup.kill_local(tmp_path, NAME)
    assert not cluster.gcs_store.exists()


def test_servers_that_run_on_without_ray_are_named_and_not_cleaned(tmp_path, monkeypatch):
    record = put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    monkeypatch.setattr(local_cleanup, "find_guards", lambda *_: [guard()])
    assert local_cleanup.judge_records(tmp_path, None).stale == ()
    (line,) = local_cleanup.judge_records(tmp_path, None).undecided
    assert line.endswith("its servers run on, for 500 s more without it (pid 42)")
    assert local_cleanup.judge_records(tmp_path, NAME).stale == (NAME,), "a person named it"
    assert local_cleanup.judge_records(tmp_path, NAME).undecided == ()
    with pytest.raises(ClusterError, match="its servers run on") as caught:
        local_cleanup.refuse_without_ray(tmp_path, NAME)
    assert f"--name {NAME}` takes the servers over" in caught.value.todo

    monkeypatch.setattr(local_cleanup, "find_guards", lambda *_: [])
    assert local_cleanup.judge_records(tmp_path, None).stale == (NAME,)
    assert local_cleanup.judge_records(tmp_path, None).undecided == ()
    local_cleanup.refuse_without_ray(tmp_path, NAME)
    assert record == local_cleanup.read_record(tmp_path, NAME), "looking changes nothing"


def test_a_revival_that_fails_kills_no_server_and_keeps_the_tables(tmp_path, monkeypatch, marked):
    record = put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    Path(record.token_file).write_text("a token")
    local_cleanup.gcs_store_of(record).mkdir()
    server = marked(NAME, "1" * 16)

    def fail(*_):
        marked()
        raise ClusterError("Ray did not come up")

    monkeypatch.setattr(local_cleanup, "find_guards", lambda *_: [guard()])
    monkeypatch.setattr(local_cluster, "_start_nodes", fail)
    with pytest.raises(ClusterError, match="did not come up"):
        local_cluster.start_local(tmp_path, NAME, nodes=1, npus_per_node=1)
    assert find_marked(MARKER) == []
    assert server.poll() is None
    assert local_cleanup.gcs_store_of(record).is_dir()
    assert local_cluster._find_revivable(tmp_path, NAME) is not None, "for the next try"


def test_two_commands_do_not_start_one_cluster_again(tmp_path):
    record = put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    Path(record.token_file).write_text("a token")
    with (
        local_cluster._revival_lock(record),
        pytest.raises(BusyError, match="being started again"),
        local_cluster._revival_lock(record),
    ):
        pass


RESTARTING = """
import os, subprocess, sys
if os.fork():
    os._exit(0)
os.setsid()
while True:  # as a supervisor does
    env = {**os.environ, "RAYLAUNCH_GROUP": ""}
    with subprocess.Popen(["sleep", "600"], env=env) as daemon:
        print(flush=True)
"""


def test_the_supervisor_is_killed_before_the_daemons(tmp_path):
    record = put_record(tmp_path, starter=GONE, address="127.0.0.1:1")
    env = {**os.environ, "RAYLAUNCH_DEPLOYMENT": MARKER, "RAYLAUNCH_GROUP": SUPERVISOR_GROUP}
    command = [sys.executable, "-c", RESTARTING]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert (len(find_supervisors(MARKER)), len(find_marked(MARKER))) == (1, 2)
        killed = local_cleanup.kill_cluster(tmp_path, record)
    assert killed.left == ()
    assert find_marked(MARKER) == []


def test_a_gcs_that_is_started_again_is_awaited(tmp_path, monkeypatch, listener):
    port = listener.getsockname()[1]
    listener.close()
    cluster = local_cluster._cluster_of(put_record(tmp_path, address=f"127.0.0.1:{port}"))
    with contextlib.ExitStack() as stack:

        def look(_):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return ["a supervisor"]

        monkeypatch.setattr(local_cluster, "find_supervisors", look)
        local_cluster.await_gcs(cluster, 60)
        assert not local_cluster._is_refused(cluster.address)
    monkeypatch.setattr(local_cluster, "find_supervisors", lambda _: [])
    local_cluster.await_gcs(cluster, 10**6)  # nothing would start it


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"marker": 7}',
    '{"marker": "@a", "starter": []}',
    "\x00",
    "é" * 9,
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, text):
    put_record(tmp_path, starter=this_process())
    bad = tmp_path / "clusters" / "bad.json"
    bad.write_bytes(text.encode("latin-1"))
    records, problems = read_records(tmp_path)
    assert [record.deployment for record in records] == [NAME]
    assert [problem.path for problem in problems] == [bad]
    assert problems[0].why
    with pytest.raises(ClusterError, match=str(bad)):
        local_cluster.find_local(tmp_path, "bad")


def test_a_record_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "clusters" / "folder.json").mkdir(parents=True)
    _, problems = read_records(tmp_path)
    assert [problem.deployment for problem in problems] == ["folder"]


def test_the_processes_are_read_once_for_all_records(tmp_path, monkeypatch, marked):
    process = marked()
    record = put_record(tmp_path, address="127.0.0.1:1")
    other = replace(record, deployment="test-other", marker="@test-other-00000000")
    record_path(tmp_path, "test-other").write_text(encode(other))
    record_path(tmp_path, "test-damaged").write_text("{")
    asked = []

    def count(*given, **narrowed):
        asked.append(given)
        return find_marked(*given, **narrowed)

    for module in (local_cleanup, cluster_records):
        monkeypatch.setattr(module, "find_marked", count)
    judged = local_cleanup.judge_records(tmp_path, None)
    assert asked == [()]
    assert judged.stale == ("test-damaged", "test-other")
    (line,) = judged.undecided
    assert "1 of its processes live" in line
    assert process.poll() is None


def test_a_damaged_record_never_hides_living_processes(tmp_path, marked):
    process = marked()
    path = put_record(tmp_path)
    record_path(tmp_path, NAME).write_text("{")
    assert find_orphans(KnownDeployments()) == [] or process.pid not in {
        found.pid for found in find_orphans(KnownDeployments())
    }
    (line,) = local_cleanup.judge_records(tmp_path, None).undecided
    assert f"{NAME}.json" in line
    assert f"raylaunch clean --yes --deployment {NAME}" in line
    assert [found.pid for found in find_orphans(KnownDeployments(), NAME)] == [process.pid]
    assert local_cleanup.judge_records(tmp_path, NAME).stale == (NAME,)
    assert path.deployment == NAME


def test_status_and_list_go_on_beside_a_damaged_record(user):
    folder = user.home / "clusters"
    folder.mkdir(parents=True)
    (folder / "bad.json").write_text("{")
    listed = user.run("list", "--running", "-o", "json")
    assert listed.json() == []
    assert str(folder / "bad.json") in listed.err
    for words in (("status", "bad"), ("stop", "bad")):
        done = user.run(*words)
        assert done.code == ClusterError.exit_code, done.err
        assert str(folder / "bad.json") in done.err
        assert "Traceback" not in done.err
    assert user.run("clean", "--yes", "--deployment", "bad").code == 0
    assert list(folder.iterdir()) == []


def test_ray_inherits_no_secret(tmp_path, monkeypatch):
    secrets = [
        "MY_RECIPE_NAMES_IT",
        "VLLM_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
    ]
    kept = ["TOKENIZERS_PARALLELISM", "PATH", "KEYBOARD_LAYOUT", "HF_HOME"]
    for name in (*secrets, *kept):
        monkeypatch.setenv(name, os.environ.get(name, "x"))
    env = ray_start.ray_env(MARKER, tmp_path / "token", secrets[:1], tmp_path / "gcs")
    assert not env.keys() & set(secrets)
    assert set(kept) <= env.keys()


TWO_TOKENS = """
import os, sys
from pathlib import Path
from raylaunch.runtime.cluster.connection import use_token
os.environ.pop("RAY_AUTH_MODE", None)
if sys.argv[1] == "imported before":
    import ray
read = []
for name in ("one", "two", "two"):
    Path(name).write_text(name * 20)
    use_token(Path(name))
    from ray._raylet import AuthenticationTokenLoader
    read.append(AuthenticationTokenLoader.instance().get_raw_token())
print(read == ["one" * 20, "two" * 20, "two" * 20], read)
"""


@pytest.mark.parametrize("ray", ["imported before", "imported after"])
def test_a_process_that_joins_another_cluster_uses_its_token(tmp_path, ray):
    command = [sys.executable, "-c", TWO_TOKENS, ray]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("True"), done.stdout + done.stderr


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_that_accepts_and_never_answers_is_no_cluster(listener):
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert connection.why_unreachable(address, 0.2) == "no answer within 0.2 s"
    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        connection._check_reachable(address)


@pytest.mark.parametrize("answered", [b"\x00", b""])
def test_a_port_that_answers_or_hangs_up_is_alive(listener, answered):
    """A server with TLS hangs up: it cannot read the greeting."""

    def answer() -> None:
        with listener.accept()[0] as peer:
            peer.sendall(answered)

    thread = threading.Thread(target=answer)
    thread.start()
    assert connection.why_unreachable(f"127.0.0.1:{listener.getsockname()[1]}") == ""
    thread.join()


@pytest.fixture
def ray_record(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_the_address_that_ray_start_wrote_is_read(ray_record):
    assert connection.recorded_cluster() is None
    ray_record.write_text("192.0.2.10:6379\n")
    assert connection.recorded_cluster() == "192.0.2.10:6379"


def test_an_address_that_another_user_could_have_written_is_refused(ray_record):
    os.mkfifo(ray_record)
    with pytest.raises(ClusterError, match="is not trusted"):
        connection.recorded_cluster()
    ray_record.unlink()
    (ray_record.parent / "elsewhere").write_text("192.0.2.66:6379")
    ray_record.symlink_to(ray_record.parent / "elsewhere")
    with pytest.raises(ClusterError, match="it is a symbolic link"):
        connection.recorded_cluster()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_an_address_that_another_user_wrote_is_refused(ray_record):
    ray_record.write_text("192.0.2.66:6379")
    os.chown(ray_record, 12345, 12345)
    with pytest.raises(ClusterError, match="belongs to another user"):
        connection.recorded_cluster()


@pytest.mark.parametrize("is_revived", [False, True])
def test_an_interrupt_before_there_is_a_controller_stops_a_new_cluster(monkeypatch, is_revived):
    stopped = []

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment_verbs, "start_embedded", lambda *_: is_revived)

    def resist(name: str) -> list[str]:
        stopped.append(name)
        return ["pid 12 raylet"]

    monkeypatch.setattr(deployment_verbs, "stop_embedded", resist)
    monkeypatch.setattr(deployment_verbs, "_create_controller", interrupt)
    with pytest.raises(BaseException) as undone:  # noqa: PT011 - both classes are checked below
        deployment_verbs.deploy("local-dual", deployment=NAME, address="local")
    if is_revived:  # around servers that run
        assert (undone.type, stopped) == (KeyboardInterrupt, [])
    else:
        assert (undone.type, stopped) == (StartUndone, [NAME])
        assert undone.value.left == ("pid 12 raylet",)


@pytest.mark.parametrize(
    ("error", "is_revived", "raised"),
    [
        (KeyboardInterrupt, False, StartUndone),
        (ClusterError("x"), False, ClusterError),
        (KeyboardInterrupt, True, KeyboardInterrupt),
        (ClusterError("x"), True, ClusterError),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_stopped_again(
    monkeypatch, tmp_path, error, is_revived, raised
):
    stopped = []

    def fail(*_: object, **__: object) -> None:
        raise error

    def stop(name: str) -> list[str]:
        stopped.append(name)
        return []

    made = SimpleNamespace(
        address="127.0.0.1:1", token_file=tmp_path / "token", is_revived=is_revived
    )
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.setattr(local_cluster, "start_local", lambda *_, **__: made)
    monkeypatch.setattr(connection, "connect", fail)
    monkeypatch.setattr(cluster_choice, "stop_embedded", stop)
    with pytest.raises(raised):
        cluster_choice.start_embedded(NAME, read("local-dual"))
    assert stopped == ([] if is_revived else [NAME]), "around servers that run, Ray stays"


def test_signals_are_as_they_were_after_a_start():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), signals_as_interrupt():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_ray_does_not_replace_the_handler_of_sigterm_when_it_connects():
    with signals_as_interrupt():
        ours = signal.getsignal(signal.SIGTERM)
        with sigterm_handler_kept():
            signal.signal(signal.SIGTERM, lambda *_: None)  # as `ray.init` does
        assert signal.getsignal(signal.SIGTERM) is ours


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupt():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def cluster_processes(name: str = NAME) -> list[int]:
    return [found.pid for found in find_marked() if found.deployment.startswith(f"@{name}-")]


def gcs_of(name: str = NAME) -> psutil.Process | None:
    for pid in cluster_processes(name):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.name() == "gcs_server":
                return process
    return None


@pytest.fixture
def starting(user, standin, ports):
    """`raylaunch start` at the moment when the first daemon of its cluster is there."""
    user.extra = standin
    process = user.popen("start", "local-dual", "--name", NAME, *ports)
    with process:
        await_true(gcs_of, "the GCS runs")
        yield process
        process.kill()


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_during_the_start_leaves_nothing(user, starting, number):
    starting.send_signal(number)
    interrupted = 130
    assert starting.wait(60) == interrupted, starting.stdout.read()
    assert cluster_processes() == []
    assert list((user.home / "clusters").iterdir()) == []


@pytest.mark.ray
def test_what_a_killed_start_left_is_found_and_stopped(user, starting):
    starting.kill()
    starting.wait()
    assert user.run("status", NAME).code == ClusterError.exit_code
    looked = user.run("clean", "--deployment", NAME)
    assert looked.code == 11
    assert f"@{NAME}-" in looked.out
    stopped = user.run("stop", NAME)
    assert stopped.code == 0, stopped.err
    assert "nothing left" in stopped.out
    assert cluster_processes() == []
    assert user.run("clean", "--deployment", NAME).code == 0
    assert user.run("stop", NAME).code == 9


@pytest.mark.ray
def test_stop_cancels_a_start(user, starting):
    began = time.monotonic()
    stopped = user.run("stop", NAME)
    assert stopped.code == 0, stopped.err
    assert time.monotonic() - began < BOUND_S
    assert starting.wait(60) == LaunchError.exit_code
    assert "was stopped while it started" in starting.stdout.read()
    assert cluster_processes() == []
    assert list((user.home / "clusters").iterdir()) == []


BARE = f"""
import json, sys
from pathlib import Path
from raylaunch.runtime.cluster.local_cluster import start_local
cluster = start_local(Path(sys.argv[1]), {NAME!r}, nodes=2, npus_per_node=2,
                      secret_names=["MY_RECIPE_NAMES_IT"])
print(json.dumps([cluster.address, cluster.folder, str(cluster.token_file)]))
"""


@pytest.fixture
def bare(user):
    """An embedded cluster without a deployment."""
    env = {**user.env, "MY_RECIPE_NAMES_IT": "a-secret", "HF_TOKEN": "a-token"}
    command = [sys.executable, "-c", BARE, str(user.home)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
def test_an_embedded_cluster_shows_nothing_to_others_and_a_dead_one_is_stopped(user, bare):
    address, folder, token_file = bare
    listening = set()
    for pid in cluster_processes():
        process = psutil.Process(pid)
        environment = process.environ()
        assert not {"MY_RECIPE_NAMES_IT", "HF_TOKEN"} & environment.keys(), process.name()
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN:
                listening.add(tuple(found.laddr))
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}
    ports = {port for _, port in listening}
    assert int(address.rpartition(":")[2]) in ports
    assert not ports & {6379, 8265, 10001, 52365}, "ports that Ray uses by default"
    modes = {}
    for path in (folder, token_file, user.home / "clusters"):
        modes[path] = stat.S_IMODE(Path(path).stat().st_mode)
    assert modes == {folder: 0o700, token_file: 0o600, user.home / "clusters": 0o700}

    supervisors = [one for one in find_marked() if one.group == SUPERVISOR_GROUP]
    (supervisor,) = [one for one in supervisors if one.deployment.startswith(f"@{NAME}-")]
    psutil.Process(supervisor.pid).kill()
    gcs_of().kill()
    # Never without a name: it would kill what other tests on this machine have started.
    looked = user.run("clean", "--yes", "--deployment", NAME)
    assert looked.code == 11, "the cluster is recorded, so its processes are not killed unasked"
    assert f"`raylaunch stop {NAME}` kills them" in looked.out
    stopped = user.run("stop", NAME, "-o", "json")
    assert stopped.code == 0, stopped.err
    report = stopped.json()
    assert report["processes_ended"] > 5
    assert "no Ray cluster answers" in report["killed_because"]
    assert cluster_processes() == []
    assert not Path(folder).exists()


@pytest.mark.ray
def test_a_frozen_cluster_is_stopped_with_its_servers(user, standin, ports):
    user.extra = standin
    started = user.run("start", "local-dual", "--name", NAME, *ports)
    assert started.code == 0, started.out + started.err
    servers = len(find_marked(NAME))
    assert servers
    gcs_of().suspend()
    began = time.monotonic()
    stopped = user.run("stop", NAME)
    took_s = time.monotonic() - began
    assert stopped.code == 0, stopped.err
    assert "was killed by the marker of its processes" in stopped.err
    assert "no answer within 5 s" in stopped.err
    assert took_s < BOUND_S
    assert (find_marked(NAME), cluster_processes()) == ([], [])


READY_S = 180.0
DRILL_S = 420.0
"""A drill waits 300 s for Ray, and then names what has not come back."""


def seen_by(user) -> dict:
    """What `raylaunch status` finds, in a process of its own; empty while nothing answers."""
    shown = user.run("status", NAME, "-o", "json")
    return shown.json() if shown.code == 0 else {}


def pids_in(status: dict) -> list[int]:
    return [server["seen"]["pid"] for server in status["servers"]]


def is_in_control(status: dict) -> bool:
    seen = [server["seen"] for server in status.get("servers", [])]
    # A controller that took over knows no pid before the agent has reported.
    lost = [one for one in seen if one["agent_lost"] or one["pid"] is None]
    return status.get("phase") == "ready" and not lost


def in_control(user) -> dict:
    """The status once each server has an agent; what happened instead, if that takes too long."""
    try:
        return await_true(
            lambda: is_in_control(status := seen_by(user)) and status, "in control", READY_S
        )
    except AssertionError as error:
        shown = user.run("status", NAME)
        events = user.run("events", NAME)
        pytest.fail(f"{error}\n{shown.out}{shown.err}\n{events.out}{events.err}")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_servers_run_on_when_ray_is_killed_and_are_under_control_again(user, standin, ports):
    """The GCS, then a raylet, then all of Ray: no command is needed, no server is touched."""
    user.extra = standin
    started = user.run("start", "local-dual", "--name", NAME, *ports)
    assert started.code == 0, started.out + started.err
    before = pids_in(seen_by(user))
    for fault in ("kill-gcs", "kill-raylet", "kill-ray", "restart-ray"):
        words = ("drill", NAME, "--fault", fault, "--yes", "-o", "json")
        drilled = user.run(*words, deadline_s=DRILL_S)
        (outcome,) = drilled.json()
        print(fault, drilled.code, outcome["recovery_s"], outcome["failed"], outcome["requests"])
        # A machine that is busy with other work may take more than the minute that a drill allows.
        served = (outcome["adopted"], outcome["failed"], outcome["left"])
        assert served == (True, 0, []), drilled.out + drilled.err
        status = seen_by(user)
        assert (status["attempt"], pids_in(status)) == (1, before)
    # The next fault is handled, and `stop` works.
    os.kill(before[1], signal.SIGKILL)
    await_true(lambda: seen_by(user).get("attempt") == 2, "a second attempt", READY_S)
    in_control(user)
    stopped = user.run("stop", NAME)
    assert stopped.code == 0, stopped.err
    assert (find_marked(NAME), cluster_processes()) == ([], [])


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_start_adopts_servers_whose_cluster_is_gone(user, standin, ports):
    """All of Ray and its supervisor are killed; the tables are there, then they are gone too."""
    user.extra = standin
    start = ("start", "local-dual", "--name", NAME, *ports)
    assert user.run(*start).code == 0
    before = pids_in(seen_by(user))
    (record,), _ = read_records(user.home)
    for has_tables in (True, False):
        assert local_cleanup.kill_ray(record) == []
        if not has_tables:
            shutil.rmtree(local_cleanup.gcs_store_of(record))
            local_cleanup.gcs_store_of(record).mkdir(mode=0o700)
        looked = user.run("status", NAME)
        assert (looked.code, "its servers run on" in looked.err) == (5, True), looked.err
        cleaned = user.run("clean")  # it would kill what other tests have started
        assert "its servers run on" in cleaned.out
        again = user.run(*start)
        assert again.code == 0, again.out + again.err
        assert "adopted" in again.err
        status = in_control(user)
        assert (status["attempt"], pids_in(status)) == (1, before)
    fresh = user.run(*start, "--fresh")
    assert fresh.code == 0, fresh.out + fresh.err
    status = seen_by(user)
    assert not set(pids_in(status)) & set(before)
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert user.run("stop", NAME).code == 0
