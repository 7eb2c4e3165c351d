"""A deployment as a scrape sees it, made of values."""

from __future__ import annotations

from dataclasses import replace

from raylaunch.monitoring.scrape import Scrape
from raylaunch.plan.facts import Npu
from raylaunch.plan.node_usage import DiskUsage, NodeUsage, NpuEcc, ProcessUsage
from raylaunch.supervise.deployment_status import GroupStatus, ServerStatus, Status
from raylaunch.supervise.deployment_summary import summarise
from raylaunch.supervise.detect import FailureSeen
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import CanarySeen, HttpSeen, Phase, RankSeen, ServerSeen
from raylaunch.supervise.tally import Tally

NOW = 1_700_000_000.0


def make_status(servers: int = 2, phase: Phase = Phase.READY) -> Status:
    seen = []
    for index in range(servers):
        ranks = []
        if index == 0:
            for number in range(servers):
                ranks.append(
                    RankSeen(
                        number,
                        running=3,
                        waiting=1,
                        tokens=1000,
                        finished=7,
                        kv_usage=0.25,
                        prefix_queries=100,
                        prefix_hits=40,
                        moved_at=NOW - 2,
                        at=NOW - 1,
                    )
                )
        seen.append(
            ServerSeen(
                index,
                attempt=2,
                pid=100 + index,
                stage="API up",
                agent_at=NOW - 0.5,
                http=HttpSeen(200, 0.004, NOW - 1) if index == 0 else HttpSeen(),
                ranks=tuple(ranks),
                canary=CanarySeen(True, NOW - 3, 0.2) if index == 0 else None,
            )
        )
    group = GroupStatus(
        "serve-0",
        "serve",
        phase,
        attempt=2,
        endpoint="http://10.0.0.1:8000/v1",
        created_at=NOW - 600,
        phase_since=NOW - 60,
        ready_at=NOW - 60,
        restarts=1,
        servers=tuple(make_server(one) for one in seen),
    )
    return summarise(
        [group],
        [],
        deployment="a2-dual",
        recipe="a2-dual",
        served_name="minimax25",
        now=NOW,
        stopping=False,
    )


def make_server(seen: ServerSeen) -> ServerStatus:
    role = "primary" if seen.index == 0 else "headless"
    ip = f"10.0.{seen.index // 200}.{seen.index % 200 + 1}"
    return ServerStatus(
        seen.index, role, (seen.index,), ip, "eth0", tuple(range(8)), "/log", seen, "serve-0"
    )


def with_seen(status: Status, index: int, **changes: object) -> Status:
    """Return the status with another observation of one server."""
    group = status.groups[0]
    servers = list(group.servers)
    servers[index] = replace(servers[index], seen=replace(servers[index].seen, **changes))
    changed = replace(group, servers=tuple(servers))
    return replace(status, groups=(changed,), servers=tuple(servers))


def make_usage() -> NodeUsage:
    npus = tuple(
        Npu(number, number, 0, "910B3", "OK", None, 50_000, 65_536, 92.5, 41, 80)
        for number in range(8)
    )
    disk = DiskUsage(100 << 30, 40 << 30)
    ecc = tuple(NpuEcc(number, 5, 0, 0) for number in range(8))
    processes = ProcessUsage(9, 5 << 30, 300)
    return NodeUsage(processes, 512 << 30, 400 << 30, disk, disk, npus, ecc, 3.0)


def make_tally() -> Tally:
    failure = FailureSeen("ended", 1, "server 1 exited")
    tally = Tally().failed(failure, NOW - 300, 0.08, 1)
    killed = Diagnosis("killed", "transient", 1, "", None, "", "", "")
    tally = tally.diagnosed(killed, 1).restarted("killed", "transient")
    return tally.became_ready(NOW - 230, {(0, "weights"): 41.0, (1, "weights"): 12.5}, 2)


def make_scrape(servers: int = 2, status: Status | None = None) -> Scrape:
    status = status or make_status(servers)
    usage = {(one.group, one.index): make_usage() for one in status.servers}
    return Scrape(status, {"serve-0": make_tally()}, usage, NOW - 600)
