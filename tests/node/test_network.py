import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from raylaunch.node.probe import network

SHOW = """import json
from raylaunch.node.probe.network import read_interfaces
print(json.dumps({found.name: found.__dict__ for found in read_interfaces()}))
"""
BUILD = """set -e
mount -t sysfs sysfs /sys
ip link set lo up
ip link add left type veth peer name right
ip addr add 192.0.2.9/24 dev left
ip addr add 198.51.100.9/28 dev left label left:1
ip -6 addr add 2001:db8::9/64 dev left nodad
ip link set left up
ip link set right up
ip link add docker0 type bridge
exec "$@"
"""


def device(root, name, *, uevent="", kind="1", index="5", link="5", folders=()):
    folder = root / "sys/class/net" / name
    folder.mkdir(parents=True)
    for file, text in {"uevent": uevent, "type": kind, "ifindex": index, "iflink": link}.items():
        (folder / file).write_text(text + "\n")
    for below in folders:
        (folder / below).mkdir()
    return name


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        ("loopback", {"kind": "772"}),
        ("physical", {"folders": ["device"]}),
        ("bridge", {"folders": ["bridge"], "uevent": "DEVTYPE=bridge"}),
        ("bond", {"folders": ["bonding"], "uevent": "DEVTYPE=bond"}),
        ("vlan", {"uevent": "DEVTYPE=vlan\nINTERFACE=x", "link": "2", "folders": ["lower_eth0"]}),
        ("veth", {"link": "6"}),
        ("other", {"link": "6", "folders": ["lower_eth0"]}),  # macvlan
        ("other", {}),  # dummy
        ("tunnel", {"uevent": "DEVTYPE=vxlan"}),
        ("tunnel", {"kind": "65534"}),
        ("tunnel", {"kind": "776", "link": "0"}),
    ],
)
def test_the_kind_of_an_interface_is_read_from_sysfs(tmp_path, kind, signs):
    assert network.interface_kind(device(tmp_path, "x", **signs), tmp_path) == kind


def test_a_vlan_is_also_known_by_proc(tmp_path):
    name = device(tmp_path, "eth0.7", link="2")
    (tmp_path / "proc/net/vlan").mkdir(parents=True)
    (tmp_path / "proc/net/vlan" / name).touch()
    assert network.interface_kind(name, tmp_path) == "vlan"


def test_an_interface_that_sysfs_does_not_show_is_other(tmp_path):
    assert network.interface_kind("gone", tmp_path) == "other"


def test_loopback_of_this_machine():
    found = {interface.name: interface for interface in network.read_interfaces()}["lo"]
    assert found.kind == "loopback"
    assert found.up
    assert "127.0.0.1/8" in found.addresses


def test_interfaces_of_a_host_with_a_veth_a_bridge_an_alias_and_ipv6():
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("building a network namespace needs root, ip and unshare")
    argv = ["unshare", "--net", "--mount", "bash", "-c", BUILD, "bash", sys.executable, "-c", SHOW]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert {name: entry["kind"] for name, entry in found.items()} == {
        "lo": "loopback",
        "left": "veth",
        "right": "veth",
        "docker0": "bridge",
    }
    ours = [address for address in found["left"]["addresses"] if not address.startswith("fe80")]
    assert sorted(ours) == ["192.0.2.9/24", "198.51.100.9/28", "2001:db8::9/64"]
    assert found["left"]["up"]
    assert not found["docker0"]["up"]


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_listener_is_seen_with_its_owner(family, address):
    with socket.socket(family) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        assert port not in {
            listener.port for listener in network.read_listeners()
        }  # bound is not listening
        server.listen()
        found = [listener for listener in network.read_listeners([port]) if listener.port == port]
    assert [(listener.address, listener.pid) for listener in found] == [(address, os.getpid())]
    assert found[0].process


def test_a_connection_is_no_listener():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getsockname()[1] not in {
            listener.port for listener in network.read_listeners()
        }


def test_process_names_are_read_for_the_wanted_ports_only():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [
            listener for listener in network.read_listeners([port + 1]) if listener.port == port
        ]
    assert [listener.process for listener in found] == [None]


def test_a_hostname_resolves_to_each_address_once(monkeypatch):
    answers = [
        (2, 1, 6, "", ("127.0.1.1", 0)),
        (10, 1, 6, "", ("fd00::2", 0, 0, 0)),
        (2, 1, 6, "", ("127.0.1.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert network.resolve_hostname() == ("127.0.1.1", "fd00::2")
