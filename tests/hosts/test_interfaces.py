"""Hosts with several NICs, a VLAN, a bond, IPv6, docker0 and a NIC without a cable: what is seen,
chosen, refused.

The probe and the doors run on the hosts themselves; Ray is not needed to find the way.
"""

from __future__ import annotations

import base64
import pickle
import subprocess
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hosts import build_hosts, kernel_has

from raylaunch.checks.check_all import check_nodes
from raylaunch.checks.reach_checks import check_reach
from raylaunch.errors import PlanError
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.controller.group.planning import _ports_to_try

pytestmark = pytest.mark.hosts

# The first is a prefix of the two others.
FIRST, SECOND, VLAN = "enp67s0f0", "enp67s0f0np0", "enp67s0f0.100"
MODULES = {"bond": "bonding (CONFIG_BONDING)", "vlan": "8021q (CONFIG_VLAN_8021Q)"}

PROBE = """
import base64, os, pickle, sys
from raylaunch.node.probe.node_probe import probe
facts = probe(sys.argv[1], env=os.environ, npu=False, timeout_s=60)
print(base64.b64encode(pickle.dumps(facts)).decode())
"""
DOORS = """
import asyncio, base64, pickle, sys
from raylaunch.node.probe.reachability import open_listeners
async def main():
    wanted = pickle.loads(base64.b64decode(sys.argv[1]))
    opened = [await open_listeners(*one) for one in wanted]
    print(base64.b64encode(pickle.dumps([doors for _, doors in opened])).decode(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
KNOCK = """
import asyncio, base64, pickle, sys
from raylaunch.node.probe.reachability import connect_to_all
async def main():
    return await asyncio.gather(*(connect_to_all(*one) for one in pickle.loads(base64.b64decode(sys.argv[1]))))
print(base64.b64encode(pickle.dumps(asyncio.run(main()))).decode())
"""
KNOCK_S = 1.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with ExitStack() as stack:
        built = build_hosts(["h0", "h1"], tmp_path_factory.mktemp("hosts"), stack)
        for number, host in enumerate(built, 1):
            equip(host, number)
        yield built


def equip(host, number):
    """eth0, with the address that Ray knows, is there already."""
    host.add_nic("docker0", "172.17.0.1/16", kind="bridge")
    host.add_nic(FIRST, f"10.1.0.{number}/24", network="br1")
    host.add_nic(SECOND, f"10.2.0.{number}/24", f"fd77::{number}/64", network="br2")
    host.add_nic("ib0", f"fd78::{number}/64", network="br3")
    host.add_nic("eth9", f"10.9.0.{number}/24")
    host.run(["ip", "link", "set", "eth9", "down"])
    host.add_nic("wrong0", f"10.8.0.{number}/24", network=f"apart{number}")
    add_vlan(host, f"10.3.0.{number}/24")
    add_bond(host, f"10.4.0.{number}/24")


def add_vlan(host, address):
    if kernel_has("vlan"):
        host.run(["ip", "link", "add", "link", FIRST, "name", VLAN, "type", "vlan", "id", "100"])
        host.run(["ip", "link", "set", VLAN, "up"])
        host.run(["ip", "address", "add", address, "dev", VLAN])
    else:
        host.add_nic(VLAN, address, network="br100")
        host.disguise(VLAN, "DEVTYPE=vlan")


def add_bond(host, address):
    if kernel_has("bond"):
        host.add_nic("bond0", address, kind="bond")
        host.add_nic("leg0", network="br4")
        host.run(["ip", "link", "set", "leg0", "down"])
        host.run(["ip", "link", "set", "leg0", "master", "bond0"])
        host.run(["ip", "link", "set", "leg0", "up"])
    else:
        host.add_nic("bond0", address, network="br4")
        host.disguise("bond0", "DEVTYPE=bond", "bonding")


@pytest.fixture(scope="module")
def facts(hosts):
    return [look(host) for host in hosts]


def look(host, address=""):
    """What an agent on the host would see; its id is what Ray adds."""
    seen = unpack(host.run(["python", "-c", PROBE, address or host.ip], timeout=120).stdout)
    return replace(seen, node_id=host.name)


def plan(facts, wanted):
    return build_plan(read("a2-dual", [f"network.interface={wanted}"]), facts)


def judge(facts, wanted):
    loaded = read("a2-dual", [f"network.interface={wanted}"])
    found = check_nodes(loaded, facts, plan(facts, wanted))
    about = ("interface", "address", "families", "loopback")
    return [one for one in found if any(word in one.id for word in about)]


def try_ways(hosts, *plans):
    """Both ways between two hosts, as the agents try them: what was found for each of the plans."""
    with ExitStack() as stack:
        opened = [
            open_doors(host, [made.servers[at] for made in plans], stack)
            for at, host in enumerate(hosts)
        ]
        doors = [[*here, *there] for here, there in zip(*opened, strict=True)]
        missed = [
            knock(host, [made.servers[at] for made in plans], doors)
            for at, host in enumerate(hosts)
        ]
    nics = {server.node.ip: server.node.interface for made in plans for server in made.servers}
    return [list(check_reach([*here, *there], nics)) for here, there in zip(*missed, strict=True)]


def open_doors(host, servers, stack):
    wanted = pack([(server.node.ip, _ports_to_try(server.ports)) for server in servers])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = stack.enter_context(host.popen(["python", "-c", DOORS, wanted], **pipes))
    stack.callback(process.stdin.close)
    return unpack(process.stdout.readline())


def knock(host, servers, doors):
    wanted = pack(
        [(server.node.ip, some, KNOCK_S) for server, some in zip(servers, doors, strict=True)]
    )
    return unpack(host.run(["python", "-c", KNOCK, wanted]).stdout)


def pack(value):
    return base64.b64encode(pickle.dumps(value)).decode()


def unpack(text):
    return pickle.loads(base64.b64decode(text))


def test_the_probe_sees_every_interface_as_it_is(hosts, facts):
    for number, (host, seen) in enumerate(zip(hosts, facts, strict=True), 1):
        nics = {nic.name: nic for nic in seen.interfaces if nic.name != "leg0"}
        lasting = {
            name: [a for a in nic.addresses if not a.startswith("fe80")]
            for name, nic in nics.items()
        }
        assert {name: nic.kind for name, nic in nics.items()} == {
            "lo": "loopback",
            "docker0": "bridge",
            "eth0": "veth",
            FIRST: "veth",
            SECOND: "veth",
            "ib0": "veth",
            "eth9": "veth",
            "wrong0": "veth",
            VLAN: "vlan",
            "bond0": "bond",
        }
        assert lasting == {
            "lo": ["127.0.0.1/8", "::1/128"],
            "docker0": ["172.17.0.1/16"],
            "eth0": [f"{host.ip}/24"],
            FIRST: [f"10.1.0.{number}/24"],
            SECOND: [f"10.2.0.{number}/24", f"fd77::{number}/64"],
            "ib0": [f"fd78::{number}/64"],
            "eth9": [f"10.9.0.{number}/24"],
            "wrong0": [f"10.8.0.{number}/24"],
            VLAN: [f"10.3.0.{number}/24"],
            "bond0": [f"10.4.0.{number}/24"],
        }
        assert {name for name, nic in nics.items() if not nic.up} == {"eth9"}


@pytest.mark.parametrize("kind", sorted(MODULES))
def test_the_kernels_own_kind_is_seen(hosts, kind):
    """On a kernel without it the other tests use a veth that /sys describes as one."""
    if not kernel_has(kind):
        pytest.skip(f"this kernel has no {MODULES[kind]}")
    name = {"bond": "bond0", "vlan": VLAN}[kind]
    assert f"{kind} " in hosts[0].run(["ip", "-d", "link", "show", name]).stdout


JOINED = [
    ("auto", "eth0", ["10.77.0.10", "10.77.0.11"]),
    (FIRST, FIRST, ["10.1.0.1", "10.1.0.2"]),
    (SECOND, SECOND, ["10.2.0.1", "10.2.0.2"]),
    (VLAN, VLAN, ["10.3.0.1", "10.3.0.2"]),
    ("bond0", "bond0", ["10.4.0.1", "10.4.0.2"]),
    ("10.3.0.0/24", VLAN, ["10.3.0.1", "10.3.0.2"]),
    ("10.2.0.0/16", SECOND, ["10.2.0.1", "10.2.0.2"]),
    ("fd78::/16", "ib0", ["fd78::1", "fd78::2"]),
    ("ib0", "ib0", ["fd78::1", "fd78::2"]),
]


@pytest.mark.parametrize(("wanted", "name", "addresses"), JOINED)
def test_a_network_is_found_by_name_address_or_range(facts, wanted, name, addresses):
    servers = plan(facts, wanted).servers
    assert [server.node.ip for server in servers] == addresses
    for server in servers:
        assert server.node.interface == server.environ["GLOO_SOCKET_IFNAME"] == name
        assert server.environ["HCCL_SOCKET_IFNAME"] == f"={name}"
    assert judge(facts, wanted) == []


def test_ipv6_beside_ipv4_is_found_too_and_gloos_choice_is_told(facts):
    servers = plan(facts, "fd77::/64").servers
    assert [server.node.ip for server in servers] == ["fd77::1", "fd77::2"]
    assert {server.environ["HCCL_SOCKET_FAMILY"] for server in servers} == {"AF_INET6"}
    assert [one.id for one in judge(facts, "fd77::/64")] == ["gloo-address"] * 2


def test_both_ways_are_open_on_every_network_that_joins_the_hosts(hosts, facts):
    wanted = ["auto", FIRST, SECOND, VLAN, "bond0", "ib0", "fd77::/64"]
    assert dict(
        zip(wanted, try_ways(hosts, *(plan(facts, one) for one in wanted)), strict=True)
    ) == {one: [] for one in wanted}


def test_hosts_that_ray_knows_by_ipv6(hosts):
    made = plan([look(host, f"fd78:0:0::{number}") for number, host in enumerate(hosts, 1)], "auto")
    assert made.endpoint == "http://[fd78::1]:20004/v1"
    assert [(server.node.interface, server.node.ip) for server in made.servers] == [
        ("ib0", "fd78::1"),
        ("ib0", "fd78::2"),
    ]


def test_docker0_is_refused_because_it_has_one_address_everywhere(facts):
    found = {one.id: one for one in judge(facts, "docker0")}
    assert "172.17.0.1" in found["same-address"].what
    assert found["same-address"].level == "error"


def test_a_nic_that_is_down_is_refused(facts):
    found = judge(facts, "eth9")
    assert [(one.id, one.level) for one in found] == [("interface-down", "error")] * 2
    assert "eth9 on node 10.77.0.10 (h0)" in found[0].what


def test_a_nic_without_a_cable_is_refused(hosts):
    host = hosts[1]
    host.unplug()
    try:
        seen = look(host)
    finally:
        host.heal()
    assert "interface-down" in {one.id for one in judge([look(hosts[0]), seen], "auto")}


def test_loopback_is_refused(facts):
    assert "loopback-interface" in {one.id for one in judge(facts, "lo")}


def test_a_name_that_one_host_lacks_is_refused_with_what_it_has(hosts, facts):
    hosts[0].add_nic("only0", "10.6.0.1/24")
    with pytest.raises(PlanError) as refused:
        plan([look(hosts[0]), facts[1]], "only0")
    assert "node 10.77.0.11 has no interface that fits network.interface=only0" in str(
        refused.value
    )
    assert f"{VLAN}: 10.3.0.2/24" in str(refused.value)


def test_two_networks_of_one_name_that_are_not_joined_are_refused_both_ways(hosts, facts):
    assert judge(facts, "wrong0") == [], (
        "nothing on either host alone tells that the cable is in the wrong switch"
    )
    (found,) = try_ways(hosts, plan(facts, "wrong0"))
    assert [(one.id, one.level, one.where) for one in found] == [
        ("unreachable", "error", "10.8.0.1"),
        ("unreachable", "error", "10.8.0.2"),
    ]
    assert (
        "10.8.0.1 → 10.8.0.2 (wrong0 → wrong0): no TCP connection to port 20004 (http), 2347 (rpc)"
        in found[0].what
    )
    assert "network.interface" in found[0].todo


def test_the_way_is_tried_from_the_address_of_the_nic(hosts, facts):
    """The kernel would let h0 out by eth0, and then nothing were noticed; but the servers would
    call from `mixed0`."""
    first, second = hosts
    first.add_nic("mixed0", "172.31.0.1/24", kind="bridge")
    second.add_nic("mixed0", "10.77.0.51/24")
    assert first.run(["ping", "-c1", "-W1", "10.77.0.51"]).returncode == 0
    made = plan([look(host) for host in hosts], "mixed0")
    assert [server.node.ip for server in made.servers] == ["172.31.0.1", "10.77.0.51"]
    (found,) = try_ways(hosts, made)
    assert "172.31.0.1" in {one.where for one in found}
