"""Measure detection and recovery with the drill, and what the controller costs at rest.

Real vLLM on this machine's CPU, dp=2; with --standin the stand-in of the tests. --servers N also
starts N stand-in servers and measures the controller that observes them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from goals import shortfalls
from report import ROOT, publish, table

from raylaunch.runtime.cluster.local_cleanup import stop_local
from raylaunch.runtime.cluster.local_cluster import LocalCluster, start_local

NAME = "bench-recovery"
PORTS = ("--set", "network.http_port=28124", "--set", "network.rpc_port=28357")
STANDIN = ROOT / "tests" / "standin" / "bin" / "vllm"
QUIET_S = 30.0
GOALS = {
    "processes": "detected in 1 s, 3 s beyond the servers' own start",
    "agent": "2 s",
    "hang": "30 s",
}


class User:
    """Runs `raylaunch` in a home of its own; `standin` puts the stand-in in vLLM's place."""

    def __init__(self, home: Path, *, standin: bool) -> None:
        self.env = {
            **os.environ,
            "RAYLAUNCH_HOME": str(home),
            "RAYLAUNCH_LOG_DIR": str(home / "logs"),
        }
        self.env.pop("RAYLAUNCH_VLLM", None)
        if standin:  # 16 s: what real vLLM takes to notice a dead engine
            self.env |= {
                "RAYLAUNCH_VLLM": str(STANDIN),
                "STANDIN_PYTHON": sys.executable,
                "STANDIN_NOTICE_S": "16",
            }

    def run(self, *words: str, refused: tuple[int, ...] = ()) -> str:
        """What `raylaunch` with these words printed; `refused` are exit codes that are answers too."""
        command = [sys.executable, "-m", "raylaunch", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode and done.returncode not in refused:
            raise SystemExit(f"raylaunch {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout


def drill(user: User, faults: list[str]) -> list[dict[str, Any]]:
    user.run("start", "local-dual", "--name", NAME, *PORTS)
    try:
        words = [word for fault in faults for word in ("--fault", fault)]
        found: list[dict[str, Any]] = json.loads(
            user.run("drill", NAME, "--yes", "-o", "json", *words, refused=(7,))
        )
        return found
    finally:
        user.run("stop", NAME)


@contextlib.contextmanager
def running_servers(user: User, servers: int) -> Iterator[None]:
    """Run `servers` stand-in servers as one group."""
    shape: tuple[str, ...] = ()
    if servers != 2:  # the embedded cluster would make a Ray node per server
        cluster = start_cluster(user, servers)
        user.env |= {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token"}
        user.env["RAY_AUTH_TOKEN_PATH"] = str(cluster.token_file)
        shape = (
            *("--set", f"parallel.data={servers}", "--set", "hardware.spread=false"),
            *("--set", "hardware.npus_per_server=1", "--set", f"hardware.npus_per_node={servers}"),
        )
    try:
        user.run("start", "local-dual", "--name", NAME, *PORTS, *shape)
        yield
    finally:
        user.run("stop", NAME, refused=(9,))
        stop_local(Path(user.env["RAYLAUNCH_HOME"]), "bench")


def rest(user: User, servers: int) -> dict[str, float]:
    """What the controller of `servers` idle servers takes in `QUIET_S` seconds without requests."""
    with running_servers(user, servers):
        controller, agents = actors(user)
        time.sleep(5.0)  # what follows the start is not rest
        before = [cpu_s(one) for one in (controller, *agents)]
        began = time.monotonic()
        time.sleep(QUIET_S)
        lasted = time.monotonic() - began
        used = [
            (cpu_s(one) - old) / lasted
            for one, old in zip((controller, *agents), before, strict=True)
        ]
        return {
            "servers": servers,
            "controller_cpu": used[0],
            "controller_mb": controller.memory_full_info().pss / 1e6,
            "agent_cpu": sum(used[1:]) / len(agents),
            "agent_mb": sum(one.memory_full_info().pss for one in agents) / len(agents) / 1e6,
        }


def start_cluster(user: User, servers: int) -> LocalCluster:
    """Two Ray nodes with half of the servers each; their processes inherit this one's environment."""
    os.environ.update(user.env)
    return start_local(
        Path(user.env["RAYLAUNCH_HOME"]), "bench", nodes=2, npus_per_node=servers // 2
    )


def actors(user: User) -> tuple[psutil.Process, list[psutil.Process]]:
    """The controller and the agents that belong to the home of `user`."""
    ours = [one for one in psutil.process_iter() if _is_actor(one, user.env["RAYLAUNCH_HOME"])]
    controller = next(one for one in ours if one.cmdline()[0].startswith("ray::Controller"))
    return controller, [one for one in ours if one.cmdline()[0].startswith("ray::Agent")]


def _is_actor(process: psutil.Process, home: str) -> bool:
    """Return whether it is an actor of the cluster of `home`: Ray's workers inherit its environment."""
    try:
        words = process.cmdline()
        ray = bool(words) and words[0].startswith(("ray::Controller", "ray::Agent"))
        return ray and process.environ().get("RAYLAUNCH_HOME") == home
    except psutil.Error:
        return False


def cpu_s(process: psutil.Process) -> float:
    """Seconds of a core that the process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _row(one: dict[str, Any]) -> list[str]:
    times = [one[name] for name in ("detection_s", "recovery_s", "start_s", "beyond_s")]
    shown = ["-" if value is None else f"{value:.2f}" for value in times]
    return [
        one["fault"],
        *shown,
        f"{one['failed']} of {one['requests']}",
        str(len(one["left"])),
        one["detected_by"],
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--standin", action="store_true", help="the stand-in instead of real vLLM")
    options.add_argument(
        "--servers", type=int, nargs="*", default=[2], help="counts of stand-in servers at rest"
    )
    options.add_argument("--fault", action="append", default=[], help="only this fault")
    options.add_argument("--short", action="store_true", help="one fault; the page stays as it is")
    given = options.parse_args()
    given.fault = given.fault or (["kill-engine"] if given.short else [])
    with tempfile.TemporaryDirectory(prefix="rl-") as folder:
        outcomes = drill(User(Path(folder) / "drill", standin=given.standin), given.fault)
        rests = [
            rest(User(Path(folder) / f"rest-{count}", standin=True), count)
            for count in given.servers
        ]
    head = [
        "fault",
        "detected, s",
        "recovered, s",
        "servers' own start, s",
        "beyond, s",
        "requests failed",
        "left",
    ]
    text = table([*head, "detected by"], [_row(one) for one in outcomes])
    columns = [
        "servers (stand-in)",
        "controller, % of a core",
        "controller, MB (PSS)",
        "agent, %",
        "agent, MB",
    ]
    rows = [
        [one["servers"], f"{100 * one['controller_cpu']:.1f}", f"{one['controller_mb']:.0f}",
         f"{100 * one['agent_cpu']:.1f}", f"{one['agent_mb']:.0f}"] for one in rests
    ]  # fmt: skip
    what = "the stand-in of the tests" if given.standin else "real vLLM on CPU"
    intro = (
        f"`raylaunch drill local-dual` with {what}, dp=2, two light clients. "
        f"Goals: a process death {GOALS['processes']}; a lost agent {GOALS['agent']}; a hang {GOALS['hang']}; "
        "the controller's death 0 failed requests, 5 s."
    )
    at_rest = f"At rest (no requests, {QUIET_S:.0f} s):\n\n{table(columns, rows)}"
    name = "recovery-standin" if given.standin else "recovery"
    title = "Faults and recovery" + (" (stand-in)" if given.standin else "")
    data = {"faults": outcomes, "rest": rests}
    publish(
        name,
        title,
        f"{intro}\n\n{text}\n\n{at_rest}",
        data,
        missed=list(shortfalls(outcomes)),
        short=given.short,
        arguments=" ".join(sys.argv[1:]),
    )


if __name__ == "__main__":
    main()
