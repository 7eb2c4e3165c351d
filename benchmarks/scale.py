"""Measure how the control plane grows: planning alone, and start, status, check with stand-ins.

Two real Ray nodes on this machine hold all agents, one per server, as many as asked for; in vLLM's
place stands the stand-in of the tests. All share the cores of this machine, which real hosts would
not: times are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recovery import User, actors, cpu_s, start_cluster
from report import publish, table

from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.node.probe import reachability
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.cluster.local_cleanup import stop_local

NAME = "bench-scale"
SERVERS = (2, 8, 32, 64)
PLANNED = (2, 8, 64, 512, 2048, 10_000)
QUIET_S = 10.0
PREFLIGHT_GOALS = {2: 10.0, 64: 30.0}
"""Seconds that `raylaunch check` may take, by hosts."""
BARE_ACTORS = """
import sys, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Bare:
    def answer(self):
        return 1

ray.get([Bare.remote().answer.remote() for _ in range(int(sys.argv[1]))])
"""
"""A program that waits for so many actors which do nothing: what Ray itself needs to start their
processes."""
DOORS = {"http": 0, "rpc": 0, "any": 0, "hccl": 0}
KNOCK_S = 30.0


def plan_alone(servers: int, rounds: int) -> dict[str, float]:
    """Return seconds to plan and to check `servers` servers from given facts, and the memory used."""
    loaded = read("a2-dual", (f"parallel.data={servers}",))
    nodes = [
        Facts(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", interface="eth0")
        for n in range(1, servers + 1)
    ]
    planned, checked = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        plan = build_plan(loaded, nodes, deployment=NAME)
        planned.append(time.perf_counter() - began)
        began = time.perf_counter()
        findings = [*check_recipe(loaded, nodes[0].versions), *check_nodes(loaded, nodes, plan)]
        checked.append(time.perf_counter() - began)
        del findings
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {
        "servers": servers,
        "plan_s": statistics.median(planned),
        "check_s": statistics.median(checked),
        "peak_mb": peak_mb,
    }


def ways_alone(hosts: int) -> dict[str, float]:
    """Seconds for `hosts` loopback addresses to try every way to each other, all in one process."""
    before = time.process_time()
    seconds = asyncio.run(_try_ways(hosts))
    return {
        "hosts": hosts,
        "ways": hosts * (hosts - 1),
        "seconds": seconds,
        "cpu_s": time.process_time() - before,
    }


async def _try_ways(hosts: int) -> float:
    names = [f"127.0.1.{number + 1}" for number in range(hosts)]
    began = time.perf_counter()
    opened = [await reachability.open_listeners(name, DOORS) for name in names]
    doors = tuple(door for _, some in opened for door in some)
    missed = await asyncio.gather(
        *(reachability.connect_to_all(name, doors, KNOCK_S) for name in names)
    )
    took = time.perf_counter() - began
    for servers, _ in opened:
        for server in servers:
            server.close()
    assert not any(missed), missed
    return took


@contextmanager
def cluster_of(user: User, servers: int) -> Iterator[tuple[str, ...]]:
    """A Ray cluster for so many servers, and the words that give a recipe this shape."""
    cluster = start_cluster(user, servers)
    user.env |= {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token"}
    user.env["RAY_AUTH_TOKEN_PATH"] = str(cluster.token_file)
    try:
        yield (
            *("--set", f"parallel.data={servers}", "--set", "hardware.spread=false"),
            *("--set", "hardware.npus_per_server=1", "--set", f"hardware.npus_per_node={servers}"),
            *("--set", "network.http_port=28134", "--set", "network.rpc_port=28367"),
        )
    finally:
        stop_local(Path(user.env["RAYLAUNCH_HOME"]), "bench")


def agents(user: User, servers: int, *, drill: bool) -> dict[str, Any]:
    """Everything that is measured with this many agents."""
    with cluster_of(user, servers) as shape:
        found: dict[str, Any] = {"servers": servers, "bare_actors_s": bare_actors(user, servers)}
        began = time.perf_counter()
        user.run("check", "local-dual", *shape, refused=(4,))
        found["preflight_s"] = time.perf_counter() - began
        try:
            began_at = time.time()
            user.run("-q", "start", "local-dual", "--name", NAME, *shape)
            found |= _stages(user, began_at) | _rest(user)
            if drill:
                words = ("drill", NAME, "--yes", "-o", "json", "--fault", "kill-headless")
                (outcome,) = json.loads(user.run(*words, refused=(7,)))
                found |= {name: outcome[name] for name in ("detection_s", "recovery_s", "problem")}
        finally:
            began = time.perf_counter()
            user.run("stop", NAME, refused=(9,))
            found["stop_s"] = time.perf_counter() - began
    return found


def bare_actors(user: User, count: int) -> float:
    """Seconds of a program of Ray's own that makes so many actors and waits for all of them."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", BARE_ACTORS, str(count)],
        env=user.env,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


def _stages(user: User, began_at: float) -> dict[str, float]:
    events = [json.loads(line) for line in user.run("events", NAME, "-o", "json").splitlines()]

    def last(text: str) -> float:
        return max(event["at"] for event in events if event["text"] == text)

    reserved, probed, starting = last("reserved"), last("probed"), last("starting")
    begun: dict[int, float] = {}
    for (
        event
    ) in events:  # of a server that starts fast, the controller may hear a later stage first
        if event["kind"] == "stage" and event["at"] >= starting and event["text"] != "launching":
            begun.setdefault(event["server"], event["at"])
    spawned = max(begun.values())
    return {
        "place_s": reserved - began_at,
        "probe_s": probed - reserved,
        "plan_check_s": starting - probed,
        "spawn_s": spawned - starting,
        "ready_s": last("ready") - spawned,
        "start_s": last("ready") - began_at,
    }


def _rest(user: User) -> dict[str, float]:
    """Return CPU and memory without requests, and the latency of a question to the controller."""
    controller, others = actors(user)
    began, before = time.monotonic(), [cpu_s(one) for one in (controller, *others)]
    time.sleep(QUIET_S)
    lasted = time.monotonic() - began
    used = [
        (cpu_s(one) - old) / lasted for one, old in zip((controller, *others), before, strict=True)
    ]
    began = time.perf_counter()
    user.run("status", NAME, "-o", "json")
    return {
        "status_s": time.perf_counter() - began,
        "controller_cpu": used[0],
        "controller_mb": controller.memory_full_info().pss / 1e6,
        "agent_cpu": sum(used[1:]) / len(others),
        "agent_mb": sum(one.memory_full_info().pss for one in others) / len(others) / 1e6,
    }


def write(
    planned: Sequence[dict[str, float]],
    ways: Sequence[dict[str, float]],
    lived: Sequence[dict[str, Any]],
) -> str:
    """The text of the section."""
    rows = [
        [one["servers"], f"{one['plan_s'] * 1e3:.1f}", f"{one['check_s'] * 1e3:.1f}",
         f"{(one['plan_s'] + one['check_s']) / one['servers'] * 1e6:.0f}", f"{one['peak_mb']:.0f}"] for one in planned
    ]  # fmt: skip
    parts = [
        "Planning and checking alone (`a2-dual`, one server per host, from given facts):",
        table(
            ["servers", "plan, ms", "check, ms", "µs per server", "peak memory of the process, MB"],
            rows,
        ),
        "All ways between hosts, tried in one process over loopback addresses (four ports per host and direction):",
        table(
            ["hosts", "ways", "seconds", "CPU, s, of one host's share"],
            [
                [
                    one["hosts"],
                    one["ways"],
                    f"{one['seconds']:.2f}",
                    f"{one['cpu_s'] / one['hosts']:.3f}",
                ]
                for one in ways
            ],
        ),
    ]
    if lived:
        parts += [
            "With agents on real Ray and stand-in servers, all on this machine; times in seconds:",
            _lived(lived),
        ]
        parts.append(
            f"At rest (no requests, {QUIET_S:.0f} s); `status` is a whole process:\n\n{_rested(lived)}"
        )
        parts.append(
            "Goals: `check` of 2 hosts in 10 s, of 64 in 30 s. Here the processes of all agents start on the same "
            "cores; what that alone costs shows the program of Ray's own, with as many actors that do nothing."
        )
    return "\n\n".join(parts)


def _lived(lived: Sequence[dict[str, Any]]) -> str:
    names = ("bare_actors_s", "preflight_s", "place_s", "probe_s", "plan_check_s", "spawn_s", "ready_s", "start_s",
             "stop_s", "detection_s", "recovery_s")  # fmt: skip
    head = ["servers", "as many bare actors of Ray", "`check`", "`start`: to reserved", "probe", "plan, check", "spawn",
            "servers up", "in all", "`stop`", "a killed server detected", "all back"]  # fmt: skip
    return table(
        head, [[one["servers"], *(_number(one.get(name)) for name in names)] for one in lived]
    )


def _rested(lived: Sequence[dict[str, Any]]) -> str:
    head = ["servers", "controller, % of a core", "per server", "controller, MB (PSS)", "agent, %", "agent, MB",
            "`status`, s"]  # fmt: skip
    rows = [
        [one["servers"], f"{100 * one['controller_cpu']:.1f}", f"{100 * one['controller_cpu'] / one['servers']:.2f}",
         f"{one['controller_mb']:.0f}", f"{100 * one['agent_cpu']:.1f}", f"{one['agent_mb']:.0f}",
         _number(one["status_s"])] for one in lived
    ]  # fmt: skip
    return table(head, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3, help="rounds of planning alone")
    options.add_argument("--servers", type=int, nargs="*", default=list(SERVERS))
    options.add_argument("--no-drill", action="store_true")
    options.add_argument("--short", action="store_true", help="2 and 8 servers, plans up to 2048")
    given = options.parse_args()
    if given.short:
        given.rounds, given.servers = 1, [count for count in given.servers if count <= 8]
    planned = [
        plan_alone(count, given.rounds) for count in PLANNED if not given.short or count <= 2048
    ]
    ways = [ways_alone(count) for count in (2, 64)]
    lived = []
    for count in given.servers:
        with tempfile.TemporaryDirectory(prefix="rl-") as folder:
            lived.append(agents(User(Path(folder), standin=True), count, drill=not given.no_drill))
            print(json.dumps(lived[-1]), flush=True)
    missed = [
        f"check of {one['servers']} hosts: {one['preflight_s']:.1f} s, goal {PREFLIGHT_GOALS[one['servers']]:g} s"
        for one in lived
        if one["preflight_s"] > PREFLIGHT_GOALS.get(one["servers"], float("inf"))
    ]
    data = {"planned": planned, "ways": ways, "lived": lived}
    publish(
        "scale",
        "Scale of the control plane",
        write(planned, ways, lived),
        data,
        missed=missed,
        short=given.short,
    )


if __name__ == "__main__":
    main()
