"""Faults and changes under clients that never retry: what they notice behind the gateway.

Two groups, or one, of `local-replicas` on an embedded Ray cluster of two nodes; 4 plain and 4
streaming clients. With the stand-in of the tests, or with --vllm real vLLM on CPU. Rounds add up:
--add keeps those of the stored result, so that a long measurement can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from availability_hosts import run_cut_host
from availability_nodes import run_lose_node
from availability_ray import run_ray
from availability_rounds import (
    AGENT_FAULTS,
    BEYOND_S,
    FALLBACK_BEYOND_S,
    GROUP_FAULTS,
    PLANE_FAULTS,
    Round,
    run_broken,
    run_faults,
    run_upgrades,
)
from availability_service import AwaitedError, Shape
from report import RESULTS, SHORT, publish, spread, table

from raylaunch.errors import RaylaunchError

ROUNDS = 20
UPGRADES = 5
PARTS = (
    "replicas",
    "one-group",
    "planes",
    "upgrade-beside",
    "upgrade-in-place",
    "broken",
    "cut-host",
    "lose-node",
    "ray",
)
OF_HOSTS = ("cut-host", "lose-node")
WORDS = {
    "replicas": "two groups",
    "one-group": "one group",
    "planes": "two groups, gateway and controller",
    "upgrade-beside": "two groups, room for two more",
    "upgrade-in-place": "two groups, no room",
    "broken": "two groups, recipes that cannot serve",
    "cut-host": "two groups, on two hosts",
    "lose-node": "dp=2 on two hosts, its fallback dp=1",
    "ray": "one group of two servers",
}


def run_part(part: str, rounds: int, folder: Path, limit_s: float, standin: bool) -> list[Round]:
    """Run one part in this process, which stays connected to the part's own cluster."""
    if part == "cut-host":
        return run_cut_host(rounds, folder, limit_s)
    if part == "lose-node":
        return run_lose_node(rounds, folder, limit_s)
    if part == "ray":
        return run_ray(rounds, folder, limit_s, standin=standin)
    spare = part in ("upgrade-beside", "broken")
    shape = Shape(1 if part == "one-group" else 2, spare, standin)
    of_group = (*GROUP_FAULTS, *AGENT_FAULTS)
    faults = {"replicas": of_group, "one-group": of_group}
    if part.startswith("upgrade"):
        return run_upgrades(part, shape, rounds, folder, limit_s)
    if part == "broken":
        return run_broken(part, shape, folder, limit_s)
    return run_faults(part, shape, faults.get(part, PLANE_FAULTS), rounds, folder, limit_s)


def run_alone(part: str, rounds: int, limit_s: float, *, standin: bool) -> list[Round]:
    """Run a part in a process and a folder of its own; one that breaks is a missed goal."""
    with (
        tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name,
        # Ray reads a cluster's token once in a process.
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone,
    ):
        try:
            return alone.submit(run_part, part, rounds, Path(name), limit_s, standin).result()
        except (RaylaunchError, AwaitedError, SystemExit) as error:
            return [Round(part, "start", problems=[_one_line(str(error))[:300]])]


def rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Return the table: a row for each part and kind, in order of first appearance."""
    same: dict[tuple[str, str], list[Round]] = {}
    for one in rounds:
        same.setdefault((one.part, one.kind), []).append(one)
    return [_row(part, kind, those) for (part, kind), those in same.items()]


def _row(part: str, kind: str, those: Sequence[Round]) -> list[str]:
    recovered = [one.recovery_s for one in those if one.recovery_s is not None]
    beyond = [one.beyond_s for one in those if one.beyond_s is not None]
    continued = [one.continued for one in those if one.continued is not None]
    streams = sum(one.streams for one in those)
    return [
        WORDS[part],
        kind,
        str(len(those)),
        f"{sum(one.plain_failed for one in those)} of {sum(one.plain for one in those)}",
        f"{max(one.slowest_s for one in those):.1f}",
        str(sum(one.refused for one in those)),
        str(sum(one.empty for one in those)),
        f"{streams - sum(one.streams_failed for one in those)} of {streams}",
        str(sum(continued)) if continued else "-",
        spread(recovered) if recovered else "-",
        spread(beyond) if beyond else "-",
    ]


HEAD = (
    *("deployment", "what happened", "rounds", "plain failed", "slowest plain, s", "refused"),
    *("empty 200", "streams as undisturbed", "of them continued", "back after, s"),
    "beyond the servers' own start, s",
)


def shortfalls(rounds: Sequence[Round]) -> list[str]:
    """Return a sentence per round that missed a goal."""
    missed = []
    for number, one in enumerate(rounds, 1):
        problems = list(one.problems)
        if one.beyond_s is not None and one.beyond_s > one.limit_s:
            problems.append(f"{one.beyond_s:.1f} s beyond the servers' own start")
        missed += [f"availability: {one.part}, {one.kind}, round {number}: {p}" for p in problems]
    return missed


def counted(rounds: Sequence[Round]) -> list[str]:
    """Return the shortfalls for the page: one line for each kind, with the number of rounds."""
    same: Counter[tuple[str, str, str]] = Counter()
    for one in rounds:
        texts = set(one.problems)
        if one.beyond_s is not None and one.beyond_s > one.limit_s:
            texts.add(f"more than {one.limit_s:g} s beyond the servers' own start")
        same.update((one.part, one.kind, text) for text in texts)
    return [
        f"{WORDS[part]}, {kind}, {count} rounds: {text}"
        for (part, kind, text), count in same.items()
    ]


def stored_rounds(name: str, *, short: bool) -> list[Round]:
    """Return the rounds of the stored result; none without one."""
    path = (SHORT if short else RESULTS) / f"{name}.json"
    if not path.exists():
        return []
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [Round(**one) for one in data["rounds"]]


def publish_rounds(name: str, rounds: Sequence[Round], *, standin: bool, short: bool) -> list[str]:
    """Write section and result; return the goals that were missed."""
    missed = shortfalls(rounds)
    what = "the stand-in of the tests" if standin else "real vLLM on CPU"
    loads = spread([one.load for one in rounds])
    dates = sorted({one.date for one in rounds})
    intro = (
        f"`raylaunch start local-replicas --set gateway.enabled=true` with {what}, on an embedded "
        "Ray cluster of two nodes; `on two hosts`: on test hosts, with Ray started by hand, and "
        "the network of the one without the gateway is cut; where a fallback is named, until it "
        "has served for a while: `back after` is its first answer, and the last column leaves out "
        "`health.degrade_after_s`; `one group of two servers`: "
        "`raylaunch drill local-dual`, on its own cluster (`back after`: under control again; "
        "processes, sockets and open files are counted after each fault). "
        "4 plain and 4 streaming clients that "
        "never retry; temperature 0, 16 and 200 tokens; every text is compared with the "
        f"undisturbed one. Measured {' and '.join(dates)}, load average {loads} on "
        f"{os.cpu_count()} cores. Goals: 0 plain requests failed, 0 refused, 0 empty, all streams "
        f"as undisturbed, other groups' processes untouched, {BEYOND_S:g} s beyond the servers' "
        f"own start (a hang: after its detection; a fallback: {FALLBACK_BEYOND_S:g} s)."
    )
    notes = [f"- {_one_line(text)}" for text in counted(rounds)]
    wrong = "\n\nMissed:\n\n" + "\n".join(notes) if notes else "\n\nEvery goal was met."
    publish(
        name,
        "Availability" + (" (stand-in)" if standin else ""),
        f"{intro}\n\n{table(HEAD, rows(rounds))}{wrong}",
        {"rounds": [one.as_json() for one in rounds]},
        missed=missed,
        short=short,
        arguments="" if standin else "--vllm",
    )
    return missed


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--vllm", action="store_true", help="real vLLM on CPU")
    options.add_argument("--rounds", type=int, help="of each fault; upgrades in each part")
    options.add_argument("--part", action="append", choices=PARTS, help="only this part")
    options.add_argument("--minutes", type=float, default=600, help="per part: begin none after it")
    options.add_argument("--add", action="store_true", help="keep the rounds of the stored result")
    options.add_argument("--short", action="store_true", help="1 round; the page stays as it is")
    given = options.parse_args()

    def rounds_of(part: str) -> int:
        usual = UPGRADES if part.startswith("upgrade") else ROUNDS
        return given.rounds or (1 if given.short else usual)

    name = "availability" if given.vllm else "availability-standin"
    kept = stored_rounds(name, short=given.short) if given.add else []
    standin = not given.vllm
    rounds, missed = kept, shortfalls(kept)
    # Real vLLM on two hosts at once needs more than the cores of a small machine.
    parts = given.part or [part for part in PARTS if standin or part not in OF_HOSTS]
    for part in parts:
        rounds += run_alone(part, rounds_of(part), 60 * given.minutes, standin=standin)
        # After each part: what was measured is kept if a later part is interrupted.
        missed = publish_rounds(name, rounds, standin=standin, short=given.short)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
