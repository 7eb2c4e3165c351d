"""Two hosts that have only IPv6 addresses: Ray, raylaunch and the stand-in, from `check` to `stop`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import pytest
from hosts import ROOT, build_hosts

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

NET = "fd78"
MODEL = "/root/model"
ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAYLAUNCH_VLLM": str(ROOT / "tests" / "standin" / "bin" / "vllm"),
    "STANDIN_PYTHON": sys.executable,
}
RAY = (
    "--num-cpus=1",
    "--object-store-memory=80000000",
    "--disable-usage-stats",
    '--resources={"NPU": 8}',
)
CHAT = """
import httpx, sys
body = {"model": "minimax25", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
print(httpx.post(sys.argv[1] + "/chat/completions", json=body, timeout=60, trust_env=False).status_code)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with ExitStack() as stack:
        built = build_hosts(["h0", "h1"], tmp_path_factory.mktemp("hosts"), stack)
        names = "".join(f"{NET}::{number} {host.name}\n" for number, host in enumerate(built, 1))
        for number, host in enumerate(built, 1):
            host.add_nic("ib0", f"{NET}::{number}/64", network="br6")
            host.run(["ip", "address", "flush", "dev", "eth0"])
            host.put("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{names}")
            config = {
                "model_type": "minimax_m2",
                "num_attention_heads": 48,
                "num_key_value_heads": 8,
            }
            host.put(f"{MODEL}/config.json", json.dumps(config))
            host.put(f"{MODEL}/model.safetensors", "\x02" + "\x00" * 7 + "{}")
        head = ("--head", "--port=6379", f"--node-ip-address={NET}::1", "--include-dashboard=false")
        built[0].run(["ray", "start", *head, *RAY], env=ENV, timeout=120)
        worker = (f"--address=[{NET}::1]:6379", f"--node-ip-address={NET}::2")
        built[1].run(["ray", "start", *worker, *RAY], env=ENV, timeout=120)
        yield built


def ask(hosts, *words, check=True):
    return hosts[0].run(["raylaunch", *words], env=ENV, timeout=240, check=check)


def test_from_check_to_stop_on_ipv6_alone(hosts):
    sets = ("--set", f"model.path={MODEL}")
    looked = json.loads(ask(hosts, "check", "a2-dual", *sets, "-o", "json").stdout)
    assert not [one for one in looked["findings"] if one["level"] == "error"], looked

    ask(hosts, "start", "a2-dual", *sets)
    status = json.loads(ask(hosts, "status", "a2-dual", "-o", "json").stdout)
    assert status["endpoint"] == f"http://[{NET}::1]:8000/v1"
    assert status["groups"][0]["endpoint"] == f"http://[{NET}::1]:20004/v1"
    assert [(one["ip"], one["interface"]) for one in status["servers"]] == [
        (f"{NET}::1", "ib0"),
        (f"{NET}::2", "ib0"),
    ]
    assert (
        hosts[1].run(["python", "-c", CHAT, status["endpoint"]], timeout=120).stdout.strip()
        == "200"
    )
    assert json.loads(ask(hosts, "stop", "a2-dual", "-o", "json").stdout)["left"] == []


def test_an_api_on_ipv4_alone_is_refused(hosts):
    sets = ("--set", f"model.path={MODEL}", "--set", "network.host=0.0.0.0")
    refused = ask(hosts, "check", "a2-dual", *sets, "-o", "json", check=False)
    assert refused.returncode == 4
    errors = [
        one["id"] for one in json.loads(refused.stdout)["findings"] if one["level"] == "error"
    ]
    assert errors == ["api-host"]
