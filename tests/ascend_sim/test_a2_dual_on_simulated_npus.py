"""a2-dual itself, from `ray up` to `raylaunch stop`, on the real vLLM and vllm-ascend.

Real: hosts, SSH, Ray, raylaunch, vLLM 0.23.0, vllm-ascend 0.23.0.post1 with its MiniMax-M2, expert
parallelism over both hosts, FLASHCOMM1. Simulated: the NPUs (simulated_npu/), which are the CPU;
HCCL, for which gloo stands. Recorded: `npu-smi` and `hccn_tool`. Only sizes, dtype and eager mode
differ from the shipped recipe, and the weights are random, the same on every host.
"""

from __future__ import annotations

import json

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


def start(cluster):
    started = ask(cluster, "start", "a2-dual", *settings(), check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    assert "first token" in started.stdout
    return read(cluster, "status", "a2-dual")


@pytest.fixture(autouse=True)
def logs(cluster, kept_logs):
    yield
    cluster.save_logs(kept_logs)
    for host in (cluster.head, cluster.worker):
        host.save("/root/.raylaunch", kept_logs / f"{host.name}-raylaunch")


def test_a2_dual_starts_answers_and_stops(cluster):
    """Ready, proven by `verify`, each rank asked by its number; nothing left after the stop."""
    checked = ask(cluster, "check", "a2-dual", *settings(), "-o", "json", check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    status = start(cluster)
    assert [server["ip"] for server in status["servers"]] == [cluster.head.ip, cluster.worker.ip]
    for host, server in zip((cluster.head, cluster.worker), status["servers"], strict=True):
        env = host.path(f"/proc/{server['seen']['pid']}/environ").read_bytes().split(b"\0")
        assert b"VLLM_ASCEND_ENABLE_FLASHCOMM1=1" in env
        assert b"ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7" in env
        engines = [line for line in host.processes().values() if line.startswith("VLLM::")]
        workers = [line for line in engines if line.startswith("VLLM::Worker_DP")]
        assert len(workers) == 2, engines

    proven = read(cluster, "verify", "a2-dual", "--timeout", "300")
    assert not [check for check in proven["checks"] if check["result"] == "failed"], proven
    answers = ask_each_rank(cluster, status["endpoint"], "minimax25", ranks=2)
    assert {rank for rank, _, _ in answers} == {0, 1}
    assert set(served_by(cluster, status["endpoint"])) == {"0", "1"}

    stopped = read(cluster, "stop", "a2-dual")
    assert stopped["left"] == []
    for host in (cluster.head, cluster.worker):
        left = [line for line in host.processes().values() if any(word in line for word in SERVER)]
        assert left == []
