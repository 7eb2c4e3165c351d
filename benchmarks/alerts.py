"""Real Prometheus on a deployment: which alerts fire, and what the metrics cost.

Each of twelve faults shall fire its own alert, which clears; ten healthy minutes shall fire none.
Two groups of `local-replicas` with the stand-in of the tests, on an embedded Ray cluster of two
nodes. A fault that only a start shows (the stand-in plays it in its first attempt) gets a
deployment of its own beside them. Needs Debian's package `prometheus`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from alerts_prometheus import missing_programs, running_prometheus
from alerts_rounds import CLEARS_S, FAULTS, FIRES_S, SHAPE, Round, run_fault
from availability_service import clients_of, running_service
from recovery import NAME as MANY_NAME, User, actors, cpu_s, running_servers
from report import publish, spread, table

from raylaunch.monitoring.targets import KIND

Result = TypeVar("Result")

COST = 0.005
SCRAPE_S = 0.2
"""Goals: of a core for two servers, and one answer for MANY servers."""
MANY = 64
SCRAPES = 20
INTERVAL_S = 5.0
HEALTHY_S = 600.0
BASELINE_S = 120.0


def shortfalls(rounds: Sequence[Round], healthy: Sequence[str]) -> list[str]:
    """Return a sentence for each goal about alerts that was missed."""
    missed = [f"alerts: healthy, and {alert} fired" for alert in healthy]
    for one in rounds:
        said = [f"{alert} fired too" for alert in one.others]
        if one.problem:
            said.append(one.problem)
        elif one.fired_s is None:
            said.append(f"{one.expected} did not fire")
        elif one.fired_s > FIRES_S:
            said.append(f"{one.expected} fired after {one.fired_s:.0f} s")
        if one.cleared_s is not None and one.cleared_s > CLEARS_S:
            said.append(f"{one.expected} cleared after {one.cleared_s:.0f} s")
        missed += [f"alerts: {one.fault}: {text}" for text in said]
    return missed


def dear(cost: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each goal about the cost that was missed."""
    missed = []
    used = cost["scraped"] - cost["unscraped"]
    if used > COST:
        missed.append(f"alerts: the metrics take {100 * used:.1f} % of a core")
    many_s = statistics.median(cost["many"])
    if many_s > SCRAPE_S:
        missed.append(f"alerts: {1000 * many_s:.0f} ms for {MANY} servers")
    return missed


# -- cost --------------------------------------------------------------------------------------


def cpu_of(processes: Sequence[psutil.Process], seconds: float) -> float:
    """Return the part of a core that processes take together while time passes."""
    before = sum(map(cpu_s, processes))
    began = time.monotonic()
    time.sleep(seconds)
    return (sum(map(cpu_s, processes)) - before) / (time.monotonic() - began)


def measure_alerts(folder: Path, faults: Sequence[str], scale: float) -> dict[str, Any]:
    """Measure alerts and CPU time; `scale` shortens the times in which nothing happens."""
    cost = {}
    with running_service(folder, SHAPE) as service:
        home = Path(service.user.env["RAYLAUNCH_HOME"])
        controller, agents = actors(service.user)
        with clients_of(service):
            cost["unscraped"] = cpu_of([controller, *agents], scale * BASELINE_S)
            with running_prometheus(folder / "prometheus", home) as log:
                cost["scraped"] = cpu_of([controller, *agents], scale * HEALTHY_S)
                healthy = [one.alert for one in log.since(0.0)]
                rounds = [run_fault(service, log, fault) for fault in faults]
    return {
        "rounds": [asdict(one) for one in rounds],
        "healthy": healthy,
        "healthy_s": scale * HEALTHY_S,
        "load": round(os.getloadavg()[0], 1),
        **cost,
    }


def measure_many(folder: Path) -> list[float]:
    """Return the seconds of scrapes of MANY servers, one in the usual interval of 5 s each."""
    user = User(folder, standin=True)
    with running_servers(user, MANY):
        [target] = [
            entry["targets"][0]
            for entry in json.loads((folder / "monitoring" / f"{MANY_NAME}.json").read_text())
            if entry["labels"][KIND] == "raylaunch"
        ]
        times = []
        for _ in range(SCRAPES):
            time.sleep(INTERVAL_S)
            began = time.monotonic()
            httpx.get(f"http://{target}/metrics", trust_env=False, timeout=60).raise_for_status()
            times.append(time.monotonic() - began)
        return times


def run_alone(work: Callable[..., Result], *given: object) -> Result:
    """Run a part in a process and a folder of its own: Ray reads a cluster's token once in one."""
    with (
        tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone,
    ):
        return alone.submit(work, Path(name), *given).result()


# -- report ------------------------------------------------------------------------------------

HEAD = ("fault", "its alert", "fired after its detection, s", "cleared after ready, s", "others")


def row(one: Round) -> list[str]:
    """Return the row of a round."""
    times = [one.fired_s, one.cleared_s]
    shown = ["-" if value is None else f"{value:.0f}" for value in times]
    return [one.fault, one.expected or "-", *shown, ", ".join(one.others) or "none"]


def publish_alerts(found: Mapping[str, Any], *, short: bool) -> list[str]:
    """Write section and result; return the goals that were missed."""
    rounds = [Round(**one) for one in found["rounds"]]
    missed = [*shortfalls(rounds, found["healthy"]), *dear(found)]
    minutes = found["healthy_s"] / 60
    used = 100 * (found["scraped"] - found["unscraped"])
    many_ms = [1000 * one for one in found["many"]]
    intro = (
        "Debian's Prometheus with the files of `raylaunch monitoring`, on two groups of "
        "`local-replicas` (the stand-in of the tests) under 4 plain and 4 streaming clients. "
        f"{minutes:.0f} healthy minutes fired {', '.join(found['healthy']) or 'no alert'}. Goals: "
        f"each fault its own alert within {FIRES_S:.0f} s and no other, cleared {CLEARS_S:.0f} s "
        f"after the group is ready; {100 * COST} % of a core; {1000 * SCRAPE_S:.0f} ms."
    )
    cost = (
        f"Controller and agents of the two servers took {100 * found['unscraped']:.2f} % of a core "
        f"unscraped and {100 * found['scraped']:.2f} % scraped every 5 s: {used:.2f} % for the "
        f"metrics. A scrape of {MANY} servers took {spread(many_ms, 0)} ms. Load average "
        f"{found['load']} on {os.cpu_count()} cores."
    )
    notes = "\n".join(f"- {text}" for text in missed)
    wrong = f"Missed:\n\n{notes}" if missed else "Every goal was met."
    text = f"{intro}\n\n{table(HEAD, [row(one) for one in rounds])}\n\n{cost}\n\n{wrong}"
    publish("alerts", "Metrics and alerts", text, found, missed=missed, short=short)
    return missed


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fault", action="append", choices=FAULTS, help="only this fault")
    options.add_argument("--short", action="store_true", help="1 fault; the page stays as it is")
    given = options.parse_args()
    if missing := missing_programs():
        raise SystemExit(missing)
    faults = given.fault or (FAULTS[:1] if given.short else FAULTS)
    found = run_alone(measure_alerts, faults, 0.1 if given.short else 1.0)
    found["many"] = run_alone(measure_many)
    return 1 if publish_alerts(found, short=given.short) else 0


if __name__ == "__main__":
    sys.exit(main())
