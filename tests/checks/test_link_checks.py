"""Checks on the NPUs' network ports: two good hosts are clean, and each spoilt port is found."""

from dataclasses import replace

import pytest
from npu_hosts import LINKS, check, host, ports

from raylaunch.plan.facts import ProbeFailure

NO_VERDICT = ports(2, net_health="Init", netdetect="0.0.0.0")

# id, level on A2, the ports of the first node, what the finding must name
FIRES = [
    ("npu-link-down", "error", ports(3, link="DOWN"), "NPU 3 on node 192.0.2.10 (node10) are down"),
    ("npu-no-address", "error", ports(5, ip=None), "NPU 5 on node 192.0.2.10"),
    ("npu-net-health", "error", ports(1, net_health="Fault"), "NPU 1: Fault"),
    ("npu-net-health", "error", ports(1, net_health="Receive timeout"), "NPU 1: Receive timeout"),
    (
        "npu-net-health",
        "warning",
        NO_VERDICT,
        "NPU 2 on node 192.0.2.10 (node10) monitor no address",
    ),
    ("npu-net-health", "warning", ports(2, net_health="Detect IP set"), "-netdetect -s address"),
    ("npu-tls-differs", "error", ports(7, tls=True), "on: NPU 7 of 192.0.2.10 (node10)"),
    (
        "npu-tls-differs",
        "error",
        ports(7, tls=True),
        "off: NPU 0-6 of 192.0.2.10 (node10), NPU 0-7 of 192.0.2.11",
    ),
    ("npu-tls-differs", "error", ports(*range(8), tls=True), "on: NPU 0-7 of 192.0.2.10 (node10)"),
    (
        "npu-mtu-differs",
        "error",
        ports(0, 1, 4, mtu=4096),
        "4096: NPU 0-1, 4 of 192.0.2.10 (node10)",
    ),
    (
        "npu-address-twice",
        "error",
        ports(0, ip="10.20.1.6"),
        "NPU 0 of 192.0.2.10 (node10) and NPU 6 of 192.0.2.11",
    ),
]

SILENT = [
    LINKS,
    (),
    ports(
        3, link=None, ip=None, net_health=None, tls=None, mtu=None
    ),  # the tool was silent: `probe-failed` says so
    (*LINKS, replace(LINKS[0], npu=9, link="DOWN", ip=None)),  # not a planned one
]


@pytest.mark.parametrize(("finding", "level", "links", "named"), FIRES)
def test_a_spoilt_port_is_found_and_nothing_else_with_it(finding, level, links, named):
    found = check(host(10, links), host(11))
    assert [(each.id, each.level) for each in found] == [(finding, level)], found
    assert named in f"{found[0].what} {found[0].todo} {found[0].seen}"


@pytest.mark.parametrize("links", SILENT)
def test_what_is_well_or_unknown_is_left_alone(links):
    assert check(host(10, links), host(11)) == []


@pytest.mark.parametrize(
    "links", [ports(3, link="DOWN"), ports(5, ip=None), ports(1, net_health="Fault")]
)
def test_on_a3_a_port_that_does_not_work_is_a_warning(links):
    """The machines of one super-pod have HCCS as well."""
    a3 = ["hardware.platform=ascend-a3", "hardware.npus_per_node=8"]
    assert [each.level for each in check(host(10, links), host(11), a3)] == ["warning"]


def test_ports_do_not_matter_inside_one_machine():
    links = ports(3, link="DOWN", tls=True)
    assert not [
        each for each in check(host(10, links), host(10, links)) if each.id.startswith("npu-")
    ]


def test_ports_that_all_have_another_mtu_than_usual_are_well():
    jumbo = ports(*range(8), mtu=8192)
    assert (
        check(host(10, jumbo), host(11, [replace(link, mtu=8192) for link in host(11).npu_links]))
        == []
    )


def test_all_ports_of_a_copied_configuration_are_one_finding():
    (found,) = check(host(10), replace(host(11), npu_links=host(10).npu_links))
    assert found.id == "npu-address-twice"
    assert "and 7 more addresses" in found.what


def test_a_tool_that_hangs_is_refused_and_one_that_is_absent_is_not():
    hangs = replace(
        host(10, ()),
        failures=(ProbeFailure("npu-smi", "no answer in 20 s: npu-smi info", hung=True),),
    )
    found = check(hangs, host(11))
    assert [(each.id, each.level, each.where) for each in found] == [
        ("npu-smi-hangs", "error", "192.0.2.10")
    ]
    assert "no answer in 20 s" in found[0].seen
    absent = replace(hangs, failures=(ProbeFailure("npu-smi", "not found on PATH"),))
    assert [(each.id, each.level) for each in check(absent, host(11))] == [
        ("probe-failed", "warning")
    ]
