"""The sections that peers.py writes, from what it measured. Pure but for `publish_all`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contenders import FAULTS, PEERS, RAYLAUNCH, SCRIPTS, SCRIPTS_BESIDE_RAY
from goals import BEYOND_S, DETECTED_S, NOTICED_S, shortfalls
from report import VERSIONS, publish, spread, table, write_section

GOAL = 1.05
NOISE = 0.9
"""A served request rate below this part of the scripts' is more than noise."""
Run = Mapping[str, Any]
HOSTS = (
    "Real vLLM on CPU, a generated tiny model, {model}, dp=2 with one rank per host, on two test hosts (network "
    "namespaces of one machine, an address each), made new for every run, with the model and vLLM's cache on them."
)
SERVED = {
    "dense": "dense (the shape of Qwen3)",
    "moe": "MoE (the shape of MiniMax-M2), expert parallel over both ranks, with a plug-in for what vLLM lacks to do "
    "that on CPU (`benchmarks/moe_on_cpu.py`)",
}
OF_WHAT = {"dense": "", "moe": ", MoE with expert parallelism"}
SERVE_RUNS = (
    "Ray Serve LLM runs with the packages that its extra wants (grpcio-reflection, jsonref, mmh3, watchfiles, pyarrow) "
    "beside the environment, and on this vLLM instead of the 0.29 that Ray 2.60 asks for; Ray's daemons give every "
    "worker normal priority (their default is niceness 15)."
)
DEFAULTS = "What the defaults of each imply:\n\n" + table(
    ("way", "what it watches", "what it does", "where that stands"),
    [
        (
            "vLLM alone: the scripts, the Ray backend",
            "the engines that the API's process talks to, for one that has exited; a worker's step, for 300 s",
            "the API exits, or continues without the rank; no part restarts a server",
            "vLLM 0.32: `check_health` of `vllm/v1/engine/async_llm.py`, `VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`",
        ),
        (
            "Ray Serve LLM",
            "each replica, asked every 10 s, with 30 s for the answer",
            "after three failures a new replica; of a data-parallel gang all (`RESTART_GANG`)",
            "Ray 2.60: `ray/serve/_private/constants.py`, `ray/serve/config.py`",
        ),
        (
            "raylaunch",
            "the exit of each process, reported by the kernel; each rank's counters; an idle rank's token, for 15 s; agents",
            "diagnosis, then the whole group restarts",
            "`health` of the recipe, docs/supervision.md",
        ),
    ],
)


def publish_all(result: Mapping[str, Any], *, short: bool = False, restamp: bool = True) -> None:
    """Write all sections; without `restamp` keep the versions that `result` was measured with."""
    arguments = "" if model_of(result) == "dense" else f"--model {model_of(result)}"
    for name, title, text, missed in sections(result):
        if restamp:
            file = file_name(model_of(result))
            data = result if name == file else {"see": f"{file}.json"}
            publish(name, title, text, data, missed=missed, short=short, arguments=arguments)
        else:
            stamp = {key: result[key] for key in ("date", "machine", *VERSIONS)}
            write_section(name, title, text, stamp, arguments)


def sections(result: Mapping[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    """Name, title, text and missed goals of each section that there is something for."""
    runs: Sequence[Run] = result["runs"]
    model = model_of(result)
    file, of_what = file_name(model), OF_WHAT[model]
    made = [(file, f"Launch, beside what one would pick instead{of_what}", *launches(runs, model))]
    if any("serving" in run for run in runs):
        made.append(
            (
                f"{file}-serving",
                f"Serving, beside what one would pick instead{of_what}",
                *serving(runs, model),
            )
        )
    if any("fault" in run for run in runs):
        title = f"Faults, beside what one would pick instead{of_what}"
        made.append((f"{file}-faults", title, *faults(runs, model)))
    return made


def model_of(result: Mapping[str, Any]) -> str:
    """The key of `pair.MODELS`."""
    return str(result.get("model", "dense"))


def file_name(model: str) -> str:
    """Of the stored result, and of the launch section."""
    return "peers" if model == "dense" else f"peers-{model}"


def picture_name(section: str) -> str:
    """Of a section's picture, which `tools/benchmark_pictures.py` draws from the stored result."""
    return f"benchmark-{section}"


def picture(section: str, shows: str) -> str:
    """The line of a section that shows its picture."""
    return f"![{shows}](images/{picture_name(section)}.svg)"


def launches(runs: Sequence[Run], model: str) -> tuple[str, list[str]]:
    """Text and missed goals of the launch section."""
    times = {peer.name: {r["round"]: r["first_token_s"] for r in of(runs, peer.name) if "first_token_s" in r}
             for peer in PEERS}  # fmt: skip
    base = times[SCRIPTS.name]
    rows, missed, beside = [], [], ""
    for peer in PEERS:
        found, pairs = (
            times[peer.name],
            [one / base[n] for n, one in times[peer.name].items() if n in base],
        )
        shown = spread(list(found.values())) if found else "-"
        if tried := of(runs, peer.name):
            rows.append(
                [peer.title, peer.before, len(tried), shown, spread(pairs, 2) if pairs else "-"]
            )
        if peer is SCRIPTS_BESIDE_RAY and pairs:
            beside = f", which beside an idle Ray cluster is {statistics.median(pairs):.2f} itself"
        if peer is RAYLAUNCH and pairs and (ratio := statistics.median(pairs)) > GOAL:
            missed.append(
                f"launch{OF_WHAT[model]}: {ratio:.2f} of the bash scripts' time, the goal is {GOAL}{beside}"
            )
    head = [
        "way",
        "there before",
        "runs",
        "command to first token, s",
        "ratio to the scripts, pair by pair",
    ]
    hosts = HOSTS.format(model=SERVED[model])
    parts = [
        f"{hosts} {SERVE_RUNS} The rounds are interleaved. Goal: raylaunch at most {GOAL} times the scripts.",
        picture(file_name(model), "Command to first token, by way"),
        table(head, rows),
    ]
    if stages := [run["stages"] for run in of(runs, RAYLAUNCH.name) if "stages" in run]:
        names = stages[0]
        rows = [[name, spread([one[name] for one in stages if name in one])] for name in names]
        parts.append(
            f"Where raylaunch's time goes, from its events:\n\n{table(['stage', 'seconds'], rows)}"
        )
    if shares := cpu_shares(runs):
        parts.append(shares)
    if problems := errors(runs):
        parts.append(f"What did not run here:\n\n{problems}")
    return "\n\n".join(parts), missed


def cpu_shares(runs: Sequence[Run]) -> str:
    """Return a table of CPU seconds per owner from the command to the first token."""
    rows, owners = [], list(dict.fromkeys(owner for run in runs for owner in run.get("cpu_s", ())))
    for peer in PEERS:
        found = [run["cpu_s"] for run in of(runs, peer.name) if "cpu_s" in run]
        if found:
            cells = [spread([one.get(owner, 0.0) for one in found]) for owner in owners]
            rows.append([peer.title, *cells, spread([sum(one.values()) for one in found])])
    if not rows:
        return ""
    intro = (
        "Both hosts share the cores, and a launch keeps them busy: every second of CPU counts. Used from the command "
        "to the first token, seconds (a process that has exited by then is not counted; what an actor of Ray's that serves "
        "vLLM uses stands under Ray):"
    )
    return f"{intro}\n\n{table(['way', *owners, 'all'], rows)}"


def serving(runs: Sequence[Run], model: str) -> tuple[str, list[str]]:
    """Text and missed goals of the serving section."""
    levels = sorted({one["concurrency"] for run in runs for one in run.get("serving", ())})
    base = by_level(runs, SCRIPTS.name)
    rows, missed = [], []
    for level in levels:
        beside = ""
        for peer in PEERS:
            found = by_level(runs, peer.name).get(level, [])
            if not found:
                continue
            rates = [one["request_throughput"] for one in found]
            cells = [
                spread([one[key] for one in found])
                for key in ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")
            ]
            ratio = "-"
            if base.get(level):
                part = statistics.median(rates) / statistics.median(
                    one["request_throughput"] for one in base[level]
                )
                ratio = f"{part:.2f}"
                if peer is SCRIPTS_BESIDE_RAY:
                    beside = f", which beside an idle Ray cluster is {ratio} itself"
                if peer is RAYLAUNCH and part < NOISE:
                    what = f"serving{OF_WHAT[model]}: {ratio} of the scripts' requests/s at {level} clients"
                    missed.append(f"{what}, the goal is {NOISE}{beside}")
            failed = sum(one.get("failed", 0) for one in found)
            rows.append([level, peer.title, spread(rates), ratio, *cells, failed])
    head = [
        "clients",
        "way",
        "requests/s",
        "ratio to the scripts",
        "TTFT, ms",
        "TTFT p99, ms",
        "TPOT, ms",
        "failed",
    ]
    intro = (
        "`vllm bench serve` on the host with the API: random prompts of 32 tokens, 16 tokens out. Clients and servers "
        "share the cores, as do Ray's daemons where there are any: the scripts beside an idle cluster show what those "
        "cost. Goal: raylaunch within noise of the scripts; nothing of it is in the way of a request."
    )
    drawn = picture(f"{file_name(model)}-serving", "Requests per second, by way and clients")
    return f"{intro}\n\n{drawn}\n\n{table(head, rows)}", missed


def by_level(runs: Sequence[Run], name: str) -> dict[int, list[Mapping[str, Any]]]:
    """What was measured for a peer, by concurrency."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for run in of(runs, name):
        for one in run.get("serving", ()):
            found.setdefault(one["concurrency"], []).append(one)
    return found


def faults(runs: Sequence[Run], model: str) -> tuple[str, list[str]]:
    """Text and missed goals of the faults section."""
    titles = {peer.name: peer.title for peer in PEERS}
    rows, missed = [], []
    for fault in FAULTS:
        for peer in PEERS:
            for run in of(runs, peer.name):
                one = run.get("fault")
                if one is None or one["fault"] != fault:
                    continue
                rows.append([fault, titles[peer.name], *fault_row(one)])
                missed += shortfalls([one]) if peer is RAYLAUNCH else []
    head = [
        "fault",
        "way",
        "detected after, s",
        "by",
        "every rank answers again after, s",
        "requests failed",
    ]
    intro = (
        "SIGKILL to one process while requests flow: the engine of the second host; the server of the second host "
        "(Ray Serve: the replica); the process with the API (Ray Serve: its HTTP proxy). stop-headless is a hang: "
        "SIGSTOP to the server of the second host and all processes below it (Ray backend: to the actor that is the "
        "engine). Detected: the first of the API's health, the exit of a command on its terminal, and the status that "
        "Ray Serve or raylaunch shows; it does not mean that anything is restarted. Goals of raylaunch: detected in "
        f"{DETECTED_S:g} s, a hang in {NOTICED_S['stop-headless']:g} s; then back {BEYOND_S:g} s beyond the servers' "
        "own start."
    )
    drawn = picture(f"{file_name(model)}-faults", "Detection and recovery, by fault and way")
    return f"{intro}\n\n{drawn}\n\n{table(head, rows)}\n\n{DEFAULTS}", missed


def fault_row(one: Mapping[str, Any]) -> list[str]:
    """The cells of one fault after its name and the peer's."""
    if "skipped" in one:
        return ["-", one["skipped"], "-", "-"]
    noticed = "never" if one["detection_s"] is None else f"{one['detection_s']:.2f}"
    if one.get("served_on"):
        back = "not interrupted: the orphaned engine keeps serving"
    elif one["recovery_s"] is not None:
        back = f"{one['recovery_s']:.1f}"
        back += f" (own start {one['start_s']:.1f})" if one.get("start_s") else ""
    elif one.get("gone"):
        back = "never: the API has exited, and nothing restarts it"
    elif one.get("problem"):
        back = f"no: {one['problem']}"
    else:
        back = f"not within {one['waited_s']:.0f} s"
    by = one["detected_by"] or "nothing"
    return [noticed, by, back, f"{one['failed']} of {one['requests']}"]


def errors(runs: Sequence[Run]) -> str:
    """A list of what failed, with the peers' own words."""
    titles = {peer.name: peer.title for peer in PEERS}
    lines = [
        f"- {titles[run['peer']]} (round {run['round'] + 1}): `{shortened(run['error'])}`"
        for run in runs
        if "error" in run
    ]
    return "\n".join(lines)


def shortened(error: str) -> str:
    """The most telling line of an error: the last that names one, else its end."""
    lines = [line.strip() for line in error.replace("`", "'").splitlines() if line.strip()]
    named = [line for line in lines if "Error:" in line or "Error(" in line]
    return (named or lines or [""])[-1][-400:]


def of(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs of one peer."""
    return [run for run in runs if run["peer"] == name]
