"""All hosts lose their power at the same time and come back in every order, minutes apart.

Three test hosts with one server each, started by the command lines of the units that
`raylaunch service install` writes (power_hosts.py). Ready again without a person is the goal, and
that a host which is missing is named. Rounds add up: --add keeps those of the stored result.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from availability_service import AwaitedError
from benchmark_hosts import one_scheduling_group
from power_hosts import (
    CLUSTER_UNIT,
    DEPLOYMENT,
    DEPLOYMENT_UNIT,
    NAMES,
    RECIPE,
    PoweredHost,
    Site,
    open_site,
)
from report import RESULTS, SHORT, publish, table

ORDERS = tuple("".join(order) for order in permutations("012"))
"""Numbers of the hosts as they come back; 0 is the head."""
PAUSE_S = 60.0
FIRST_READY_S, READY_S = 600.0, 420.0
FIRST_PAUSE_S = 15.0
"""At the first start, which is not measured: Ray 2.60 gives a raylet 15 s for its own agents."""
NAMED_S = 45.0
"""Goal: a host that is missing for so long after the head has power is named by then.

`start --follow` names it after 30 s, and has to start first.
"""


@dataclass
class Round:
    """What one power cut did; durations in seconds, None: not reached, or not applicable."""

    order: str
    pauses_s: list[float]
    """Between one host's power and the next: first as drawn, then as they were."""
    date: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    ready_s: float | None = None
    """From the first host's power to the ready deployment."""
    after_last_s: float | None = None
    """The same from the last host's power on."""
    named_s: dict[str, float | None] = field(default_factory=dict)
    """Hosts that were missing, and when after the head's power the first text named each."""
    ray_starts: dict[str, int] = field(default_factory=dict)
    follow_starts: int = 0
    problems: list[str] = field(default_factory=list)


def draw_pauses(seed: int, order: str) -> list[float]:
    """Return the pauses before the second and the third host."""
    drawn = random.Random(f"{seed} {order}")
    return [round(drawn.uniform(0.0, PAUSE_S), 1) for _ in range(2)]


def run_rounds(
    orders: Sequence[str], seed: int, folder: Path, logs: Path | None
) -> Iterator[Round]:
    """Cut the power once for each order.

    Raises:
        AwaitedError: the deployment was not ready before the first cut.
    """
    with one_scheduling_group(), open_site(folder) as site:
        try:
            for one in site.hosts:
                one.power_on()
                time.sleep(FIRST_PAUSE_S)
            site.head.await_ready(DEPLOYMENT_UNIT, FIRST_READY_S)
            whole = site.servers()
            for order in orders:
                one = Round(order, draw_pauses(seed, order))
                run_round(site, one, whole)
                print(json.dumps(asdict(one)), flush=True)
                yield one
                if one.ready_s is None:
                    break  # what follows would count the effects of this one
        finally:
            if logs is not None:
                site.save(logs)


def run_round(site: Site, one: Round, whole: dict[str, int]) -> None:
    """Cut the power and give it back in the order of the round."""
    site.cut_power()
    began = time.time()
    asked: list[str] = []
    for number, pause_s in zip(map(int, one.order), [0.0, *one.pauses_s], strict=True):
        time.sleep(pause_s)
        asked += ask_for_missing(site)
        site.hosts[number].power_on()
    last_at = time.time()
    one.pauses_s = pauses_of(site, one.order)
    try:
        ready_at = site.head.await_ready(DEPLOYMENT_UNIT, READY_S)
        one.ready_s = round(ready_at - began, 1)
        one.after_last_s = round(ready_at - last_at, 1)
        one.problems += [*asked, *check_service(site, whole)]
    except AwaitedError as error:
        one.problems.append(str(error))
    one.named_s = name_times(site)
    one.ray_starts = {host.ip: len(host.starts(CLUSTER_UNIT)) for host in site.hosts}
    one.follow_starts = len(site.head.starts(DEPLOYMENT_UNIT))


def pauses_of(site: Site, order: str) -> list[float]:
    """Return how long after one another the hosts got their power."""
    times = [site.hosts[int(number)].on_at or 0.0 for number in order]
    return [round(later - earlier, 1) for earlier, later in pairwise(times)]


def missing_hosts(site: Site, at: float) -> list[PoweredHost]:
    """Return the hosts that had no power at that time, the goal's time after the head had it."""
    head_at = site.head.on_at
    if head_at is None or at < head_at + NAMED_S:
        return []
    return [host for host in site.hosts if host.on_at is None or host.on_at >= at]


def ask_for_missing(site: Site) -> list[str]:
    """Return what `status` lacks of the hosts that are missing for so long that it names them."""
    missing = missing_hosts(site, time.time())
    if not missing:
        return []
    done = site.run("status", DEPLOYMENT, "-o", "json")
    text = done.stdout + done.stderr
    return [
        f"`raylaunch status` did not name {host.ip}: {' '.join(text.split())[-300:]}"
        for host in missing
        if host.ip not in text
    ]


def name_times(site: Site) -> dict[str, float | None]:
    """Return when a notification to the service manager named each missing host."""
    head_at = site.head.on_at
    assert head_at is not None
    found: dict[str, float | None] = {}
    for host in site.hosts:
        if host.on_at is None or host.on_at < head_at + NAMED_S:
            continue
        texts = site.head.notifications(DEPLOYMENT_UNIT)
        named = next((one.at for one in texts if is_waiting(one.text, host.ip)), None)
        found[host.ip] = None if named is None else round(named - head_at, 1)
    return found


def is_waiting(text: str, ip: str) -> bool:
    """Whether a text names a host as one that is waited for."""
    awaited = text.partition("waiting for")[2]
    return re.search(rf"(?<![\d.]){re.escape(ip)}(?![\d.]*\d)", awaited) is not None


def check_service(site: Site, whole: dict[str, int]) -> Iterator[str]:
    """Yield what is wrong with a service that calls itself ready."""
    try:
        status = site.status()
    except AwaitedError as error:
        yield str(error)
        return
    if status["phase"] != "ready":
        yield f"status: {status['phase']}"
    if (count := len({server["ip"] for server in status["servers"]})) != len(NAMES):
        yield f"status: servers on {count} hosts"
    if (now := site.servers()) != whole:
        yield f"processes of servers: {now}, before the cut {whole}"
    answer = site.ask(status["endpoint"])
    if answer != "200":
        yield f"a request: {answer}"


def rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Return the lines of the table."""
    return [
        [
            ", ".join(NAMES[int(number)] for number in one.order),
            " and ".join(f"{pause:.0f}" for pause in one.pauses_s),
            _seconds(one.ready_s),
            _seconds(one.after_last_s),
            ", ".join(f"{ip} after {_seconds(s)}" for ip, s in one.named_s.items()) or "-",
            " + ".join(str(count) for count in one.ray_starts.values()),
            str(one.follow_starts),
        ]
        for one in rounds
    ]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"


def missed_goals(rounds: Sequence[Round], wanted: Sequence[str] = ORDERS) -> Iterator[str]:
    """Yield the goals that were not met, a sentence each."""
    for one in rounds:
        where = f"power cut, order {one.order}"
        yield from (f"{where}: {problem}" for problem in one.problems)
        for ip, named_s in one.named_s.items():
            if named_s is None or named_s > NAMED_S:
                shown = "never" if named_s is None else f"after {named_s:.0f} s"
                yield f"{where}: {ip} was missing and named {shown}, the goal is {NAMED_S:g} s"
    for order in sorted(set(wanted) - {one.order for one in rounds}):
        yield f"power cut, order {order}: not measured"


HEAD = (
    "order of the hosts (h0: Ray's head)",
    "pauses, s",
    "ready after the first, s",
    "after the last, s",
    "missing host named, s after the head's power",
    "starts of Ray's units",
    "starts of the deployment's unit",
)


def publish_rounds(rounds: Sequence[Round], seed: int, *, short: bool) -> list[str]:
    """Write the section; return the missed goals."""
    missed = list(missed_goals(rounds, () if short else ORDERS))
    ready = sum(one.ready_s is not None for one in rounds)
    loads = ", ".join(f"{one.load:g}" for one in rounds)
    intro = (
        f"Three test hosts (namespaces) with one server each, `{RECIPE}` with the stand-in of "
        "the tests, started by the units of `service install`: their command lines and "
        "settings as printed, played by a program in the place of systemd. All hosts lose their "
        "power at the same time (SIGKILL to every process, network cut, /tmp, /run and /dev/shm "
        "emptied, a new boot id, pids from the beginning), and come back in every order, "
        f"with pauses drawn from 0 to {PAUSE_S:g} s (seed {seed}; `status` may prolong one). "
        "Ready without a person: "
        f"{ready} of {len(rounds)}. Goals: all of them; one server per host; a request answered; "
        f"a host that is missing {NAMED_S:g} s after the head had power is named, by `status` too. "
        f"Load average before each round: {loads}, on {os.cpu_count()} cores."
    )
    notes = "\n".join(f"- {' '.join(text.split())}" for text in missed)
    verdict = f"Missed:\n\n{notes}" if missed else "Every goal was met."
    publish(
        "power_cut",
        "Power cut",
        f"{intro}\n\n{table(HEAD, rows(rounds))}\n\n{verdict}",
        {"seed": seed, "rounds": [asdict(one) for one in rounds]},
        missed=missed,
        short=short,
    )
    return missed


def stored_rounds(folder: Path) -> list[Round]:
    """Return the rounds of the stored result."""
    file = folder / "power_cut.json"
    stored: list[dict[str, Any]] = json.loads(file.read_text())["rounds"] if file.exists() else []
    return [Round(**one) for one in stored]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--order", action="append", choices=ORDERS, help="only this order")
    options.add_argument("--seed", type=int, default=15, help="of the pauses")
    options.add_argument(
        "--add", action="store_true", help="keep other orders of the stored result"
    )
    options.add_argument("--logs", type=Path, help="keep the hosts' logs in this folder")
    options.add_argument("--short", action="store_true", help="one order; the page stays as it is")
    given = options.parse_args()
    orders = given.order or (["120"] if given.short else list(ORDERS))
    kept = stored_rounds(SHORT if given.short else RESULTS) if given.add else []
    rounds = [one for one in kept if one.order not in orders]
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as folder:
        for one in run_rounds(orders, given.seed, Path(folder), given.logs):
            rounds = sorted([*rounds, one], key=lambda each: each.order)
            # After each round: what was measured is kept if a later one is interrupted.
            missed = publish_rounds(rounds, given.seed, short=given.short)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
