"""a2-dual on two hosts with NPUs that answer as recorded: from `ray up` to `ray down`, and what one
sick host is told.

Real: hosts, addresses, SSH, `ray up`, Ray, raylaunch. Stand-ins: vLLM (tests/standin), `npu-smi`
and `hccn_tool` (a2_hosts.py), which print recorded outputs. No NPU is involved.
"""

from __future__ import annotations

import json
import subprocess

import pytest
from a2_hosts import MODEL, SITE, A2Host, recorded
from hosts import HOME, ROOT
from ray_hosts import await_true, write_cluster_file

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(600)]

RUN_S = 240
GONE_S = 240.0
SETS = ("--set", f"model.path={MODEL}")
CHAT = """
import httpx, sys
body = {"model": "minimax25", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
print(httpx.post(sys.argv[1] + "/chat/completions", json=body, timeout=60, trust_env=False).status_code)
"""
LISTEN = "import socket; s = socket.create_server(('0.0.0.0', 60003)); print('up', flush=True); s.accept()"
WAIT = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture(scope="module")
def a2(two_hosts):
    """Both hosts, before Ray runs there."""
    pair = [A2Host(two_hosts[number], number) for number in range(2)]
    for host in pair:
        host.install()
    return pair


@pytest.fixture(scope="module")
def cluster(two_hosts, a2):
    """One `ray up` for all tests of this file. The hosts' end ends it."""
    cluster = write_cluster_file(two_hosts, "a2-dual", "--bare")
    cluster.up(npus=16)
    return cluster


@pytest.fixture(autouse=True)
def logs(cluster, kept_logs):
    yield
    cluster.save_logs(kept_logs)


def ask(cluster, *words, check=True):
    return cluster.run(["raylaunch", *words], timeout=RUN_S, check=check)


def look(cluster, *more):
    """`raylaunch check`, as JSON."""
    done = ask(cluster, "check", "a2-dual", *SETS, *more, "-o", "json", check=False)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def run_on(host, program, **env):
    """A Python program on a host, once it has said that it is up."""
    process = host.popen(["python", "-c", program], env=env, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "up\n"
    (pid,) = [pid for pid, line in host.processes().items() if program in line]
    return pid


def test_two_good_hosts_from_check_to_stop(cluster, a2):
    """No finding about NPUs, each server on its own host with that host's address and interface,
    nothing left."""
    code, findings = look(cluster)
    assert code == 0, findings
    assert not [one for one in findings if "npu" in one["id"] or "probe" in one["id"]], findings

    started = ask(cluster, "start", "a2-dual", *SETS)
    assert "first token" in started.stdout
    status = json.loads(ask(cluster, "status", "a2-dual", "-o", "json").stdout)
    assert status["endpoint"] == f"http://{cluster.head.ip}:8000/v1"
    assert status["groups"][0]["endpoint"] == f"http://{cluster.head.ip}:20004/v1"
    for number, server in enumerate(status["servers"]):
        host = a2[number].host
        assert (server["ip"], server["interface"]) == (host.ip, "eth0")
        (record,) = a2[number].records()
        planned = {
            "HCCL_IF_IP": host.ip,
            "HCCL_SOCKET_IFNAME": "=eth0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "TP_SOCKET_IFNAME": "eth0",
            "VLLM_HOST_IP": host.ip,
            "ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            "RAYLAUNCH_DEPLOYMENT": "a2-dual",
        }
        assert {name: record["env"].get(name) for name in planned} == planned
        assert record["pid"] in host.processes(), "it runs on this host and not on the other"
        argv = record["argv"]
        assert argv[argv.index("--data-parallel-address") + 1] == cluster.head.ip
        assert ("--headless" in argv) == (number == 1)
    assert (
        cluster.run(["python", "-c", CHAT, status["endpoint"]], timeout=RUN_S).stdout.strip()
        == "200"
    )
    there = a2[1].host.run(["python", "-c", CHAT, status["endpoint"]], timeout=RUN_S)
    assert there.stdout.strip() == "200", "the API is reached from the other host"

    stopped = json.loads(ask(cluster, "stop", "a2-dual", "-o", "json").stdout)
    assert stopped["left"] == []
    for each in a2:
        assert not [
            line
            for line in each.host.processes().values()
            if "standin_vllm" in line or "guard.py" in line
        ]


@pytest.fixture(scope="module")
def refused(cluster, a2):
    """Every fault at once, all on the second host: what `check` found there, and what `start` said
    to it."""
    first, second = a2
    host = second.host
    host.put(
        f"{SITE}/vllm-0.22.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.22.0\n",
    )
    host.path(f"{MODEL}/model-00002-of-00002.safetensors").unlink()
    running = [
        run_on(host, LISTEN),
        run_on(host, WAIT, RAYLAUNCH_DEPLOYMENT="a2-dual", RAYLAUNCH_ATTEMPT="3"),
    ]
    second.put(
        "info.txt",
        recorded("npu-smi/a2_busy").replace(
            "| 3     910B1               | OK ", "| 3     910B1               | Alarm ", 1
        ),
    )
    second.answer(4, "link", recorded("hccn/link_down"))
    second.answer(5, "tls", recorded("hccn/tls_on"))
    second.answer(6, "mtu", "mtu:4096\n")
    first.lose(7, second.address(7))
    fixed = ("--set", "network.hccl_base_port=60000")
    try:
        code, findings = look(cluster, *fixed)
        assert code == 4
        return findings, ask(cluster, "start", "a2-dual", *SETS, *fixed, check=False)
    finally:
        for pid in running:
            host.run(["kill", str(pid)])
        host.path(f"{SITE}/vllm-0.22.0.dist-info/METADATA").unlink()
        for each in a2:
            each.heal()


# id, and what the finding must say for a person to act on it
SAID = [
    ("version-mismatch", ["vllm", "0.22.0: {ip} (h1)"]),
    ("weights-incomplete", ["{ip} (h1)", "missing model-00002-of-00002.safetensors"]),
    ("port-busy", ["port 60003", "{ip} (h1)", "pid ", "network.hccl_base_port"]),
    ("leftovers", ["{ip} (h1)", "attempt 3", "raylaunch clean --yes --deployment a2-dual"]),
    ("npu-unhealthy", ["{ip} (h1)", "NPU 3 Alarm"]),
    ("npu-busy", ["{ip} (h1)", "3755935", "52245 MB"]),
    ("npu-link-down", ["NPU 4 on node {ip} (h1)"]),
    ("npu-tls-differs", ["on: NPU 5 of {ip} (h1)"]),
    ("npu-mtu-differs", ["4096: NPU 6 of {ip} (h1)"]),
    ("npu-unreachable", ["{other} (h0) → {ip} (h1)", "NPU 7 (10.20.0.17) → NPU 7 (10.20.1.17)"]),
]


@pytest.mark.parametrize(("finding", "parts"), SAID)
def test_a_fault_on_one_host_is_refused_with_what_a_person_needs(refused, a2, finding, parts):
    findings, started = refused
    found = [one for one in findings if one["id"] == finding]
    assert [one["level"] for one in found] == ["error"], findings
    assert found[0]["where"] in ("", *(each.host.ip for each in a2))
    text = " ".join(found[0][key] for key in ("what", "todo", "seen"))
    for part in parts:
        assert part.format(ip=a2[1].host.ip, other=a2[0].host.ip) in text
    assert started.returncode == 4
    (line,) = [line for line in started.stderr.splitlines() if f" {finding}: " in line]
    assert "(h1)" in line, "start refuses it as well, and says where"


def test_the_other_host_is_not_blamed(refused, a2):
    findings, _ = refused
    own = [
        one["id"] for one in findings if one["level"] == "error" and one["where"] == a2[0].host.ip
    ]
    assert own == ["npu-unreachable"], "that is a way, and begins there"


def test_what_was_refused_has_started_nothing(refused, a2, cluster):
    assert len([record for each in a2 for record in each.records()]) <= 2, "those of the good start"
    assert ask(cluster, "status", "a2-dual", check=False).returncode == 9


def test_an_npu_smi_that_hangs_on_one_host_is_refused_in_time(cluster, a2):
    a2[1].hang()
    try:
        code, findings = look(cluster, "--set", "timeouts.probe=8")
    finally:
        a2[1].heal()
    errors = [one for one in findings if one["level"] == "error"]
    assert [(one["id"], one["where"]) for one in errors] == [("npu-smi-hangs", a2[1].host.ip)], (
        findings
    )
    assert code == 4
    assert "no answer in" in errors[0]["seen"]
    assert not [line for line in a2[1].host.processes().values() if line.startswith("sleep 600")], (
        "it was ended"
    )


def test_an_interface_that_one_host_lacks_or_that_has_no_address_there_is_refused(cluster, a2):
    first, second = (each.host for each in a2)
    first.add_nic("data0", "10.79.0.1/24")
    absent = ask(
        cluster, "check", "a2-dual", *SETS, "--set", "network.interface=data0", check=False
    )
    assert absent.returncode == 12, absent.stdout + absent.stderr
    assert f"node {second.ip} has no interface that fits network.interface=data0" in absent.stderr
    assert f"eth0: {second.ip}/24" in absent.stderr, "what there is"
    second.add_nic("data0")
    bare = ask(cluster, "check", "a2-dual", *SETS, "--set", "network.interface=data0", check=False)
    assert bare.returncode == 12, bare.stdout + bare.stderr
    shown = next(line for line in bare.stderr.splitlines() if "data0: " in line)
    assert "10.79." not in shown, (
        "it exists, and carries no more than the link-local address that the kernel gives"
    )


def test_each_host_downloads_its_weights_to_its_own_disk(cluster, a2):
    """Two disks, so two downloads, at the same time; in the end both hosts hold the same."""
    folder, record = f"{HOME}/fetched", f"{HOME}/hub-record"
    tool = f'#!/bin/sh\nexec env STANDIN_HUB={record} {ROOT}/tests/standin/hub/modelscope "$@"\n'
    for each in a2:
        each.host.path(record).mkdir()
        each.host.put(f"{HOME}/bin/modelscope", tool, 0o755)
    words = ("weights", "a2-dual", "--set", f"model.path={folder}", "-o", "json")
    before = ask(cluster, *words, check=False)
    assert before.returncode == 4, before.stdout + before.stderr
    nodes = {node["host"]: node for node in json.loads(before.stdout)["nodes"]}
    assert {host: node["state"] for host, node in nodes.items()} == {
        each.host.ip: "missing" for each in a2
    }
    assert {node["programs"]["modelscope"] for node in nodes.values()} == {f"{HOME}/bin/modelscope"}

    done = ask(cluster, *words, "--download")
    nodes = json.loads(done.stdout)["nodes"]
    assert [node["state"] for node in nodes] == ["complete"] * 2
    assert nodes[0]["place"] != nodes[1]["place"]
    assert nodes[0]["fingerprint"] == nodes[1]["fingerprint"]
    for each in a2:
        calls = each.host.path(f"{record}/calls").read_text()
        assert calls.count('"start"') == 1, calls
        assert each.host.path(f"{folder}/model-00003-of-00003.safetensors").exists()


@pytest.mark.long
def test_after_ray_down_nothing_is_left_on_either_host(cluster, a2):
    """The worker's Ray ends by itself, once its head has not answered for a minute."""
    cluster.down()
    hosts = [each.host for each in a2]
    await_true(
        lambda: not any(host.processes() for host in hosts),
        GONE_S,
        lambda: [host.processes() for host in hosts],
    )
