"""Time from command to first token: `raylaunch start local-dual` against two commands by hand.

Both serve the same generated model with the same real vLLM on CPU; the rounds are interleaved. The
hand-typed way is
`raylaunch render`'s scripts started at the same moment, and polled for a completion every 0.1 s.
Needs root, for `pair.one_scheduling_group`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from benchmark_hosts import one_scheduling_group
from report import publish, spread, table

GOAL = 1.1
PORTS = ("--set", "network.http_port=28114", "--set", "network.rpc_port=28347")
ENDPOINT = "http://127.0.0.1:28114/v1"
DEADLINE_S = 300
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def raylaunch(home: Path, *words: str) -> str:
    env = {**ENV, "RAYLAUNCH_HOME": str(home), "RAYLAUNCH_LOG_DIR": str(home / "logs")}
    done = subprocess.run(
        [sys.executable, "-m", "raylaunch", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"raylaunch {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def time_raylaunch(home: Path) -> dict[str, float]:
    started = time.time()
    raylaunch(home, "-q", "start", "local-dual", "--name", "bench", *PORTS)
    total = time.time() - started
    events = [
        json.loads(line) for line in raylaunch(home, "events", "bench", "-o", "json").splitlines()
    ]
    created = json.loads(raylaunch(home, "status", "bench", "-o", "json"))["created_at"]
    raylaunch(home, "stop", "bench")
    spawned = min(event["at"] for event in events if event["text"] == "spawned")
    ready = next(
        event["at"] for event in events if event["kind"] == "phase" and event["text"] == "ready"
    )
    return {
        "total": total,
        "embedded Ray cluster": created - started,
        "reserve, probe, check, spawn": spawned - created,
        "vLLM: spawn to first token": ready - spawned,
        "report to the command": started + total - ready,
    }


def time_by_hand(scripts: list[Path]) -> float:
    started = time.time()
    servers = [
        subprocess.Popen(
            ["bash", str(script)],
            env=ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for script in scripts
    ]
    try:
        await_completion()
        return time.time() - started
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in servers:
            server.wait(60)


def await_completion() -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 1, "temperature": 0}
    deadline = time.time() + DEADLINE_S
    while time.time() < deadline:
        try:
            if (
                httpx.post(
                    f"{ENDPOINT}/completions", json=body, timeout=30, trust_env=False
                ).status_code
                == 200
            ):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit("the hand-typed servers did not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="one round; the page stays as it is")
    given = parser.parse_args()
    rounds = 1 if given.short else given.rounds
    with one_scheduling_group(), tempfile.TemporaryDirectory(prefix="rl-bench-") as folder:
        home = Path(folder)
        warm = time_raylaunch(home)  # not counted: makes the model, fills the page cache
        print("warm-up", warm)
        raylaunch(
            home, "render", "local-dual", "--as", "bash", "--out", str(home / "scripts"), *PORTS
        )
        scripts = sorted((home / "scripts").glob("server-*.sh"))
        ours, theirs = [], []
        for number in range(rounds):
            ours.append(time_raylaunch(home))
            theirs.append(time_by_hand(scripts))
            print(number, ours[-1], theirs[-1], flush=True)
    ratios = [one["total"] / other for one, other in zip(ours, theirs, strict=True)]
    rows = [["two commands by hand, to the first token", spread(theirs)]]
    rows += [[f"raylaunch: {stage}", spread([one[stage] for one in ours])] for stage in ours[0]]
    rows.append(["ratio of the totals, pair by pair", spread(ratios, 2)])
    without = [
        one["vLLM: spawn to first token"] / other for one, other in zip(ours, theirs, strict=True)
    ]
    rows.append(["ratio without Ray and the command line", spread(without, 2)])
    text = f"{table(['stage', 'seconds'], rows)}\n\nGoal: a ratio of at most {GOAL}."
    missed = []
    if statistics.median(ratios) > GOAL:
        text += " **Missed**, by the start of the embedded Ray cluster; on a cluster that runs already that part is 0."
        missed = [
            f"local-dual: {statistics.median(ratios):.2f} of the two commands' time, the goal is {GOAL}"
        ]
    data = {"raylaunch": ours, "by_hand": theirs}
    publish("launch", "From command to first token", text, data, missed=missed, short=given.short)
    print(text)


if __name__ == "__main__":
    main()
