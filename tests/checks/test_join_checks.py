"""Workers that `ray up` was to start and that have not joined."""

from __future__ import annotations

import pytest

from raylaunch.checks.join_checks import check_joined, find_absent
from raylaunch.recipe.cluster_yaml import ClusterFile

HEAD, NEAR, FAR = "10.77.0.10", "10.77.0.11", "10.77.0.99"
TOLD = ClusterFile("test", HEAD, (NEAR, FAR), 2, "root")

# Ray 2.60, autoscaler version 1, a worker at whose address nobody is (shortened).
LOGS = {
    "monitor.log": f"""\
2026-11-23 23:52:10,148\tINFO autoscaler.py:361 -- StandardAutoscaler: {{'setup_commands': ["false || echo error"]}}
======== Autoscaler status: 2026-11-23 23:53:15.559940 ========
Active:
 1 local.cluster.node
Pending:
 {FAR}: local.cluster.node, waiting-for-ssh
Recent failures:
 (no failures)
2026-11-23 23:53:05,535\tINFO autoscaler.py:469 -- The autoscaler took 0.004 seconds to complete the update iteration.
""",
    "monitor.out": f"""\
2026-11-23 23:52:50,101\tERROR npu.py:91 -- Failed to detect NPU type.
ModuleNotFoundError: No module named 'acl'
(0/1) ray --version | grep -F ' 2.60.' || {{ echo 'This host lacks Ray 2.60' >&2; false; }}
[2026-11-24 00:30:36,740 W 50 50] network_util.cc:330: Failed to determine local IP via external connectivity
2026-11-23 23:52:54,620\tVVINFO command_runner.py:401 -- Full command is `\x1b[1mssh -tt root@{FAR} (uptime)'\x1b[22m`
2026-11-23 23:52:57,686\tINFO updater.py:333 -- SSH still not available \x1b[2m(SSH command failed.)\x1b[22m, retrying
2026-11-23 23:53:05,746\tINFO updater.py:333 -- SSH still not available \x1b[2m(SSH command failed.)\x1b[22m, retrying
""",
    "monitor.err": f"ssh: connect to host {FAR} port 22: No route to host\n" * 5,
}


def test_the_missing_worker_is_named_with_what_the_autoscaler_wrote():
    found = find_absent(TOLD, [HEAD, NEAR], LOGS, "/tmp/ray/session_latest/logs")
    assert found.workers == (FAR,)
    assert found.evidence == (
        f"monitor.log: {FAR}: local.cluster.node, waiting-for-ssh",
        "monitor.out: SSH still not available (SSH command failed.), retrying",
        f"monitor.err: ssh: connect to host {FAR} port 22: No route to host",
    )
    for hint in (
        "/tmp/ray/session_latest/logs/monitor.*",
        "RAY_enable_autoscaler_v2=0",
        f"ssh root@{FAR}",
    ):
        assert hint in found.todo


@pytest.mark.parametrize(
    ("told", "alive"),
    [
        (TOLD, [HEAD, NEAR, FAR]),
        (ClusterFile("test", HEAD, (NEAR, FAR), 1, "root"), [HEAD, NEAR]),
        (ClusterFile("test", HEAD, (), 0, "root"), [HEAD]),
        (TOLD, ["192.0.2.1"]),
    ],
    ids=["all are there", "one suffices", "no workers", "another cluster"],
)
def test_nothing_is_said(told, alive):
    assert find_absent(told, alive, LOGS, "") is None


def test_a_worker_that_has_not_joined_is_a_warning_where_the_others_suffice():
    (finding,) = check_joined(find_absent(TOLD, [HEAD, NEAR], LOGS, "/logs"))
    assert (finding.id, finding.level) == ("worker-absent", "warning")
    assert (
        f"1 of 2 worker(s) that `ray up` was to start have not joined the cluster: {FAR}"
        in finding.what
    )
    assert "No route to host" in finding.seen
    assert list(check_joined(None)) == []
