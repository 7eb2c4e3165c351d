"""`ray up` over SSH with the file that `raylaunch cluster` writes: real sshd, real Ray, two
addresses."""

from __future__ import annotations

import json
import re

import pytest
from ray_hosts import TOKEN, await_true

pytestmark = [pytest.mark.hosts, pytest.mark.ray]

HEAD_GONE_S = 60.0
GONE_S = 240.0
NODES = """
import json, ray
ray.init(logging_level="ERROR")
print(json.dumps([[node["NodeManagerAddress"], node["Resources"].get("NPU")] for node in ray.nodes() if node["Alive"]]))
"""


@pytest.fixture(autouse=True)
def logs(request, kept_logs):
    yield
    if "ray_cluster_on_hosts" in request.fixturenames:
        request.getfixturevalue("ray_cluster_on_hosts").save_logs(kept_logs)


def test_both_hosts_join_under_their_own_addresses(ray_cluster_on_hosts):
    cluster = ray_cluster_on_hosts
    nodes = json.loads(cluster.run(["python", "-c", NODES]).stdout.splitlines()[-1])
    assert sorted(nodes) == [[cluster.head.ip, 8.0], [cluster.worker.ip, 8.0]]


def test_the_token_is_on_every_host_and_only_its_owner_reads_it(ray_cluster_on_hosts):
    hosts = ray_cluster_on_hosts.hosts
    assert len({host.run(["cat", TOKEN]).stdout for host in hosts}) == 1
    for host in hosts:
        assert host.run(["stat", "-c", "%a", TOKEN, TOKEN.rpartition("/")[0]]).stdout.split() == [
            "600",
            "700",
        ]


def test_nobody_gets_in_without_the_token(ray_cluster_on_hosts):
    cluster = ray_cluster_on_hosts
    wrong = cluster.run(
        ["ray", "status"], check=False, env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    )
    none = cluster.run(["ray", "status"], check=False, env={"RAY_AUTH_MODE": "disabled"})
    for answer in (wrong, none):
        assert answer.returncode != 0
        assert "NPU" not in answer.stdout


def test_ray_listens_outside_the_ports_of_vllm_and_hccl(ray_cluster_on_hosts):
    cluster = ray_cluster_on_hosts
    for host in (cluster.head, cluster.worker):
        lines = host.run(["ss", "-Hltnp"]).stdout.splitlines()
        listening = {int(re.search(r":(\d+)\s", line)[1]) for line in lines}
        assert 6380 in listening
        assert not listening & {20004, 2347, *range(60000, 60016)}
        outside = {port for port in listening if port >= 20000}
        assert not outside, "\n".join(lines)


def test_ray_runs_at_normal_priority(ray_cluster_on_hosts):
    code = "import os, ray; ray.init(logging_level='ERROR'); print(ray.get(ray.remote(lambda: os.nice(0)).remote()))"
    assert ray_cluster_on_hosts.run(["python", "-c", code]).stdout.split()[-1] == "0"


def raylets(cluster):
    hosts = (cluster.head, cluster.worker)
    return {
        (host.name, pid)
        for host in hosts
        for pid, line in host.processes().items()
        if "/raylet/raylet " in line
    }


@pytest.mark.long
def test_ray_up_again_replaces_ray_on_both_hosts(ray_cluster_on_hosts):
    before = raylets(ray_cluster_on_hosts)
    ray_cluster_on_hosts.up(npus=16)
    after = raylets(ray_cluster_on_hosts)
    assert [len(before), len(after)] == [2, 2]
    assert not before & after


def test_ray_down_ends_the_head(ray_cluster_on_hosts):
    assert "No nodes remaining" in ray_cluster_on_hosts.down()
    head = ray_cluster_on_hosts.head
    await_true(
        lambda: not head.processes(), HEAD_GONE_S, head.processes
    )  # connections of ssh stay open for 10 s


@pytest.mark.long
def test_ray_down_leaves_nothing_on_either_host(ray_cluster_on_hosts):
    """The worker's Ray ends by itself, once its head has not answered for a minute; the last
    process a minute later."""
    cluster = ray_cluster_on_hosts
    cluster.down()
    hosts = (cluster.head, cluster.worker)
    await_true(
        lambda: not any(host.processes() for host in hosts),
        GONE_S,
        lambda: [host.processes() for host in hosts],
    )
