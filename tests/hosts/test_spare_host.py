"""Three hosts, two servers: what is lost is replaced by the third, under that host's own address,
without a person.

Real Ray over a real network between namespaces, the stand-in for the servers. The head is h0, and
h2 is the spare one to begin with.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hosts import HOME, ROOT, Host, build_hosts
from ray_hosts import await_true

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(600)]

TOKEN = f"{HOME}/token"
MODEL = f"{HOME}/model"
JOIN_S = 120.0
RECOVER_S = 180.0
NAME = "three-hosts"
ALIVE = """
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
print(*(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
"""


@dataclass
class Three:
    """The hosts and what a command on the head needs."""

    hosts: list[Host]

    def env(self, host):
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": TOKEN,
            "RAY_ADDRESS": f"{self.hosts[0].ip}:6379",
            "RAYLAUNCH_VLLM": f"{ROOT}/tests/standin/bin/vllm",
            "STANDIN_PYTHON": "python",
            "RAYLAUNCH_DRILL_CUT": "eth0",
        }

    def at(self, ip):
        return next(host for host in self.hosts if host.ip == ip)

    def ask(self, *words, timeout=300, check=True):
        head = self.hosts[0]
        return head.run(["raylaunch", *words], env=self.env(head), timeout=timeout, check=check)

    def status(self):
        return json.loads(self.ask("status", NAME, "-o", "json", check=False).stdout)

    def events(self):
        told = self.ask("events", NAME, "-o", "json").stdout
        return [json.loads(line) for line in told.splitlines()]

    def join(self, host, *words):
        done = [
            "ray",
            "start",
            *words,
            f"--node-ip-address={host.ip}",
            "--num-cpus=1",
            "--disable-usage-stats",
        ]
        done += [
            "--resources",
            '{"NPU": 8}',
            "--object-store-memory=80000000",
            "--dashboard-agent-listen-port=0",
        ]
        host.run(done, env=self.env(host), timeout=JOIN_S)

    def renew_workers(self):
        """Ray anew on the workers: one that was cut off may be given up by Ray some 75 s later, or
        not at all."""
        head, *workers = self.hosts
        for worker in workers:
            if raylets := raylets_of(worker):
                worker.run(["kill", "-KILL", *map(str, raylets)])
            await_true(lambda host=worker: not raylets_of(host), JOIN_S, worker.processes)
            self.join(worker, f"--address={head.ip}:6379")
        await_true(
            lambda: self.alive() == sorted(host.ip for host in self.hosts), JOIN_S, self.alive
        )

    def alive(self):
        """The addresses of the nodes that Ray holds for alive."""
        head = self.hosts[0]
        return sorted(head.run(["python", "-c", ALIVE], env=self.env(head)).stdout.split())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    token, header = secrets.token_hex(32), b"{}      "
    with ExitStack() as stack:
        hosts = build_hosts(["h0", "h1", "h2"], tmp_path_factory.mktemp("hosts"), stack)
        cluster = Three(hosts.hosts)
        for host in cluster.hosts:
            host.put(TOKEN, token, 0o600)
            config = {
                "model_type": "minimax_m2",
                "num_attention_heads": 48,
                "num_key_value_heads": 8,
            }
            host.put(f"{MODEL}/config.json", json.dumps(config))
            host.path(f"{MODEL}/model.safetensors").write_bytes(
                len(header).to_bytes(8, "little") + header
            )
        head, *workers = cluster.hosts
        cluster.join(head, "--head", "--port=6379", "--include-dashboard=false")
        for worker in workers:
            cluster.join(worker, f"--address={head.ip}:6379")
        yield cluster


@pytest.fixture
def stopped_after(three, kept_logs):
    yield
    (kept_logs / "events").write_text(three.ask("events", NAME, check=False).stdout)
    three.ask("stop", NAME, check=False)
    for host in three.hosts:
        host.save("/tmp/ray/session_latest/logs", kept_logs / host.name)


def start(three, *sets, options=()):
    words = [
        word for assignment in (f"model.path={MODEL}", *sets) for word in ("--set", assignment)
    ]
    three.ask("start", "a2-dual", "--name", NAME, *options, *words)
    return three.status()


def own_settings(three, status):
    """What each server's environment says of its own host."""
    found = []
    for server in status["servers"]:
        lines = (
            three.at(server["ip"])
            .path(f"/proc/{server['seen']['pid']}/environ")
            .read_bytes()
            .decode()
            .split("\0")
        )
        env = dict(line.partition("=")[::2] for line in lines if line)
        found.append(
            (
                env["HCCL_IF_IP"],
                env["HCCL_SOCKET_IFNAME"],
                env["GLOO_SOCKET_IFNAME"],
                env["RAYLAUNCH_ATTEMPT"],
            )
        )
    return found


def test_a_device_fault_moves_the_server_to_the_spare_host(three, stopped_after):
    # Server 1 reports a broken NPU after it was launched, in the first attempt only. That is about
    # when the group becomes ready: a start that waits may see "ready" or "restarting".
    start(
        three,
        "env.STANDIN_FAIL=npu-hardware",
        "env.STANDIN_FAIL_SERVERS=1",
        "env.STANDIN_FAIL_ATTEMPTS=1",
        options=["--no-wait"],
    )
    await_true(
        lambda: (three.status()["phase"], three.status()["attempt"]) == ("ready", 2),
        RECOVER_S,
        three.events,
    )
    found = json.loads(three.ask("diagnose", NAME, "-o", "json").stdout)
    assert (found["id"], found["root"]) == ("npu-hardware", 1)

    status = three.status()
    used = [server["ip"] for server in status["servers"]]
    broken = found["node"]
    assert broken in {host.ip for host in three.hosts}
    assert {*used, broken} == {host.ip for host in three.hosts}, (
        "the third host takes the place of the broken one"
    )
    assert own_settings(three, status) == [(ip, "=eth0", "eth0", "2") for ip in used]
    assert not marked(three.at(broken)), "nothing is left on the host with the fault"


def marked(host):
    return [line for line in host.processes().values() if "vllm" in line.lower()]


def test_a_cut_host_is_replaced_and_the_drill_says_so(three, stopped_after):
    # Without a grace: the cut host is not left with servers of the attempt that it has lost.
    before = [server["ip"] for server in start(three, "health.orphan_grace_s=0")["servers"]]
    drilled = three.ask("drill", NAME, "--fault", "cut-node", "--yes", "-o", "json", timeout=400)
    (outcome,) = json.loads(drilled.stdout)
    print(outcome)
    assert outcome["problem"] == ""
    assert "node unreachable" in outcome["detected_by"]
    status = three.status()
    assert status["phase"] == "ready"
    after = [server["ip"] for server in status["servers"]]
    (lost,) = set(before) - set(after)
    assert lost != three.hosts[0].ip, "a drill spares Ray's head"
    assert own_settings(three, status) == [(ip, "=eth0", "eth0", "2") for ip in after]
    # The guard there ends the servers when Ray ends their agent: the host itself must notice that
    # it is cut off.
    await_true(lambda: not marked(three.at(lost)), RECOVER_S, lambda: marked(three.at(lost)))


@pytest.mark.long
def test_without_a_spare_host_a_cut_one_is_waited_for(three, stopped_after):
    three.renew_workers()
    before = [server["ip"] for server in start(three, "parallel.data=3")["servers"]]
    lost = three.hosts[1]
    lost.cut()
    try:
        await_true(lambda: waits_for(three, lost), RECOVER_S, three.events)
    finally:
        lost.heal()
    await_true(lambda: is_ready_again(three, lost), RECOVER_S, three.events)
    status = three.status()
    assert [server["ip"] for server in status["servers"]] == before
    assert own_settings(three, status) == [(ip, "=eth0", "eth0", "2") for ip in before]
    assert attempts_on(lost) == {"2"}, "nothing is left of the first attempt"


def waits_for(three, host):
    texts = [event["text"] for event in three.events() if event["kind"] == "waiting"]
    return any(f"waiting for {host.ip}: no spare node has enough NPUs" in text for text in texts)


def is_ready_again(three, host):
    """A person starts Ray again where Ray gave the node up: after 15 to 75 s, as the packets are
    lost."""
    if not raylets_of(host):
        three.join(host, f"--address={three.hosts[0].ip}:6379")
    status = three.status()
    return (status["phase"], status["attempt"]) == ("ready", 2)


def raylets_of(host):
    return [
        pid for pid, line in host.processes().items() if "raylet/raylet" in line.partition(" ")[0]
    ]


def attempts_on(host):
    """The attempts that living processes of the host belong to."""
    found = set()
    for pid in host.processes():
        with contextlib.suppress(OSError):
            found |= set(
                re.findall(
                    rb"\0RAYLAUNCH_ATTEMPT=(\d+)", host.path(f"/proc/{pid}/environ").read_bytes()
                )
            )
    return {attempt.decode() for attempt in found}
