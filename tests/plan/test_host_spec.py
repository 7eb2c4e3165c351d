"""Hosts as users type them: what is parsed, and what is refused with the reason and the way."""

import pytest

from raylaunch import api
from raylaunch.errors import PlanError
from raylaunch.plan.host_spec import example_hosts, parse_host, parse_hosts


@pytest.mark.parametrize(
    ("text", "ip", "interface"),
    [
        ("192.0.2.10%enp67s0f0np0", "192.0.2.10", "enp67s0f0np0"),
        ("192.0.2.10", "192.0.2.10", None),
        ("2001:DB8::0010%bond0.12", "2001:db8::10", "bond0.12"),
        ("127.0.0.1%lo", "127.0.0.1", "lo"),
        ("192.0.2.10%fifteen_bytes_0", "192.0.2.10", "fifteen_bytes_0"),
    ],
)
def test_an_address_with_or_without_interface_is_parsed(text, ip, interface):
    host = parse_host(text)
    assert (host.ip, host.interface) == (ip, interface)


@pytest.mark.parametrize(
    ("text", "why", "todo"),
    [
        ("300.1.1.1%eth0", "300", "four numbers"),
        ("node1%eth0", "host name", "`getent hosts node1`"),
        ("node1.example.com", "host name", "`getent hosts node1.example.com`"),
        ("[::1]%eth0", "brackets", "without brackets"),
        ("[2001:db8::1]:8000%eth0", "brackets", "without brackets"),
        ("192.0.2.010%e", "leading zero", "without leading zeros"),
        ("192.0.2.10 ", "blanks", "remove the blanks"),
        (" 192.0.2.10%eth0", "blanks", "remove the blanks"),
        ("192.0.2.10:8000%eth0", "port", "leave out the port"),
        ("node1:8000", "port", "leave out the port"),
        ("\uff11\uff19\uff12.0.2.10%eth0", "full-width", "--host ADDRESS%INTERFACE"),
        ("", "missing", "--host ADDRESS%INTERFACE"),
        ("%eth0", "missing", "--host ADDRESS%INTERFACE"),
        ("192.0.2.10%", "interface after % is missing", "ip -br link"),
        ("192.0.2.10%sixteen_bytes_00", "15 bytes", "ip -br link"),
        ("192.0.2.10%äöüäöüäö", "15 bytes", "ip -br link"),
        ("192.0.2.10%a/b", "'/'", "ip -br link"),
        ("192.0.2.10%eth0%x", "'%'", "ip -br link"),
        ("192.0.2.10%eth0,eth1", "','", "ip -br link"),
        ("192.0.2.10%eth0 ", "blanks", "ip -br link"),
        ("192.0.2.10%..", "'..'", "ip -br link"),
        ("0.0.0.0%eth0", "one host", ""),
        ("224.0.0.1%eth0", "one host", ""),
        ("::%eth0", "one host", ""),
        ("fe80::1%eth0", "link-local", "global"),
        ("\x1b]52;c;x\x07", "", ""),
        ("1" * 100_000, "", ""),
    ],
)
def test_a_malformed_host_is_refused_with_reason_and_way(text, why, todo):
    with pytest.raises(PlanError) as refused:
        parse_host(text)
    error = refused.value
    assert error.what.startswith("--host '")
    assert len(str(error)) < 500
    assert str(error).replace("\n", "").isprintable()
    assert error.why
    assert why in error.why
    assert error.todo
    assert todo in error.todo


def test_a_host_given_twice_in_any_spelling_is_refused_unless_servers_share_hosts():
    twice = ["2001:db8::1%eth0", "2001:DB8:0::1%eth1"]
    with pytest.raises(PlanError, match="host 2001:db8::1 is given twice"):
        parse_hosts(twice, shared=False)
    assert len(parse_hosts(twice, shared=True)) == 2


def test_there_are_245_example_hosts_and_no_more():
    assert [host.ip for host in example_hosts(245, "eth0")][::244] == ["192.0.2.10", "192.0.2.254"]
    with pytest.raises(PlanError, match="246 servers need their hosts to be given"):
        example_hosts(246, "eth0")


def test_planning_refuses_malformed_and_missing_hosts():
    with pytest.raises(PlanError, match=r"300\.1\.1\.1"):
        api.make_plan("a2-dual", hosts=["300.1.1.1%eth0", "192.0.2.11%eth0"])
    with pytest.raises(PlanError, match="given twice"):
        api.make_plan("a2-dual", hosts=["192.0.2.11%eth0", "192.0.2.11%eth0"])
    with pytest.raises(PlanError, match="246 servers"):
        api.make_plan("a2-dual", sets=["parallel.data=246"])


def test_the_primary_is_found_in_any_spelling():
    hosts = ["2001:db8::1%eth0", "2001:db8::2%eth0"]
    _, plan, _ = api.make_plan("a2-dual", hosts=hosts, primary="2001:DB8::0002")
    assert plan.primary.node.ip == "2001:db8::2"
