"""a2-dual itself, from `ray up` to `raylaunch stop`, on the real vLLM and vllm-ascend.

Real: hosts, SSH, Ray, raylaunch, vLLM 0.23.0, vllm-ascend 0.23.0.post1 with its MiniMax-M2, expert
parallelism over both hosts, FLASHCOMM1. Simulated: the NPUs (simulated_npu/), which are the CPU;
HCCL, for which gloo stands. Recorded: `npu-smi` and `hccn_tool`. Only sizes, dtype, eager mode and
the number of processes differ from the shipped recipe, and the weights are random, the same on
every host.
"""

from __future__ import annotations

import json
import time

import pytest
from simulated_hosts import RUN_S, ask_each_rank, served_by, settings

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.long,
    pytest.mark.timeout(7200),
]

SERVER = ("vllm serve", "VLLM::", "guard.py")


def ask(cluster, *words, check=True):
    return cluster.run(["raylaunch", *words], timeout=RUN_S, check=check)


def read(cluster, *words):
    return json.loads(ask(cluster, *words, "-o", "json").stdout)


def own_endpoint(status):
    """The address of the primary server itself, behind the gateway."""
    return status["groups"][0]["endpoint"]


@pytest.fixture(autouse=True)
def logs(cluster, kept_logs):
    yield
    cluster.save_logs(kept_logs)
    for host in (cluster.head, cluster.worker):
        host.save("/root/.raylaunch", kept_logs / f"{host.name}-raylaunch")


@pytest.fixture(scope="module")
def started(cluster):
    """Its status, once it is ready."""
    done = ask(cluster, "start", "a2-dual", *settings(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first token" in done.stdout
    return read(cluster, "status", "a2-dual")


def test_the_check_finds_nothing(cluster, capsys):
    """The dry run by the node's own vllm-ascend included; the second time its answer is cached."""
    for answer in ("asked", "cached"):
        begin = time.monotonic()
        done = ask(cluster, "check", "a2-dual", *settings(), "-o", "json", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with capsys.disabled():
            print(f"\ncheck of two hosts, engines {answer}: {time.monotonic() - begin:.1f} s")


def test_each_server_runs_on_its_own_host(cluster, started):
    assert [server["ip"] for server in started["servers"]] == [cluster.head.ip, cluster.worker.ip]
    for host, server in zip((cluster.head, cluster.worker), started["servers"], strict=True):
        env = host.path(f"/proc/{server['seen']['pid']}/environ").read_bytes().split(b"\0")
        assert b"VLLM_ASCEND_ENABLE_FLASHCOMM1=1" in env
        assert b"ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7" in env
        engines = [line for line in host.processes().values() if line.startswith("VLLM::")]
        workers = [line for line in engines if line.startswith("VLLM::Worker_DP")]
        assert len(workers) == 2, engines


def test_both_ranks_answer_and_a_killed_server_comes_back_with_the_same_answers(cluster, started):
    proven = read(cluster, "verify", "a2-dual", "--timeout", "300")
    assert not [check for check in proven["checks"] if check["result"] == "failed"], proven
    first = ask_each_rank(cluster, own_endpoint(started), "minimax25", ranks=2)
    assert {rank for rank, _, _ in first} == {0, 1}
    assert set(served_by(cluster, own_endpoint(started))) == {"0", "1"}

    faults = ("--fault", "kill-engine", "--fault", "kill-primary")
    outcomes = read(cluster, "drill", "a2-dual", *faults, "--yes")
    assert [one["fault"] for one in outcomes] == ["kill-engine", "kill-primary"], outcomes
    for one in outcomes:
        assert not one["problem"], outcomes
        assert one["recovery_s"] is not None
        assert one["left"] == []
    assert ask_each_rank(cluster, own_endpoint(started), "minimax25", ranks=2) == first


def test_after_the_stop_nothing_is_left(cluster, started):
    stopped = read(cluster, "stop", "a2-dual")
    assert stopped["left"] == []
    for host in (cluster.head, cluster.worker):
        left = [line for line in host.processes().values() if any(word in line for word in SERVER)]
        assert left == []
