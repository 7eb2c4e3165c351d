"""Which NPUs ping which, and what it means when they do not reach each other."""

from collections import Counter
from dataclasses import replace

from npu_hosts import cabled_back_to_back, chosen, host, judge, ports

LOST = (False, "recv time out")
GOOD = (True, "")


def test_two_hosts_ask_each_other_with_one_ping_per_npu():
    pings = chosen([host(10), host(11)])
    assert sorted(pings) == [0, 1]
    assert [(ping.npu, ping.target_npu) for ping in pings[0]] == [(i, i) for i in range(8)]
    assert [(ping.npu, ping.target_npu) for ping in pings[1]] == [
        (i, (i + 1) % 8) for i in range(8)
    ]
    first = pings[0][3]
    assert (first.source, first.address) == ("192.0.2.10", "10.20.0.3")
    assert (first.target, first.target_address) == ("192.0.2.11", "10.20.1.3")


def test_many_hosts_ask_around_a_ring_with_two_pings_per_npu():
    hosts = [host(n) for n in range(10, 74)]
    pings = chosen(hosts)
    assert set(pings) == set(range(64))
    counts = Counter((ping.source, ping.npu) for some in pings.values() for ping in some)
    assert set(counts.values()) == {2}
    straight = {
        (ping.source, ping.target) for some in pings.values() for ping in some if ping.straight
    }
    assert straight == {(a.ip, b.ip) for a, b in zip(hosts, [*hosts[1:], hosts[0]], strict=True)}


def test_counterparts_have_the_same_place_and_not_the_same_number():
    """Ray may have granted NPUs 0-3 here and 4-7 there."""
    half = ["parallel.tensor=4", "hardware.npus_per_server=4"]
    hosts = [replace(host(10), devices=(0, 1, 2, 3)), replace(host(11), devices=(4, 5, 6, 7))]
    assert [(ping.npu, ping.target_npu) for ping in chosen(hosts, half)[0]] == [
        (0, 4),
        (1, 5),
        (2, 6),
        (3, 7),
    ]


def test_ports_that_cannot_answer_are_not_asked():
    """Other findings name them."""
    pings = chosen([host(10, ports(2, ip=None)), host(11)])
    assert [ping.npu for ping in pings[0]] == [0, 1, 3, 4, 5, 6, 7]
    assert 2 not in {ping.target_npu for ping in pings[1]}
    assert chosen([host(10, ports(2, link="DOWN")), host(11)])[0] == pings[0]
    assert chosen([host(10, ()), host(11)]) == {}


def test_hosts_on_one_address_have_no_ways_to_try():
    assert chosen([host(10), host(10)]) == {}


def test_npus_that_reach_each_other_are_not_mentioned():
    assert judge([host(10), host(11)], lambda _: GOOD) == []
    assert judge(cabled_back_to_back(10, 11), lambda _: GOOD) == [], "a switch that sends no LLDP"


def test_an_npu_that_is_not_reached_is_refused_with_hosts_ids_and_addresses():
    (found,) = judge(
        [host(10), host(11)], lambda ping: LOST if ping.straight and ping.npu == 3 else GOOD
    )
    assert (found.id, found.level, found.where) == ("npu-unreachable", "error", "192.0.2.10")
    assert "192.0.2.10 (node10) → 192.0.2.11 (node11)" in found.what
    assert "NPU 3 (10.20.0.3) → NPU 3 (10.20.1.3)" in found.what
    assert found.what.count("NPU ") == 2
    assert found.seen == "recv time out"
    assert "hccn_tool -i 3 -ping -g address 10.20.1.3" in found.todo
    assert "VLAN" in found.todo


def test_a_cut_between_all_npus_is_one_finding_per_pair_of_hosts():
    (found,) = judge([host(10), host(11)], lambda _: LOST)
    assert "and 8 more" in found.what
    assert "192.0.2.11 (node11) → 192.0.2.10 (node10)" in found.what
    assert len(judge([host(10), host(11), host(12)], lambda _: LOST)) == 3


def test_on_a3_it_is_a_warning():
    """The machines of one super-pod have HCCS as well."""
    a3 = ["hardware.platform=ascend-a3", "hardware.npus_per_node=8"]
    (found,) = judge([host(10), host(11)], lambda _: LOST, a3)
    assert (found.id, found.level) == ("npu-unreachable", "warning")


def test_matching_cables_back_to_back_are_told_as_such():
    hosts = cabled_back_to_back(10, 11)
    (found,) = judge(hosts, lambda ping: GOOD if ping.straight else LOST)
    assert (found.id, found.level) == ("npu-back-to-back", "info")
    assert "192.0.2.10 (node10) and 192.0.2.11 (node11)" in found.what


def test_crossed_cables_back_to_back_are_refused_with_what_must_meet_what():
    hosts = cabled_back_to_back(10, 11)
    (found,) = judge(hosts, lambda ping: GOOD if ping.straight and ping.npu < 6 else LOST)
    assert (found.id, found.level) == ("npu-unreachable", "error")
    assert "NPU 6 (10.20.0.6) → NPU 6 (10.20.1.6)" in found.what
    assert "each NPU must be connected to the one with its own number" in found.todo


def test_a_switch_that_joins_counterparts_only_is_refused():
    (found,) = judge([host(10), host(11)], lambda ping: GOOD if ping.straight else LOST)
    assert (found.id, found.level, found.where) == ("npu-unreachable", "error", "192.0.2.11")


def test_three_hosts_cannot_be_cabled_back_to_back():
    found = judge(cabled_back_to_back(10, 11, 12), lambda ping: GOOD if ping.straight else LOST)
    assert {each.id for each in found} == {"npu-unreachable"}


def test_a_ping_without_a_result_is_no_verdict():
    (found,) = judge(
        [host(10), host(11)], lambda ping: (None, "no answer in 8 s") if ping.npu == 5 else GOOD
    )
    assert (found.id, found.level) == ("npu-not-pinged", "warning")
    assert "2 pings" in found.what
    assert "(NPU 5)" in found.what
    assert found.seen == "no answer in 8 s"


def test_a_port_that_sees_no_switch_while_others_do_is_named():
    (found,) = judge([host(10, ports(4, lldp_port=None)), host(11)], lambda _: GOOD)
    assert (found.id, found.level, found.where) == ("npu-cabling", "warning", "192.0.2.10")
    assert "NPU 4 of node 192.0.2.10 (node10)" in found.what
    assert "400GE1/10/0" in found.seen
