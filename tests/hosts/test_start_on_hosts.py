"""`start` over two hosts with real vLLM: each server on its own host and address; then the network
is cut."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

NAME = "far-apart"
CHAT = """
import httpx, sys
body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
print(httpx.post(sys.argv[1] + "/chat/completions", json=body, timeout=120, trust_env=False).status_code)
"""
DEADLINE_S = 120


def ask(cluster, *words, timeout=300, check=True):
    return cluster.run(["raylaunch", *words], timeout=timeout, check=check)


def status(cluster):
    return json.loads(ask(cluster, "status", NAME, "-o", "json", check=False).stdout)


def events(cluster):
    told = ask(cluster, "events", NAME, "-o", "json", check=False).stdout
    return [json.loads(line) for line in told.splitlines()]


def await_event(cluster, kind, *parts):
    """Look at the events until one tells; `events -f` would end only with the deployment."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = [
            event
            for event in events(cluster)
            if event["kind"] == kind and any(p in event["text"] for p in parts)
        ]
        if found:
            return found[0]
        time.sleep(1)
    raise AssertionError(f"no {kind} with {parts}: {events(cluster)[-15:]}")


def test_real_vllm_over_two_hosts_and_a_cut_network(ray_cluster_on_hosts, capsys):
    cluster = ray_cluster_on_hosts
    started = ask(
        cluster,
        "start",
        "local-dual",
        "--name",
        NAME,
        "--set",
        "network.interface=auto",
        timeout=600,
    )
    assert "first token" in started.stdout

    servers = status(cluster)["servers"]
    assert [(server["ip"], server["interface"]) for server in servers] == [
        (cluster.head.ip, "eth0"),
        (cluster.worker.ip, "eth0"),
    ]
    for host, server in ((cluster.head, servers[0]), (cluster.worker, servers[1])):
        env = host.path(f"/proc/{server['seen']['pid']}/environ").read_bytes().split(b"\0")
        assert f"VLLM_HOST_IP={host.ip}".encode() in env
        assert b"GLOO_SOCKET_IFNAME=eth0" in env
    for _ in range(4):
        answer = cluster.run(
            ["python", "-c", CHAT, f"http://{cluster.head.ip}:20004/v1"], timeout=180
        )
        assert answer.stdout.strip() == "200"
    assert (
        "Launching 1 data parallel engine"
        in ask(cluster, "logs", NAME, "--server", "1", "-n", "500").stdout
    )

    cut_at = time.time()
    cluster.worker.cut()
    try:
        noticed = await_event(cluster, "failure", "unreachable", "died")
        with capsys.disabled():
            print(f"\ncut network noticed after {noticed['at'] - cut_at:.1f} s: {noticed['text']}")
        assert "node unreachable" in noticed["text"]
        assert noticed["server"] == 1
        stopped = ask(cluster, "stop", NAME, "-o", "json", check=False)
        (left,) = json.loads(stopped.stdout)["left"]
        assert left.startswith(f"server 1: {cluster.worker.ip} cannot be reached")
        assert stopped.returncode == 11
        assert not [
            line
            for line in cluster.head.processes().values()
            if "vllm serve" in line or "VLLM::" in line
        ]
    finally:
        cluster.worker.heal()
