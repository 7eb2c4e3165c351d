"""What is compared: raylaunch, the guide's two bash scripts, vLLM's own Ray backend, Ray Serve LLM.

Each knows what stands before the command (a Ray cluster, rendered scripts), the command itself, and
which process a fault ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmark_hosts import (
    ASKING,
    HOME,
    PEERS_SITE,
    VLLM_ENV,
    Host,
    PeerError,
    TwoHosts,
    install_serve,
    put_npu_platform,
    pythonpath,
    start_ray,
)

NAME = "bench"
API_PORT = 20004
SERVE_PORT = 8000
FAULTS = ("kill-engine", "kill-headless", "kill-primary", "stop-headless")
"""As the drill names them; stop-headless is a hang."""

Prey = Mapping[str, tuple[int, str]]
"""For each fault the host (0 or 1) and what the command line of the process that it hits looks
like."""
OF_VLLM_SERVE: Prey = {
    "kill-engine": (1, r"VLLM::EngineCore"),
    "kill-headless": (1, r"bin/vllm serve"),
    "kill-primary": (0, r"bin/vllm serve"),
    "stop-headless": (1, r"bin/vllm serve"),
}


@dataclass(frozen=True)
class Peer:
    """One way to serve. `prepare` is not timed, `start` gives the user's commands and is."""

    name: str
    title: str
    before: str
    """What is there before the command, for the table."""
    port: int
    prepare: Callable[[TwoHosts], None]
    start: Callable[[TwoHosts], None]
    prey: Prey
    """Empty: its faults are not measured."""
    health: str = "/health"
    acts: bool = False
    """Whether something is there that could start the servers again."""


def on_hosts(pair: TwoHosts, recipe: str = "local-dual") -> tuple[str, ...]:
    """The recipe on real hosts, with the model of the pair."""
    sets = ("network.interface=auto", *pair.model.sets)
    return (recipe, *(word for one in sets for word in ("--set", one)))


def prepare_scripts(pair: TwoHosts, shape: tuple[str, ...] = ()) -> None:
    """The scripts that raylaunch renders for these hosts, each on its own."""
    hosts = [word for host in pair.hosts for word in ("--host", f"{host.ip}%eth0")]
    words = [
        "raylaunch",
        "render",
        *(shape or on_hosts(pair)),
        *hosts,
        "--as",
        "bash",
        "--out",
        f"{HOME}/scripts",
    ]
    pair.head.run(words)
    scripts = pair.head.path(f"{HOME}/scripts")
    for number, host in enumerate(pair.hosts):
        (script,) = scripts.glob(f"server-{number}-*.sh")
        host.put(f"{HOME}/server.sh", script.read_text())


def _start_scripts(pair: TwoHosts) -> None:
    for host in pair.hosts:
        pair.command(host, ["bash", f"{HOME}/server.sh"], env={"PYTHONPATH": pythonpath()})


def _prepare_ray(pair: TwoHosts) -> None:
    start_ray(pair, {})


def _prepare_scripts_beside_ray(pair: TwoHosts) -> None:
    prepare_scripts(pair)
    _prepare_ray(pair)


def start_raylaunch(
    pair: TwoHosts, shape: tuple[str, ...] = (), recipe: str = "local-dual"
) -> None:
    """The command of the user; `shape` replaces the words for the recipe."""
    words = ["raylaunch", "-q", "start", *(shape or on_hosts(pair, recipe)), "--name", NAME]
    pair.command(pair.head, words, env=pair.ray_env)


def _prepare_vllm_ray(pair: TwoHosts) -> None:
    for host in pair.hosts:
        put_npu_platform(host)
    start_ray(pair, {**VLLM_ENV, "PYTHONPATH": pythonpath(f"{HOME}/plugin")})


def _start_vllm_ray(pair: TwoHosts) -> None:
    words = [
        *("vllm", "serve", pair.model.path, "--served-model-name", "tiny"),
        *("--host", "0.0.0.0", "--port", str(API_PORT)),
        *(
            "--data-parallel-size",
            "2",
            "--data-parallel-size-local",
            "1",
            "--data-parallel-backend",
            "ray",
        ),
        *("--data-parallel-address", pair.head.ip, "--api-server-count", "1", *pair.model.words),
    ]
    env = {
        **pair.ray_env,
        **VLLM_ENV,
        "PYTHONPATH": pythonpath(f"{HOME}/plugin"),
        "VLLM_HOST_IP": pair.head.ip,
    }
    pair.command(pair.head, words, env=env)


def _prepare_serve(pair: TwoHosts) -> None:
    if problem := install_serve():
        raise PeerError(f"pip cannot install what Ray Serve needs: {problem}")
    start_ray(pair, {**VLLM_ENV, "PYTHONPATH": pythonpath(str(PEERS_SITE))})


def _start_serve(way: str) -> Callable[[TwoHosts], None]:
    def start(pair: TwoHosts) -> None:
        env = {**pair.ray_env, **VLLM_ENV, "PYTHONPATH": pythonpath(str(PEERS_SITE))}
        program = str(ASKING / "serve_app.py")
        engine = json.dumps(
            {name.replace("-", "_"): value for name, value in pair.model.args.items()}
        )
        words = ["python", "-u", program, way, pair.model.path, str(SERVE_PORT), engine]
        pair.command(pair.head, words, env=env, stdin=-1)

    return start


SCRIPTS = Peer(
    "scripts",
    "the guide's two bash scripts",
    "nothing; both started at the same moment",
    API_PORT,
    prepare_scripts,
    _start_scripts,
    OF_VLLM_SERVE,
)
SCRIPTS_BESIDE_RAY = replace(
    SCRIPTS,
    name="scripts-ray",
    title="the two bash scripts, beside an idle Ray cluster",
    before="an idle Ray cluster: what its daemons cost on these cores",
    prepare=_prepare_scripts_beside_ray,
    prey={},
)
RAYLAUNCH = Peer(
    "raylaunch",
    "raylaunch start",
    "a Ray cluster",
    API_PORT,
    _prepare_ray,
    start_raylaunch,
    OF_VLLM_SERVE,
    acts=True,
)
RAYLAUNCH_REPLICAS = replace(
    RAYLAUNCH,
    name="raylaunch-replicas",
    title="raylaunch start, two replicas behind the gateway",
    port=SERVE_PORT,
    start=partial(start_raylaunch, recipe="local-replicas"),
    prey={fault: OF_VLLM_SERVE[fault] for fault in ("kill-engine", "kill-primary")},
)
VLLM_RAY = Peer(
    "vllm-ray",
    "vLLM `--data-parallel-backend ray`",
    "a Ray cluster; a plug-in that gives the CPU a Ray resource (stock vLLM refuses: no Ray device key)",
    API_PORT,
    _prepare_vllm_ray,
    _start_vllm_ray,
    {
        "kill-engine": (1, r"ray::.*EngineCoreActor"),
        "kill-primary": (0, r"bin/vllm serve"),
        "stop-headless": (1, r"ray::.*EngineCoreActor"),
    },
)
SERVE = Peer(
    "serve",
    "Ray Serve LLM, two replicas",
    "a Ray cluster",
    SERVE_PORT,
    _prepare_serve,
    _start_serve("replicas"),
    {
        "kill-engine": (1, r"VLLM::EngineCore"),
        "kill-headless": (1, r"ray::ServeReplica.*(LLM|DP)(Server|Deployment)"),
        "kill-primary": (0, r"ray::ProxyActor"),
        "stop-headless": (1, r"ray::ServeReplica.*(LLM|DP)(Server|Deployment)"),
    },
    health="/-/healthz",
    acts=True,
)
SERVE_DP = Peer(
    "serve-dp",
    "Ray Serve LLM, data-parallel gang",
    "a Ray cluster",
    SERVE_PORT,
    _prepare_serve,
    _start_serve("dp"),
    SERVE.prey,
    health="/-/healthz",
    acts=True,
)
OURS = frozenset({RAYLAUNCH.name, RAYLAUNCH_REPLICAS.name})
PEERS = (SCRIPTS, SCRIPTS_BESIDE_RAY, RAYLAUNCH, RAYLAUNCH_REPLICAS, VLLM_RAY, SERVE, SERVE_DP)
COMPARED = {
    "dense": PEERS,
    "moe": (
        SCRIPTS,
        RAYLAUNCH,
        VLLM_RAY,
        SERVE_DP,
    ),  # one engine over both hosts, which two replicas are not
}


def events(pair: TwoHosts) -> list[dict[str, Any]]:
    """What raylaunch's controller has told."""
    done = pair.head.run(["raylaunch", "events", NAME, "-o", "json"], env=pair.ray_env)
    return [json.loads(line) for line in done.stdout.splitlines()]


def created_at(pair: TwoHosts) -> float:
    """When raylaunch's controller was created."""
    done = pair.head.run(["raylaunch", "status", NAME, "-o", "json"], env=pair.ray_env)
    return float(json.loads(done.stdout)["created_at"])


def find_prey(pair: TwoHosts, prey: Prey, fault: str) -> tuple[Host, int, str]:
    """The process that the fault hits: its host, its pid there, its command line.

    Raises:
        PeerError: there is none.
    """
    number, pattern = prey[fault]
    host = pair.hosts[number]
    found = {pid: line for pid, line in host.processes().items() if re.search(pattern, line)}
    if not found:
        seen = "; ".join(sorted({line[:60] for line in host.processes().values()}))
        raise PeerError(f"no process like {pattern!r} on {host.name}: {seen}")
    pid = min(found)
    return host, pid, found[pid][:80]


def below(host: Host, pid: int) -> list[int]:
    """The process `pid` of the host and all that descend from it."""
    parents = {}
    for entry in host.path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [pid]
    for one in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == one]
    return found
