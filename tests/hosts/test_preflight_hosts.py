"""`raylaunch check` and `clean` over two hosts with an address each: what crosses the network
really does."""

from __future__ import annotations

import json
import sys

import pytest
from hosts import HOME, PATH, ROOT

pytestmark = [pytest.mark.hosts, pytest.mark.ray]

MODEL = "/root/model"
ORPHAN = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture(scope="module", autouse=True)
def standin(two_hosts):
    """What the login shells of `ray up` have before it: the stand-in, which answers for its flags
    in no time."""
    own = {
        "PATH": PATH,
        "RAYLAUNCH_VLLM": f"{ROOT}/tests/standin/bin/vllm",
        "STANDIN_PYTHON": sys.executable,
    }
    for host in tuple(two_hosts)[:2]:
        host.put(
            f"{HOME}/.bashrc", "".join(f"export {name}={value}\n" for name, value in own.items())
        )


@pytest.fixture
def cluster(ray_cluster_on_hosts):
    """Both hosts with something that looks like weights."""
    config = {"model_type": "minimax_m2", "num_attention_heads": 48, "num_key_value_heads": 8}
    for host in (ray_cluster_on_hosts.head, ray_cluster_on_hosts.worker):
        host.put(f"{MODEL}/config.json", json.dumps(config))
        host.put(f"{MODEL}/model.safetensors", "\x02" + "\x00" * 7 + "{}")
    return ray_cluster_on_hosts


def check(cluster, *more):
    words = ["raylaunch", "check", "a2-dual", "--set", f"model.path={MODEL}", *more, "-o", "json"]
    done = cluster.run(words, timeout=120, check=False)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    told = json.loads(done.stdout)
    return told, {finding["id"]: finding for finding in told["findings"]}, done.returncode


def test_both_ways_between_the_hosts_are_tried(cluster):
    told, found, _ = check(cluster)
    assert told["hosts"] == [cluster.head.ip, cluster.worker.ip]
    assert "unreachable" not in found


def test_a_network_that_does_not_join_the_hosts_is_refused(cluster):
    """Each host has an address there, and every packet is lost: as with docker0, or a VLAN the
    switch does not know."""
    addresses = ["198.51.100.10", "198.51.100.11"]
    for host, address in zip((cluster.head, cluster.worker), addresses, strict=True):
        host.add_nic("apart0", f"{address}/24", kind="bridge")
    told, _, code = check(cluster, "--set", "network.interface=apart0")
    assert code == 4
    assert told["hosts"] == addresses
    ways = [finding["what"] for finding in told["findings"] if finding["id"] == "unreachable"]
    assert len(ways) == 2
    for way, (here, there) in zip(ways, (addresses, addresses[::-1]), strict=True):
        assert f"{here} → {there}" in way
        assert all(f"({name})" in way for name in ("http", "rpc", "hccl", "any")), way


def test_weights_that_only_one_host_lacks_are_named_with_the_host(cluster):
    cluster.worker.path(f"{MODEL}/model.safetensors").unlink()
    _, found, code = check(cluster)
    assert code == 4
    assert cluster.worker.ip in [
        finding["where"] for finding in found.values() if finding["level"] == "error"
    ]


def test_a_host_that_takes_its_own_name_for_loopback_is_named(cluster):
    """As Debian's installer writes it.

    Gloo and others would offer that address to the other host.
    """
    hosts = cluster.worker.path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(f"127.0.1.1 {cluster.worker.name}\n{before}")
    try:
        _, found, _ = check(cluster)
    finally:
        hosts.write_text(before)
    assert found["hostname-loopback"]["where"] == cluster.worker.ip
    assert "127.0.1.1" in found["hostname-loopback"]["what"]
    assert cluster.worker.ip in found["hostname-loopback"]["todo"]


def test_clean_finds_and_ends_what_is_left_on_the_other_host(cluster):
    env = {"RAYLAUNCH_DEPLOYMENT": "test-gone", "RAYLAUNCH_ATTEMPT": "2"}
    orphan = cluster.worker.popen(["python", "-c", ORPHAN], env=env, stdout=-1)
    assert orphan.stdout.readline()
    words = ["raylaunch", "clean", "--deployment", "test-gone", "-o", "json"]
    looked = cluster.run(words, timeout=120, check=False)
    assert looked.returncode == 11, looked.stdout + looked.stderr
    (found,) = json.loads(looked.stdout)["found"]
    assert (found["host"], found["attempt"]) == (cluster.worker.name, 2)
    assert ORPHAN in cluster.worker.processes()[found["pid"]]
    ended = cluster.run([*words, "--yes"], timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["found"] == [
        {**found, "age_s": json.loads(ended.stdout)["found"][0]["age_s"]}
    ]
    orphan.wait(60)
    assert found["pid"] not in cluster.worker.processes()
