"""`raylaunch bench` on real Ray with the stand-in: measured with the key, kept without it, gone with its command.

One deployment for the whole file: a benchmark leaves it as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray_clusters import STANDIN, User, await_true, free_ports

from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked
from raylaunch.runtime.cluster.local_cleanup import stop_local

pytestmark = pytest.mark.ray

NAME = "test-bench"
KEY = "key-that-nobody-may-see"


@pytest.fixture(scope="module")
def bencher():
    """A user whose local-dual is up and asks for a key."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    user = User(folder / "home", {"RAYLAUNCH_VLLM": str(STANDIN), "VLLM_API_KEY": KEY})
    http, rpc = free_ports(2)
    moved = ("--set", f"network.http_port={http}", "--set", f"network.rpc_port={rpc}")
    try:
        started = user.run(
            "start", "local-dual", "--name", NAME, *moved, "--set", "secrets=[VLLM_API_KEY]"
        )
        assert started.code == 0, started.out + started.err
        yield user
    finally:
        stop_local(user.home, NAME)
        terminate_marked(NAME, instance=ANY_INSTANCE, grace_s=0)
        shutil.rmtree(folder, ignore_errors=True)


def kept(user):
    return user.run("bench", NAME, "--list", "-o", "json").json()


def clients():
    """The processes of the benchmark itself, without its guard."""
    return [one for one in find_marked(NAME) if "bench serve" in one.command]


@contextmanager
def endless(user):
    """A benchmark that would take hours, once its client runs."""
    command = user.popen("bench", NAME, "--set", "num-prompts=1000000")
    try:
        await_true(clients, "the client runs")
        yield command
    finally:
        command.kill()
        command.communicate()


def servers(user):
    status = user.run("status", NAME, "-o", "json").json()
    return (
        status["phase"],
        status["attempt"],
        [server["seen"]["pid"] for server in status["servers"]],
    )


def test_measured_kept_and_compared(bencher):
    first = bencher.run("bench", NAME, "--set", "num-prompts=8", "-o", "json")
    assert first.code == 0, first.out + first.err
    (run,) = first.json()
    assert run["figures"]["completed"] == 8, "the stand-in answers nobody without the key"
    assert run["figures"]["failed"] == 0
    assert run["plan"]["deployment"] == NAME
    assert run["versions"].keys() >= {"raylaunch", "ray"}
    assert run["seed"] == 1000
    model = run["plan"]["servers"][0]["argv"][2]
    assert run["command"][run["command"].index("--tokenizer") + 1] == model
    assert run["niceness"] == (0 if os.geteuid() == 0 else run["niceness"])

    again = bencher.run(
        "bench", NAME, "--set", "num-prompts=8", "--concurrency", "1", "--concurrency", "4"
    )
    assert again.code == 0, again.out + again.err
    assert "RUN BEFORE" in again.out
    assert [(one["concurrency"], one["seed"]) for one in kept(bencher)] == [
        (4, 1000),
        (1, 1001),
        (4, 1002),
    ], "prompts that were sent before would be found in the prefix cache"

    files = [*(bencher.home / "bench").rglob("*"), *(bencher.home / "logs").rglob("*")]
    texts = {path: path.read_text() for path in files if path.is_file()}
    assert any(path.name == "bench-1.log" for path in texts), (
        "the client's output lies beside the servers'"
    )
    assert not [path for path, text in texts.items() if KEY in text]
    assert json.loads(texts[bencher.home / "bench" / NAME / f"{run['id']}.json"])["id"] == run["id"]
    assert not clients()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_command_and_the_servers_run_on(bencher, number):
    before, runs = servers(bencher), kept(bencher)
    with endless(bencher) as command:
        (client,) = clients()
        assert os.getpgid(client.pid) != os.getpgid(before[2][0])
        busy = bencher.run("bench", NAME)
        assert busy.code == 10, busy.out + busy.err
        command.send_signal(number)
        out, _ = command.communicate(timeout=60)
    assert command.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), out
    await_true(lambda: not clients(), "the client is gone")
    assert servers(bencher) == before
    assert kept(bencher) == runs, "half a benchmark is none"


def test_what_cannot_be_measured_is_refused(bencher):
    long = bencher.run("bench", NAME, "--scenario", "short")
    assert long.code == 3, long.out + long.err
    assert "1280 tokens" in long.err
    unknown = bencher.run("bench", NAME, "--scenario", "smal", "-o", "json")
    assert json.loads(unknown.err.splitlines()[-1])["why"].startswith("did you mean 'small'?")
    wrong = bencher.run("bench", NAME, "--set", "result-dir=/tmp")
    assert wrong.code == 3


def test_a_restart_of_the_deployment_ends_it(bencher):
    _, _, pids = servers(bencher)
    with endless(bencher) as command:
        os.kill(pids[1], signal.SIGKILL)
        out, _ = command.communicate(timeout=60)
    assert command.returncode == 7, out
    assert "the benchmark was stopped" in out
    assert not clients()
    await_true(lambda: servers(bencher)[:2] == ("ready", 2), "the gang is up again")
