"""One finding per direction in which a host is not reached."""

from __future__ import annotations

from raylaunch.checks.reach_checks import FailedConnection, ProbeListener, check_reach


def test_every_direction_that_is_cut_is_a_finding_with_its_ports():
    doors = [
        ProbeListener("192.0.2.11", "rpc", 2347, "a"),
        ProbeListener("192.0.2.11", "http", 20004, "b"),
    ]
    back = ProbeListener("192.0.2.10", "any", 40001, "c")
    missed = [*(FailedConnection("192.0.2.10", door, "no answer in 3 s") for door in doors)]
    missed.append(FailedConnection("192.0.2.11", back, "Connection refused"))
    there, here = check_reach(missed, {"192.0.2.10": "eth0", "192.0.2.11": "bond1"})
    assert (there.id, there.level, there.where) == ("unreachable", "error", "192.0.2.10")
    assert "192.0.2.10 → 192.0.2.11 (eth0 → bond1)" in there.what
    assert "2347 (rpc), 20004 (http)" in there.what
    assert there.seen == "no answer in 3 s"
    assert "192.0.2.11 → 192.0.2.10" in here.what
    assert "40001 (any)" in here.what


def test_hosts_that_reach_each_other_are_not_mentioned():
    assert list(check_reach([], {})) == []
