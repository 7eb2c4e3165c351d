"""What a launch prepares on its node, and the evidence that a snapshot finds there."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.agent import snapshot
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.agent.server_launch import api_url, build_spec, is_first_on_its_node
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry


def plan_on(*addresses: str, host: str = "node"):
    loaded = read("local-dual", (f"network.host={host}",))
    nodes = [Facts(ip, interface="lo", state_dir="/home/raylaunch") for ip in addresses]
    return build_plan(loaded, nodes, deployment="test")


def test_the_environment_is_the_plans_with_the_folder_of_vllm_first_in_path(tmp_path):
    server = plan_on("192.0.2.10", "192.0.2.11").servers[1]
    spec = build_spec(
        GroupKey("test", "serve-0"),
        server,
        3,
        instance="a1b2c3d4e5f60718",
        vllm="/opt/vllm/bin/vllm",
        secrets=SecretKeeper({"VLLM_API_KEY": "s3cret"}),
        log=tmp_path / "server-1.log",
        cwd=tmp_path,
        environ={"PATH": "/usr/bin", "HTTP_PROXY": "http://proxy", "RAY_ADDRESS": "x"},
    )
    assert spec.env["PATH"] == f"/opt/vllm/bin{os.pathsep}/usr/bin"
    assert spec.env["VLLM_API_KEY"] == "s3cret"
    assert spec.env["VLLM_HOST_IP"] == "192.0.2.11"
    assert not {"HTTP_PROXY", "RAY_ADDRESS"} & set(spec.env)
    marker = {name: value for name, value in spec.env.items() if name.startswith("RAYLAUNCH_")}
    assert {"test", "3", "1"} <= set(marker.values())
    assert (spec.argv, spec.log) == (server.argv, str(tmp_path / "server-1.log"))
    assert "s3cret" not in repr(spec)


def test_one_server_per_node_reads_ahead():
    same = plan_on("192.0.2.10", "192.0.2.10")
    assert [is_first_on_its_node(same, server) for server in same.servers] == [True, False]
    apart = plan_on("192.0.2.10", "192.0.2.11")
    assert [is_first_on_its_node(apart, server) for server in apart.servers] == [True, True]


@pytest.mark.parametrize(
    ("ip", "host", "url"),
    [
        ("192.0.2.10", "node", "http://192.0.2.10:20004"),
        ("192.0.2.10", "0.0.0.0", "http://192.0.2.10:20004"),
        ("192.0.2.10", "127.0.0.1", "http://127.0.0.1:20004"),
    ],
    ids=["the node's address", "every address", "loopback"],
)
def test_the_api_is_probed_where_it_listens(ip, host, url):
    [primary, _] = plan_on(ip, ip, host=host).servers
    assert api_url(primary) == url


def test_an_ipv6_address_is_written_in_brackets():
    [primary, _] = plan_on("192.0.2.10", "192.0.2.10", host="0.0.0.0").servers
    place = replace(primary.node, ip="2001:db8::1")
    assert api_url(replace(primary, node=place)) == "http://[2001:db8::1]:20004"


def test_a_snapshot_has_the_newest_log_of_the_runtime_of_ascend(tmp_path, monkeypatch):
    folder = tmp_path / "debug" / "plog"
    folder.mkdir(parents=True)
    for age, name in enumerate(("new.log", "old.log")):
        (folder / name).write_text(f"{name}\n")
        os.utime(folder / name, (1000 - age, 1000 - age))
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    log = tmp_path / "server-0.log"
    log.write_text("one\ntwo\n")
    found = snapshot.read_snapshot("test-no-such-deployment", "a1b2", log, 1)
    assert (found.plog, found.plog_path) == (("new.log",), str(folder / "new.log"))
    assert (found.log_lines, found.log, found.processes) == (("two",), str(log), "")


def test_a_snapshot_has_what_the_nodes_own_cann_says_about_the_codes_in_the_log(
    tmp_path, monkeypatch
):
    place = tmp_path / "runtime" / "conf" / "error_manager" / "error_code.json"
    place.parent.mkdir(parents=True)
    entry = {"ErrCode": "EJ0042", "suggestion": {"Possible Cause": "n/a", "Solution": "Reset it."}}
    other = {"ErrCode": "EJ0043", "suggestion": {"Solution": "Not asked for."}}
    place.write_text(json.dumps({"error_info_list": [entry, other, "odd", {}]}))
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    log = tmp_path / "server-0.log"
    log.write_text("EJ0042: [PID: 7] it failed\n")
    found = snapshot.read_snapshot("test-no-such-deployment", "a1b2", log, 9)
    assert found.cann_codes == {"EJ0042": CannEntry("", "Reset it")}
    place.write_text("[" * 100_000)
    assert snapshot.read_snapshot("test-no-such-deployment", "a1b2", log, 9).cann_codes == {}


def test_a_snapshot_before_the_first_launch_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path))
    found = snapshot.read_snapshot("test-no-such-deployment", "a1b2", None, 100)
    assert (found.log_lines, found.log, found.plog, found.plog_path) == ((), "", (), "")
