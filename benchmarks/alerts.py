"""Real Prometheus on a deployment: which alerts fire, and what it costs to watch it.

Each of twelve faults shall fire its own alert, which clears; an adopted server and ten healthy
minutes shall fire none.
Two groups of `local-replicas` with the stand-in of the tests, on an embedded Ray cluster of two
nodes. A fault that only a start shows (the stand-in plays it in its first attempt) gets a
deployment of its own beside them. Then the metrics and the page (in Chromium) of 64 servers, which
are values (alerts_many.py).
Needs Debian's packages `prometheus` and `chromium`. `--part` measures one part again, and keeps the
others of the stored result.
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
import report
from alerts_cost import PERIOD_S, measure_cost
from alerts_many import measure_many
from alerts_prometheus import missing_programs, running_prometheus
from alerts_rounds import CLEARS_S, FAULTS, FIRES_S, SHAPE, Round, run_faults, strays
from alerts_views import disagreements, metrics_address, missing_browser, read_samples, watch_top
from availability_service import Service, clients_of, running_service
from report import publish, spread, table

Result = TypeVar("Result")

COST = 0.005
SCRAPE_S = 0.2
PAGE_S = 1.0
TOP = 0.03
"""Goals: of a core for two servers; an answer and a page of MANY servers; `top`, of a core."""
MANY = 64
SCRAPES = 20
HEALTHY_S = 600.0
HEALTHY = "healthy"
COSTS = "cost"
ALERTS = "faults"
LARGE = "many"
PARTS = {HEALTHY: "healthy", COSTS: "scrape_s", ALERTS: "rounds", LARGE: "many"}
"""Each part, and something that only it measures."""


def shortfalls(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each goal about alerts that was missed."""
    missed = [f"alerts: healthy, and {alert} fired" for alert in found["healthy"]]
    missed += [f"alerts: {text} fired beside the faults" for text in found["strays"]]
    missed += [f"alerts: {text}" for text in found["disagree"]]
    for one in (Round(**one) for one in found["rounds"]):
        said = [f"{alert} fired too" for alert in one.others]
        if one.problem:
            said.append(one.problem)
        elif one.fired_s is None and one.expected:
            said.append(f"{one.expected} did not fire")
        elif one.fired_s is not None and one.fired_s > FIRES_S:
            said.append(f"{one.expected} fired after {one.fired_s:.0f} s")
        if one.cleared_s is not None and one.cleared_s > CLEARS_S:
            said.append(f"{one.expected} cleared after {one.cleared_s:.0f} s")
        missed += [f"alerts: {one.fault}: {text}" for text in said]
    return missed


def dear(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each goal about the cost that was missed."""
    missed = []
    used = statistics.median(found["scrape_s"]) / PERIOD_S
    if used > COST:
        missed.append(f"alerts: the metrics take {100 * used:.1f} % of a core")
    many_s = statistics.median(found["many"])
    if many_s > SCRAPE_S:
        missed.append(f"alerts: {1000 * many_s:.0f} ms for {MANY} servers")
    page_s = statistics.median(found["pages"])
    if page_s > PAGE_S:
        missed.append(f"alerts: {page_s:.1f} s until the page of {MANY} servers is drawn")
    if found["top"] > TOP:
        missed.append(f"alerts: top takes {100 * found['top']:.1f} % of a core")
    return missed


# -- two groups --------------------------------------------------------------------------------


def measure_healthy(folder: Path, scale: float) -> dict[str, Any]:
    """Wait for what fires without a reason; `scale` shortens the time."""
    with running_service(folder, SHAPE) as service, clients_of(service):
        home = Path(service.user.env["RAYLAUNCH_HOME"])
        with running_prometheus(folder / "prometheus", home) as log:
            time.sleep(scale * HEALTHY_S)
            disagree = compare(service)
            healthy = [one.alert for one in log.since(0.0)]
        top = watch_top(service.user, service.name)
    return {
        "healthy": healthy,
        "healthy_s": scale * HEALTHY_S,
        "disagree": disagree,
        "top": top,
        "load": round(os.getloadavg()[0], 1),
    }


def compare(service: Service) -> list[str]:
    """Return where metrics and `status` disagree."""
    address = metrics_address(Path(service.user.env["RAYLAUNCH_HOME"]), service.name)
    before = service.status()
    answer = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=60).raise_for_status()
    return disagreements(before, read_samples(answer.text), service.status())


def measure_faults(folder: Path, faults: Sequence[str]) -> dict[str, Any]:
    """Let faults happen, with clients; return what fired."""
    with running_service(folder, SHAPE) as service, clients_of(service):
        home = Path(service.user.env["RAYLAUNCH_HOME"])
        with running_prometheus(folder / "prometheus", home) as log:
            rounds = run_faults(service, log, faults)
            beside = strays(rounds, log.since(0.0))
    return {"rounds": [asdict(one) for one in rounds], "strays": beside}


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
    missed = [*shortfalls(found), *dear(found)]
    agree = "disagreed" if found["disagree"] else "agreed"
    intro = (
        "Debian's Prometheus with the files of `raylaunch monitoring`, on two groups of "
        "`local-replicas` (the stand-in of the tests) under 4 plain and 4 streaming clients. "
        f"{found['healthy_s'] / 60:.0f} healthy minutes fired "
        f"{', '.join(found['healthy']) or 'no alert'}. Metrics and `status` {agree}. Goals: "
        f"each fault its own alert within {FIRES_S:.0f} s and no other, cleared {CLEARS_S:.0f} s "
        f"after the group is ready; {100 * COST} % of a core; {1000 * SCRAPE_S:.0f} ms; a page in "
        f"{PAGE_S:g} s; {100 * TOP:.0f} % of a core for `top`."
    )
    notes = "\n".join(f"- {text}" for text in missed)
    wrong = f"Missed:\n\n{notes}" if missed else "Every goal was met."
    text = f"{intro}\n\n{table(HEAD, [row(one) for one in rounds])}\n\n{costs(found)}\n\n{wrong}"
    publish("alerts", "Metrics and alerts", text, found, missed=missed, short=short)
    return missed


def costs(found: Mapping[str, Any]) -> str:
    """Return the sentences about what it costs to watch a deployment."""
    scrape_ms = [1000 * one for one in found["scrape_s"]]
    rest = statistics.median(found["rest"])
    used = statistics.median(found["scrape_s"]) / PERIOD_S
    many_ms = [1000 * one for one in found["many"]]
    return (
        f"A scrape of two idle servers took {spread(scrape_ms, 0)} ms of CPU time of the "
        f"controller and the agents together (windows with and without scrapes took turns, "
        f"{len(scrape_ms)} of each; at rest they take {100 * rest:.1f} % of a core). That is "
        f"{100 * used:.2f} % of a core for one scrape every {PERIOD_S:g} s. "
        f"`top` took {100 * found['top']:.1f} % of a core under those clients (load average "
        f"{found['load']} on {os.cpu_count()} cores). With {MANY} servers, which are values here, "
        f"a scrape took {spread(many_ms, 0)} ms, and their page was drawn "
        f"{spread(found['pages'], 2)} s after the click on its link (Chromium, each time a server "
        "that had read nothing)."
    )


def measure(parts: Sequence[str], faults: Sequence[str], scale: float) -> dict[str, Any]:
    """Measure the parts, each in a process of its own."""
    found: dict[str, Any] = {}
    if HEALTHY in parts:
        found |= run_alone(measure_healthy, scale)
    if COSTS in parts:
        found |= run_alone(measure_cost, scale)
    if ALERTS in parts:
        found |= run_alone(measure_faults, faults)
    if LARGE in parts:
        found |= run_alone(measure_many, MANY, SCRAPES)
    return found


def with_stored(found: Mapping[str, Any], *, short: bool) -> dict[str, Any]:
    """Return a result with those parts of the stored one that were not measured again."""
    path = (report.SHORT if short else report.RESULTS) / "alerts.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    merged = {**stored, **found}
    if "rounds" in found and "rounds" in stored:
        again = {one["fault"] for one in found["rounds"]}
        kept = [one for one in stored["rounds"] if one["fault"] not in again]
        rounds = [*kept, *found["rounds"]]
        merged["rounds"] = sorted(rounds, key=lambda one: FAULTS.index(one["fault"]))
    return merged


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--part", action="append", choices=PARTS, help="only this part")
    options.add_argument("--fault", action="append", choices=FAULTS, help="only this fault")
    options.add_argument("--short", action="store_true", help="1 fault; the page stays as it is")
    given = options.parse_args()
    if missing := missing_programs() or missing_browser():
        raise SystemExit(missing)
    faults = given.fault or (FAULTS[:1] if given.short else FAULTS)
    parts = given.part or ([ALERTS] if given.fault else list(PARTS))
    found = measure(parts, faults, 0.1 if given.short else 1.0)
    if given.part or given.fault:
        found = with_stored(found, short=given.short)
    lacking = [part for part, key in PARTS.items() if key not in found]
    if lacking:
        report.store("alerts", found, short=given.short)
        print(f"kept; --part {' --part '.join(lacking)} has not been measured yet")
        return 0
    return 1 if publish_alerts(found, short=given.short) else 0


if __name__ == "__main__":
    sys.exit(main())
