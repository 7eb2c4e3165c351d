"""`--cluster FILE` from a third machine: the desk is no node of the cluster, and knows it by its
file alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from hosts import ROOT
from ray_hosts import FILE, await_true, write_cluster_file

pytestmark = [pytest.mark.hosts, pytest.mark.ray]

NAME = "mine"
NOTHING_KNOWN = "10.77.0.99"
SECRET = "told-to-nobody-b7c1"
STANDIN = f"export RAYLAUNCH_VLLM={ROOT}/tests/standin/bin/vllm STANDIN_PYTHON=python\n"
SEEN = "/tmp/seen"
KNOWN_HOSTS = "/root/.ssh/known_hosts"
WATCH = f"while sleep 0.1; do cat /proc/[0-9]*/cmdline 2>/dev/null; done | tr '\\0' ' ' > {SEEN}"
CHAT = """
import httpx, sys
body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
print(httpx.post(sys.argv[1] + "/chat/completions", json=body, timeout=60, trust_env=False).status_code)
"""
GONE_S = 60.0


@pytest.fixture(scope="module")
def cluster(two_hosts):
    """A cluster whose nodes have the stand-in for vLLM, and a person at the desk with a recipe of
    their own.

    At the address of its second worker nobody is.
    """
    cluster = write_cluster_file(two_hosts, "a2-dual", "--bare", "--worker", NOTHING_KNOWN)
    for host in (cluster.head, cluster.worker):
        host.put("/root/.profile", f"echo welcome to {host.name}; . ~/.bashrc\n{STANDIN}")
    cluster.desk.put("/root/base.yaml", "extends: local-dual\nnetwork: {interface: auto}\n")
    cluster.desk.put("/root/site/mine.yaml", "extends: ../base.yaml\nsecrets: [MY_SECRET]\n")
    cluster.up(npus=16)
    return cluster


@pytest.fixture(autouse=True)
def logs(cluster, kept_logs):
    yield
    cluster.save_logs(kept_logs)


def ask(cluster, *words, timeout=120, check=True, file=FILE):
    return cluster.desk.run(
        ["raylaunch", *words, "--cluster", file],
        timeout=timeout,
        check=check,
        env={"MY_SECRET": SECRET},
    )


def files(host):
    return set(host.run(["find", "/tmp", "/root", "-xdev"]).stdout.splitlines())


def remote_commands(host):
    """Processes and folders on a host that a command over SSH left."""
    folders = [path.name for path in host.path("/tmp").glob("raylaunch-*")]
    return folders + [line for line in host.processes().values() if "sent.readline" in line]


def test_a_head_on_which_something_is_wrong_is_told_and_nothing_is_left(cluster):
    desk = cluster.desk
    text = desk.path(FILE).read_text()
    desk.put("/root/nobody.yaml", text.replace(cluster.head.ip, NOTHING_KNOWN))
    desk.put("/root/desk.yaml", text.replace(cluster.head.ip, desk.ip))
    desk.put("/root/strange.yaml", "model: {path: /m}\n")
    before = files(desk)
    answers = {
        file: ask(cluster, "status", "-o", "json", file=file, check=False)
        for file in ("none.yaml", "strange.yaml", "nobody.yaml", "desk.yaml")
    }
    told = {
        file: (done.returncode, json.loads(done.stderr)["what"], done.stdout)
        for file, done in answers.items()
    }
    assert told == {
        "none.yaml": (13, "the cluster's file none.yaml cannot be read", ""),
        "strange.yaml": (13, "strange.yaml is not a file for `ray up`", ""),
        "nobody.yaml": (14, f"the head {NOTHING_KNOWN} cannot be reached over SSH", ""),
        "desk.yaml": (5, "Ray does not run on the head", ""),
    }
    assert files(desk) - before <= {KNOWN_HOSTS, str(Path(KNOWN_HOSTS).parent)}
    assert [remote_commands(host) for host in cluster.hosts.hosts] == [[], [], []]


def test_a_worker_that_has_not_joined_is_named(cluster):
    enough = json.loads(ask(cluster, "check", "site/mine.yaml", "-o", "json", check=False).stdout)
    (finding,) = [finding for finding in enough["findings"] if finding["id"] == "worker-absent"]
    assert finding["level"] == "warning"

    refused = ask(
        cluster, "check", "site/mine.yaml", "--set", "parallel.data=3", "-o", "json", check=False
    )
    assert refused.returncode == 6, refused.stderr
    error = json.loads(refused.stderr)
    for told in (finding["what"], error["why"]):
        assert (
            f"1 of 2 worker(s) that `ray up` was to start have not joined the cluster: {NOTHING_KNOWN}"
            in told
        )
    for evidence in (finding["seen"], error["evidence"]):
        assert "monitor." in evidence
    assert f"ssh root@{NOTHING_KNOWN}" in error["todo"]


@pytest.fixture(scope="module")
def started(cluster):
    """The person's own recipe, started from the desk; the process tables of desk and head are
    watched meanwhile."""
    watched = (cluster.desk, cluster.head)
    watchers = [host.popen(["bash", "-c", WATCH]) for host in watched]
    done = ask(cluster, "start", "site/mine.yaml")
    for watcher, host in zip(watchers, watched, strict=True):
        for pid, line in host.processes().items():
            if line.startswith(("bash -c while", "sleep 0.1")):
                host.run(["kill", str(pid)], check=False)
        watcher.wait(GONE_S)
    return done


def test_start_chat_and_status_from_the_desk(cluster, started):
    assert "first token" in started.stdout
    assert f"raylaunch stop {NAME} --cluster {FILE}" in started.stdout

    status = ask(cluster, "status", NAME, "-o", "json")
    assert status.stderr == ""
    seen = json.loads(status.stdout)
    servers = seen["servers"]
    assert [server["ip"] for server in servers] == [cluster.head.ip, cluster.worker.ip]
    assert cluster.desk.run(["python", "-c", CHAT, seen["endpoint"]]).stdout.strip() == "200"

    # The secret reached both servers, and nothing else shows it.
    for host, server in zip((cluster.head, cluster.worker), servers, strict=True):
        assert (
            f"MY_SECRET={SECRET}".encode()
            in host.path(f"/proc/{server['seen']['pid']}/environ").read_bytes()
        )
    for host in (cluster.desk, cluster.head):
        table = host.path(SEEN).read_text(errors="replace")
        assert ("ssh -i" if host is cluster.desk else "sent.readline") in table, (
            "the watcher saw the command"
        )
        assert SECRET not in table
    assert SECRET not in started.stdout + started.stderr
    for host in cluster.hosts:
        own = [
            "find",
            "/tmp",
            "/root",
            "-xdev",
            "-type",
            "f",
        ]  # not the checkout, should it lie below one of them
        found = host.run([*own, "-exec", "grep", "-lF", SECRET, "{}", "+"], check=False).stdout
        assert not found

    # What runs on the nodes came from the desk, whatever raylaunch they may have.
    for host in (cluster.head, cluster.worker):
        guards = [line for line in host.processes().values() if "node/process/guard.py" in line]
        assert guards
        assert all("/.raylaunch/code/" in line for line in guards)

    assert "Application startup complete" in ask(cluster, "logs", NAME).stdout
    kinds = [
        json.loads(line)["kind"]
        for line in ask(cluster, "events", NAME, "-o", "json").stdout.splitlines()
    ]
    assert "phase" in kinds


def test_ctrl_c_ends_both_sides_and_not_the_deployment(cluster, started):
    following = cluster.desk.popen(
        ["raylaunch", "events", NAME, "-f", "--cluster", FILE], stdout=-1
    )
    assert following.stdout.readline()
    (pid,) = [pid for pid, line in cluster.desk.processes().items() if "raylaunch events" in line]
    cluster.desk.run(["kill", f"-{signal.SIGINT.value}", str(pid)])
    local = 130  # what `raylaunch events -f` on the head itself ends with
    assert following.wait(GONE_S) == local
    await_true(
        lambda: not remote_commands(cluster.head), GONE_S, lambda: remote_commands(cluster.head)
    )
    assert json.loads(ask(cluster, "status", NAME, "-o", "json").stdout)["phase"] == "ready"


@pytest.mark.long
def test_a_lost_connection_is_told_and_the_far_side_ends(cluster, started):
    following = cluster.desk.popen(
        ["raylaunch", "events", NAME, "-f", "--cluster", FILE], stdout=-1, stderr=-1
    )
    assert following.stdout.readline()
    cluster.desk.cut()
    try:
        assert following.wait(GONE_S) == 14
        assert "the connection to the head" in following.stderr.read()
        await_true(
            lambda: not remote_commands(cluster.head),
            4 * GONE_S,
            lambda: remote_commands(cluster.head),
        )
    finally:
        cluster.desk.heal()
    assert json.loads(ask(cluster, "status", NAME, "-o", "json").stdout)["phase"] == "ready"


def test_stop_from_the_desk_leaves_nothing(cluster, started):
    stopped = json.loads(ask(cluster, "stop", NAME, "-o", "json").stdout)
    assert (stopped["left"], ask(cluster, "status", NAME, check=False).returncode) == ([], 9)
    assert [remote_commands(host) for host in cluster.hosts.hosts] == [[], [], []]
