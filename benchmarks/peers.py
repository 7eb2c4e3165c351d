"""raylaunch against what a user would pick instead: from command to first token, serving, faults.

All serve the same generated model (--model) with the same real vLLM on CPU, dp=2, on the same two
test hosts (network namespaces of this machine, needs root). The rounds are interleaved: each round
runs every peer once, on fresh hosts. The first rounds also measure serving (--serving), and round k
of --faults ends with fault k. A Ray cluster stands before the command for those that need one, as
`ray up` leaves it; its start is not counted.

--add puts the rounds behind those of the stored result; --table writes the sections again from it, without measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import contenders
from benchmark_hosts import (
    DENSE,
    MODELS,
    START_S,
    VLLM_ENV,
    Model,
    PeerError,
    TwoHosts,
    await_first_token,
    cpu_by_owner,
    one_scheduling_group,
    open_hosts,
    touch_memory,
)
from contenders import COMPARED, FAULTS, RAYLAUNCH, SCRIPTS, SERVE_DP, Peer
from faults import harm
from peers_report import file_name, publish_all
from report import RESULTS, machine

LEVELS = ("1", "4", "8")
PROMPTS = 20  # per client
BENCH_S = 300.0
REFUSAL_S = 150.0
"""Ray Serve tries a replica that cannot start again and again: so long until we stop looking."""


def run_peer(
    peer: Peer,
    folder: Path,
    cache: Path,
    work: dict[str, Any],
    *,
    model: Model = DENSE,
    limit_s: float = START_S,
) -> dict[str, Any]:
    """One run of one peer on fresh hosts: launch, and what `work` wants then.

    An error ends it and is part of it.
    """
    found: dict[str, Any] = {"peer": peer.name}
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(open_hosts(folder, cache, model))
            peer.prepare(pair)
            touch_memory()
            found |= launch(peer, pair, limit_s)
            if work.get("serving"):
                found["serving"] = serve(peer, pair)
            if work.get("fault"):
                found["fault"] = harm(peer, pair, work["fault"], work["patience_s"])
        except (PeerError, AssertionError, subprocess.TimeoutExpired, OSError, ValueError) as error:
            found["error"] = f"{type(error).__name__}: {error}"[-2000:]
    return found


def launch(peer: Peer, pair: TwoHosts, limit_s: float) -> dict[str, Any]:
    """Seconds from the command to the first token, and for raylaunch where they went."""
    watcher = pair.ask("first_token.py", pair.head.ip, str(peer.port))
    time.sleep(1.0)  # the watcher's own start is not part of anything
    before = cpu_by_owner(pair)
    started = time.time()
    peer.start(pair)
    first = await_first_token(pair, f"{pair.head.ip}:{peer.port}", watcher, limit_s)
    cpu = {
        owner: seconds - before.get(owner, 0.0)
        for owner, seconds in cpu_by_owner(pair).items()
        if owner
    }
    found: dict[str, Any] = {"first_token_s": first - started, "cpu_s": cpu}
    if peer.name == RAYLAUNCH.name:
        pair.commands[0].process.wait(60)
        returned = time.time()
        found["stages"] = stages(
            contenders.events(pair), started, contenders.created_at(pair), first, returned
        )
    return found


def stages(
    events: list[dict[str, Any]], started: float, created: float, first: float, returned: float
) -> dict[str, float]:
    """Return the seconds per stage from raylaunch's events; a stage lasts until the last server left it."""

    def last(text: str) -> float | None:
        begun: dict[int, float] = {}
        for event in events:
            if event["kind"] == "stage" and text in event["text"]:
                begun.setdefault(event["server"], event["at"])
        return max(begun.values(), default=None)

    def phase(name: str) -> float | None:
        return next(
            (event["at"] for event in events if (event["kind"], event["text"]) == ("phase", name)),
            None,
        )

    ends = {
        "command: import, connect to Ray, create the controller": created,
        "Ray: reserve, start the agents": last("reserved"),
        "probe": last("probed"),
        "plan, check, ways between the hosts": phase("starting"),
        "spawn": last("spawned"),
        "vLLM: import, configuration": last("engine connected vLLM"),
        "vLLM: worker process": last("weights"),
        "vLLM: weights": last("warm-up weights took"),
        "vLLM: warm-up": last("engine ready in"),
        "vLLM: API": last("API up"),
        "first token, seen from outside": first,
    }
    found, before = {}, started
    for stage, end in ends.items():
        if end is not None:
            found[stage] = max(0.0, end - before)
            before = max(before, end)
    ready = phase("ready")
    return found | {"(after it) ready to return of the command": returned - ready if ready else 0.0}


def serve(peer: Peer, pair: TwoHosts) -> list[dict[str, Any]]:
    """What `vllm bench serve` measures at each concurrency."""
    words = (f"http://{pair.head.ip}:{peer.port}", pair.model.path, str(PROMPTS), *LEVELS)
    bench = pair.ask("load.py", *words, env=VLLM_ENV)
    said, _ = bench.communicate(timeout=BENCH_S)
    if bench.returncode:
        raise PeerError(
            f"vllm bench serve: {(pair.folder / 'load.py.err').read_text(errors='replace')[-800:]}"
        )
    return [json.loads(line) for line in said.splitlines()]


def measure(given: argparse.Namespace, folder: Path, result: dict[str, Any]) -> None:
    peers = [peer for peer in COMPARED[given.model] if peer.name in given.peer]
    model = MODELS[given.model]
    cache = folder / "cache"
    if not given.no_warm_up:
        # Not counted: it fills vLLM's cache and the page cache.
        told(-1, run_peer(SCRIPTS, folder / "warm-up", cache, {}, model=model))
    first = max((run["round"] + 1 for run in result["runs"]), default=0)
    for number in range(first, first + given.rounds):
        turn, since = number % len(peers), number - first
        for peer in [*peers[turn:], *peers[:turn]]:
            refused = peer is SERVE_DP and model is DENSE
            if refused and number:
                continue
            fault = (
                given.fault[since]
                if peer.prey and since < min(len(given.fault), given.faults)
                else ""
            )
            work = {"serving": since < given.serving, "fault": fault, "patience_s": given.patience}
            limit_s = REFUSAL_S if refused else START_S
            found = run_peer(
                peer, folder / f"{number}-{peer.name}", cache, work, model=model, limit_s=limit_s
            )
            result["runs"].append({"round": number, **found})
            told(number, found)
            if not given.no_store and not given.short:
                publish_all(
                    result
                )  # after each run: what was measured is kept when the next one is interrupted
    if given.short and not given.no_store:
        publish_all(result, short=True)


def read_stored(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{file_name(model)}.json").read_text())
    return found


def stored(model: str) -> dict[str, Any]:
    """Return the stored result to add rounds to it; refuse other versions or another day."""
    found = read_stored(model)
    if other := {name: found[name] for name, value in machine().items() if found[name] != value}:
        raise SystemExit(f"--add: the stored result is of {other}; measure again, without it")
    return found


def told(number: int, found: dict[str, Any]) -> None:
    print(number, json.dumps(found), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", choices=sorted(MODELS), default="dense")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--serving", type=int, default=1, help="rounds that measure serving")
    options.add_argument(
        "--faults", type=int, default=len(FAULTS), help="rounds that end with a fault"
    )
    options.add_argument(
        "--fault", action="append", default=[], help="only these faults, one per round"
    )
    options.add_argument(
        "--patience", type=float, default=90.0, help="seconds to wait for a recovery"
    )
    options.add_argument("--peer", action="append", default=[], help="only these")
    options.add_argument(
        "--short", action="store_true", help="one round of launches, one of serving, no faults"
    )
    options.add_argument(
        "--add", action="store_true", help="to the stored result of the same versions"
    )
    options.add_argument("--no-warm-up", action="store_true")
    options.add_argument("--no-store", action="store_true", help="print, write no file")
    options.add_argument("--logs", type=Path, help="keep the logs of every run here")
    options.add_argument(
        "--table", action="store_true", help="only write the sections from the stored result"
    )
    given = options.parse_args()
    if given.table:
        publish_all(read_stored(given.model), restamp=False)
        return
    if os.geteuid():
        raise SystemExit("peers.py makes network namespaces: run it as root")
    if given.logs and given.logs.exists() and any(given.logs.iterdir()):
        raise SystemExit(f"--logs {given.logs}: not empty; name a new folder")
    if given.short:
        given.rounds, given.serving, given.faults = 1, 1, 0
    given.fault = given.fault or list(FAULTS)
    given.peer = given.peer or [
        peer.name for peer in COMPARED[given.model] if peer is not SERVE_DP or not given.short
    ]
    result = stored(given.model) if given.add else {"model": given.model, "runs": []}
    with one_scheduling_group(), tempfile.TemporaryDirectory(prefix="rl-peers-") as scratch:
        measure(given, given.logs or Path(scratch), result)


if __name__ == "__main__":
    main()
