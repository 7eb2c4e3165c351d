"""The dry run of both servers of `a2-dual` by the real vLLM and vllm-ascend, asked and cached.

Both questions are put at the same moment, as `check` puts them on two nodes; here they share the
cores. The NPUs are simulated, the weights a folder with a config.json: see docs/simulated-npus.md.
Needs `make ascend-sim`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from report import ROOT, publish, spread

from raylaunch.node.probe.engine_dry_run import dry_run
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

sys.path.insert(0, str(ROOT / "tests" / "ascend_sim"))

from model_folders import write_model

SIMULATED = ROOT / ".ascend-sim" / "bin"
ASKED_S, CACHED_S = 25.0, 1.0
"""Goals for both servers."""
ROUNDS = 3


def plan_of(folder: Path) -> LaunchPlan:
    """Return the plan of a2-dual on two example hosts."""
    loaded = read("a2-dual", [f"model.path={write_model(read('a2-dual').recipe, folder)}"])
    return build_plan(loaded, [Facts(f"192.0.2.{10 + n}", interface="eth0") for n in range(2)])


def ask_both(plan: LaunchPlan, folder: Path) -> float:
    """Return the seconds until both servers are answered. `folder` holds HOME and the caches."""
    path = f"{SIMULATED}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "HOME": str(folder)}

    def ask(server: int) -> None:
        report = dry_run(plan, [server], environ, folder / f"node-{server}")
        assert report.answers[server].became, report

    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(ask, range(2)))
    return time.monotonic() - began


def measure(rounds: int) -> dict[str, list[float]]:
    """Measure with an empty home in each round, and again with what the first question left."""
    found: dict[str, list[float]] = {"asked_s": [], "cached_s": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name:
            ask = partial(ask_both, plan_of(Path(name) / "model"), Path(name))
            found["asked_s"].append(ask())
            found["cached_s"].append(ask())
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="one round; the page stays as it is")
    short = options.parse_args().short
    if not (SIMULATED / "vllm").exists():
        raise SystemExit("there is no .ascend-sim: run `make ascend-sim`")
    found = measure(1 if short else ROUNDS)
    missed = [
        f"dry run: {max(found[key]):.1f} s, {what}"
        for key, goal, what in (("asked_s", ASKED_S, "asked"), ("cached_s", CACHED_S, "cached"))
        if max(found[key]) > goal
    ]
    text = (
        "vLLM 0.23.0 and vllm-ascend 0.23.0.post1 on simulated NPUs build the engine configuration "
        f"of both servers of `a2-dual` in {spread(found['asked_s'])} s when they are asked at the "
        f"same moment on these cores, with no file cached, and in {spread(found['cached_s'], 3)} s "
        f"from the cache. Goals: {ASKED_S:g} and {CACHED_S:g} s."
    )
    publish("dry_run", "Dry run", text, found, missed=missed, short=short)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
