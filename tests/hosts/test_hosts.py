"""The test hosts are what the tests take them for: apart from each other and the machine, and gone
at the end."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from hosts import build_hosts, kernel_has

pytestmark = pytest.mark.hosts


def ping(host, target):
    return host.run(["ping", "-c1", "-W1", target], check=False).returncode == 0


def test_each_host_has_its_own_name_address_and_folders(two_hosts):
    first, second, _ = two_hosts
    assert [host.run(["hostname"]).stdout.strip() for host in (first, second)] == ["h0", "h1"]
    assert first.ip in first.run(["ip", "-br", "address", "show", "eth0"]).stdout
    first.put("/tmp/of-h0", "x")
    first.put("/root/of-h0", "x")
    assert second.run(["ls", "/tmp/of-h0", "/root/of-h0"], check=False).returncode != 0
    assert not Path("/tmp/of-h0").exists()


def test_a_host_sees_only_its_own_processes(two_hosts):
    first, second, _ = two_hosts
    waiting = first.popen(["bash", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE)
    assert waiting.stdout.readline() == "ready\n"
    assert any("1000" in line for line in first.processes().values())
    assert not second.processes()


def test_a_login_by_ssh_finds_the_python_of_this_run(two_hosts):
    first, second, _ = two_hosts
    first.put("/root/key", two_hosts.private_key, 0o600)
    options = [
        "-i",
        "/root/key",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]
    asked = ["bash", "--login", "-c", "-i", "'hostname; echo $SSH_CONNECTION; command -v ray'"]
    done = first.run(["ssh", "-tt", *options, f"root@{second.ip}", *asked])
    assert done.stdout.split()[:2] == ["h1", first.ip]
    assert done.stdout.split()[-1].startswith(sys.prefix)


def test_a_cut_link_loses_packets_until_healed(two_hosts):
    first, second, _ = two_hosts
    assert ping(first, second.ip)
    second.cut()
    try:
        assert not ping(first, second.ip)
        assert "state UP" in second.run(["ip", "link", "show", "eth0"]).stdout
    finally:
        second.heal()
    assert ping(first, second.ip)
    second.unplug()
    try:
        assert "NO-CARRIER" in second.run(["ip", "link", "show", "eth0"]).stdout
    finally:
        second.heal()
    assert ping(first, second.ip)


def test_hosts_take_further_interfaces(two_hosts):
    first, second, _ = two_hosts
    for host, number in ((first, 1), (second, 2)):
        host.add_nic("eth10", f"10.78.0.{number}/24", f"fd77::{number}/64")
    assert ping(first, "10.78.0.2")
    assert ping(first, "fd77::2")


def test_interfaces_may_be_of_any_kind_that_the_kernel_has(two_hosts):
    first, _, _ = two_hosts
    kinds = [kind for kind in ("bridge", "dummy", "bond", "vlan") if kernel_has(kind)]
    assert "bridge" in kinds
    for number, kind in enumerate(kinds):
        first.add_nic(f"{kind}7", f"172.17.{number}.1/24", kind=kind)
        assert (
            f"172.17.{number}.1" in first.run(["ip", "-br", "address", "show", f"{kind}7"]).stdout
        )


def test_nothing_outlives_a_host(tmp_path):
    with ExitStack() as stack:
        (host,) = build_hosts(["lone"], tmp_path, stack)
        # A session of its own, its parent gone: what would survive on a machine.
        host.run(["bash", "-c", "setsid sleep 1234 >/dev/null 2>&1 & "])
        inside = psutil.Process(host.init).children(recursive=True)
        assert any("1234" in " ".join(process.cmdline()) for process in inside)
    assert not psutil.wait_procs(inside, timeout=60)[1]


def test_hosts_end_with_the_process_that_built_them(tmp_path):
    """Even when it is killed: no fixture runs then."""
    code = (
        "import sys, pathlib, contextlib; from hosts import build_hosts, kernel_has\n"
        "stack = contextlib.ExitStack()\n"
        "host = build_hosts(['lone'], pathlib.Path(sys.argv[1]), stack)[0]\n"
        "print(host.init, flush=True); sys.stdin.read()"
    )
    builder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    init = psutil.Process(int(builder.stdout.readline()))
    builder.kill()
    builder.communicate()
    assert not psutil.wait_procs([init], timeout=60)[1]
