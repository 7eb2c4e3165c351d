"""Interfaces and addresses: what is chosen among several, and what is refused before anything is tried."""

from __future__ import annotations

import pytest

from raylaunch.checks.check_all import check_nodes
from raylaunch.errors import PlanError
from raylaunch.plan.facts import Facts, Interface
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

KEY = "secrets=[VLLM_API_KEY]"
"""With an API key the healthy hosts below give no finding at all."""

LO = Interface("lo", ("127.0.0.1/8", "::1/128"), kind="loopback")
DOCKER = Interface("docker0", ("172.17.0.1/16",), kind="bridge")
# Each of these names is a prefix of the next.
NAMES = ("enp67s0f0", "enp67s0f0np0", "enp67s0f0np0.10")


def host(n, *nics):
    return Facts(f"192.0.2.{n}", node_id=f"id{n}", interfaces=(DOCKER, LO, *nics))


def nic(name, *addresses, **parts):
    return Interface(name, addresses, **parts)


def several(n):
    """The address that Ray knows is on the middle one."""
    return host(
        n,
        nic(NAMES[0], f"10.1.0.{n}/24", f"fe80::{n}/64"),
        nic(NAMES[1], f"192.0.2.{n}/24", f"2001:db8::{n}/64", f"fe80::1:{n}/64"),
        nic(NAMES[2], f"10.3.0.{n}/24", kind="vlan"),
        nic("bond0", f"10.4.0.{n}/24", kind="bond"),
        nic("eth9", f"10.9.0.{n}/24", up=False),
    )


def planned(wanted, *hosts):
    return build_plan(
        read("a2-dual", [KEY, f"network.interface={wanted}"]), hosts or (several(10), several(11))
    )


def found(wanted, *hosts):
    hosts = hosts or (several(10), several(11))
    loaded = read("a2-dual", [KEY, f"network.interface={wanted}"])
    return list(check_nodes(loaded, hosts, build_plan(loaded, hosts)))


@pytest.mark.parametrize(
    ("wanted", "name", "address"),
    [
        ("auto", NAMES[1], "192.0.2.10"),
        (NAMES[0], NAMES[0], "10.1.0.10"),
        (NAMES[1], NAMES[1], "192.0.2.10"),
        (NAMES[2], NAMES[2], "10.3.0.10"),
        ("bond0", "bond0", "10.4.0.10"),
        ("10.3.0.0/16", NAMES[2], "10.3.0.10"),
        ("10.0.0.0/8", NAMES[0], "10.1.0.10"),
        ("0.0.0.0/0", NAMES[1], "192.0.2.10"),
        ("2001:db8::/32", NAMES[1], "2001:db8::10"),
    ],
)
def test_each_library_gets_the_name_in_its_own_syntax(wanted, name, address):
    """HCCL takes a bare name as a prefix: enp67s0f0 would be all three. Gloo and TensorPipe would take `=` as part."""
    first = planned(wanted).primary
    assert (first.node.interface, first.node.ip) == (name, address)
    assert first.environ["HCCL_SOCKET_IFNAME"] == f"={name}"
    assert first.environ["GLOO_SOCKET_IFNAME"] == name
    assert first.environ["TP_SOCKET_IFNAME"] == name
    assert first.environ["HCCL_IF_IP"] == first.environ["VLLM_HOST_IP"] == address
    assert first.flag("--host") == first.flag("--data-parallel-address") == address


def test_each_node_has_its_own_name_for_the_network():
    nodes = host(10, nic("eth0", "192.0.2.10/24")), host(11, nic("bond1", "192.0.2.11/24"))
    for wanted in ("auto", "192.0.2.0/24"):
        names = [server.environ["GLOO_SOCKET_IFNAME"] for server in planned(wanted, *nodes).servers]
        assert names == ["eth0", "bond1"]


@pytest.mark.parametrize("wanted", ["fe80::/10", "eth7"])
def test_a_link_local_address_is_no_address_for_a_server(wanted):
    nodes = [
        host(n, nic("eth0", f"192.0.2.{n}/24"), nic("eth7", f"fe80::{n}/64")) for n in (10, 11)
    ]
    with pytest.raises(PlanError, match=wanted):
        planned(wanted, *nodes)


def test_an_interface_that_is_up_is_taken_before_one_that_is_down():
    nodes = [
        host(n, nic("a0", f"10.1.0.{n}/24", up=False), nic("b0", f"10.2.0.{n}/24"))
        for n in (10, 11)
    ]
    assert planned("10.0.0.0/8", *nodes).primary.node.interface == "b0"


def test_what_is_well_is_not_mentioned():
    for wanted in ("auto", NAMES[2], "10.4.0.0/24"):
        assert found(wanted) == []


def test_the_same_address_on_two_hosts_is_refused():
    (one,) = found("docker0")
    assert (one.id, one.level) == ("same-address", "error")
    assert "172.17.0.1: 192.0.2.10 docker0, 192.0.2.11 docker0" in one.what
    assert "network.interface=auto" in one.todo


def test_two_ray_nodes_on_one_machine_may_have_the_same_address():
    nodes = [
        Facts("192.0.2.10", node_id=one, interfaces=(nic("eth0", "192.0.2.10/24"),)) for one in "ab"
    ]
    assert found("auto", *nodes) == []


def test_an_interface_that_is_down_is_refused():
    down = found("eth9")
    assert [(one.id, one.level, one.where) for one in down] == [
        ("interface-down", "error", "192.0.2.10"),
        ("interface-down", "error", "192.0.2.11"),
    ]
    assert "ip link set eth9 up" in down[0].todo


def test_one_host_with_ipv4_and_one_with_ipv6_is_refused():
    nodes = host(10, nic("eth1", "10.1.0.10/24")), host(11, nic("eth1", "2001:db8::11/64"))
    (one,) = found("eth1", *nodes)
    assert (one.id, one.level) == ("mixed-families", "error")
    assert one.seen == "10.1.0.10, 2001:db8::11"


def test_an_address_that_gloo_would_not_take_is_told():
    """Gloo knows only the name: on an interface with two addresses it takes the first, and IPv4 before IPv6."""
    nodes = [
        host(n, nic("eth0", f"192.0.2.{n}/24", f"10.5.0.{n}/24", f"2001:db8::{n}/64"))
        for n in (10, 11)
    ]
    assert found("auto", *nodes) == []
    for wanted in ("10.5.0.0/24", "2001:db8::/64"):
        told = found(wanted, *nodes)
        assert [(one.id, one.level) for one in told] == [("gloo-address", "warning")] * 2
        assert "Gloo will use 192.0.2.10 of eth0" in told[0].what


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("10.9.9.9", "10.9.9.9 (network.host), which its node 192.0.2.10 does not have"),
        ("2001:db8::99", "2001:db8::99"),
    ],
)
def test_an_api_at_an_address_that_its_node_does_not_have_is_refused(host, named):
    loaded = read("a2-dual", [KEY, f"network.host='{host}'"])
    hosts = several(10), several(11)
    (one,) = check_nodes(loaded, hosts, build_plan(loaded, hosts))
    assert (one.id, one.level, one.where) == ("api-host", "error", "--set")
    assert named in one.what
    assert "network.host=node" in one.todo


@pytest.mark.parametrize(
    "host", ["node", "0.0.0.0", "::", "127.0.0.1", "192.0.2.10", "10.1.0.10", "2001:db8::10"]
)
def test_an_api_at_an_address_of_its_node_is_well(host):
    loaded = read("a2-dual", [KEY, f"network.host='{host}'"])
    hosts = several(10), several(11)
    assert not list(check_nodes(loaded, hosts, build_plan(loaded, hosts)))


def test_an_api_on_ipv4_alone_is_refused_on_a_node_with_ipv6_alone():
    loaded = read("a2-dual", [KEY, "network.host=0.0.0.0"])
    (one,) = check_nodes(loaded, (ipv6(10), ipv6(11)), build_plan(loaded, (ipv6(10), ipv6(11))))
    assert one.id == "api-host"
    assert "IPv4 alone" in one.what


def test_mooncake_over_ipv6_is_warned_of():
    loaded = read("a2-dual", [KEY, "args.kv-transfer-config={kv_connector: MooncakeConnectorV1}"])
    hosts = ipv6(10), ipv6(11)
    (one,) = check_nodes(loaded, hosts, build_plan(loaded, hosts))
    assert (one.id, one.level) == ("ipv6-mooncake", "warning")
    hosts = several(10), several(11)
    assert not list(check_nodes(loaded, hosts, build_plan(loaded, hosts)))


def ipv6(n):
    nics = (LO, DOCKER, nic("eth0", f"2001:db8::{n}/64", f"fe80::{n}/64"))
    return Facts(f"2001:db8:0:0::{n}", node_id=f"id{n}", interfaces=nics)


def test_hosts_with_ipv6_alone_get_a_whole_plan():
    """Ray's spelling of the address need not be the kernel's.

    vLLM puts --data-parallel-address into brackets itself (vllm#18991), and so it is given bare; HCCL reads the family
    of its own sockets from HCCL_SOCKET_FAMILY, by default IPv4 (CANN documentation of that variable).
    """
    nodes = ipv6(10), ipv6(11)
    made = planned("auto", *nodes)
    assert made.endpoint == "http://[2001:db8::10]:20004/v1"
    for server, own in zip(made.servers, ("2001:db8::10", "2001:db8::11"), strict=True):
        assert server.flag("--host") == own
        assert server.flag("--data-parallel-address") == "2001:db8::10"
        assert server.environ["HCCL_IF_IP"] == server.environ["VLLM_HOST_IP"] == own
        assert server.environ["HCCL_SOCKET_FAMILY"] == "AF_INET6"
        assert server.environ["HCCL_SOCKET_IFNAME"] == "=eth0"
        assert server.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    assert found("auto", *nodes) == []
