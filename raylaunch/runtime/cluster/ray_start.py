"""Runs `ray start` for an embedded cluster: on the loopback address, without secrets."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from raylaunch.errors import ClusterError
from raylaunch.node.process.process_markers import ATTEMPT, DEPLOYMENT
from raylaunch.node.process.ray_daemons import RESTARTS, SUPERVISOR

START_TIMEOUT_S = 90.0
"""For each `ray start`, and for its raylet to register."""
_KILLED_S = 5.0
OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest is 75 MB; raylaunch passes almost no objects."""
LOOPBACK = "127.0.0.1"
GCS_AWAY_S = 600
"""How long raylets and workers wait for a GCS that is away."""
AGENT_PORTS = range(10_100, 13_000)
"""Below the ports that the kernel hands out by itself, and apart from those of vLLM."""

RAY_START = """
import inspect, sys, time
from pathlib import Path
import psutil
from ray import _raylet
from ray._private import services
from ray.scripts import scripts
services.resolve_ip_for_localhost = lambda host: host
scripts.get_ray_client_dependency_error = lambda: "switched off by raylaunch"

def require_raylet():
    children = psutil.Process().children()
    if any(one.name() == "raylet" and one.status() == "zombie" for one in children):
        folder = next(word[11:] for word in sys.argv if word.startswith("--temp-dir="))
        logs = Path(folder).glob("session_latest/logs/raylet*.err")
        texts = [log.read_text(errors="replace")[:600] for log in logs]
        sys.exit("Ray's raylet has exited: " + " ".join(texts))

def await_node(*words, get_node=services.get_node, limit_s=float(sys.argv.pop(1))):
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return get_node(*words)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            require_raylet()
            time.sleep(0.1)

def start_raylet(*words, start=services.start_raylet, **options):
    given = inspect.signature(start).bind(*words, **options).arguments
    name = _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME
    _raylet.persist_port(given["session_dir"], given["node_id"], name, -1)
    return start(*words, **options)

services.get_node = await_node
services.start_raylet = start_raylet
sys.stdin.readline() and scripts.main()
"""
"""`ray start`, with changes for which Ray 2.60 has no option.

Ray replaces 127.0.0.1 by the machine's own address, and then every daemon listens on all
interfaces. And it starts a client server on port 10001 unless its dependencies are missing; with
SO_REUSEPORT, so that two clusters share the port. And it gives up when its raylet has not
registered within 30 s (`_private/node.py`), which a busy machine exceeds; a raylet that has exited
it awaits all the same.

A raylet exits when it does not know the ports of its agents within 15 s, which a busy machine
exceeds as well (ray-project/ray#65983). It knows those that are given (`agent_ports`). That of the
job server it awaits nevertheless: -1 means that there is none.
"""
TOO_LATE = "the embedded Ray cluster did not start within"
"""How the error begins when this machine was too busy for Ray."""
_NO_ACL = re.compile(
    r"^[^\n]*Failed to detect NPU type\.\nTraceback[^\n]*\n(?:  [^\n]*\n)*"
    r"ModuleNotFoundError[^\n]*\n?",
    re.MULTILINE,
)
"""Ray logs this wherever NPUs are declared and there is no CANN: no reason for anything."""
_RAY_GAVE_UP = "The current node timed out during startup"

SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY(_ID)?|KEY)(_|$)",
    re.IGNORECASE,
)
"""Names of variables that hold a secret: VLLM_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ..."""


@contextlib.contextmanager
def ray_start(
    folder: str, npus: int, env: dict[str, str], ports: Sequence[str], *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """Run `ray start` for one node, which imports Ray and then waits for `begin`.

    At the end of its input it exits, so one that is never allowed to begin leaves nothing. `ports`
    are one node's options from `agent_ports`.
    """
    command = [
        sys.executable, "-c", RAY_START, str(START_TIMEOUT_S), "start", *arguments,
        f"--node-ip-address={LOOPBACK}",
        # Ray makes its folder 0777, so it gets one below ours, which is 0700.
        f"--temp-dir={folder}/r",
        f"--resources={json.dumps({'NPU': npus})}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-cpus=1", "--disable-usage-stats",
        *ports,
        "--no-monitor",
        "--include-log-monitor=false",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            # Before `with` waits for its exit: after Ctrl-C there is no point in waiting for Ray.
            process.kill()
            raise


def agent_ports(nodes: int) -> list[list[str]]:
    """Return for each node the options that fix the ports of its agents, else awaited by a raylet.

    They come from one draw: a node whose port another one has registers, and exits a second later.
    """
    options = (
        "dashboard-agent-grpc-port",
        # A port in use costs Ray four seconds of retries.
        "dashboard-agent-listen-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    ports = random.sample(AGENT_PORTS, len(AGENT_PORTS))
    free = (port for port in ports if _is_free(port))
    return [
        [f"--{option}={port}" for option, port in zip(options, free, strict=False)]
        for _ in range(nodes)
    ]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def ray_env(
    marker: str, token_file: Path, secret_names: Collection[str], gcs_store: Path
) -> dict[str, str]:
    """Return the environment of Ray's daemons: this process's, without its secrets.

    Every worker inherits it, and every driver with the token may read it. The servers get the
    secrets that their recipe names from raylaunch. The GCS keeps its tables in `gcs_store`, a
    folder that exists.
    """
    inherited = {}
    for name, value in os.environ.items():
        is_secret = name in secret_names or SECRET_NAME.search(name) is not None
        if not is_secret and not name.startswith("RAY_"):
            inherited[name] = value
    if inherited.get("RAYLAUNCH_HOME"):
        # Ray's workers run in other folders than this process.
        inherited["RAYLAUNCH_HOME"] = str(Path(inherited["RAYLAUNCH_HOME"]).absolute())
    return {
        **inherited,
        DEPLOYMENT: marker,
        ATTEMPT: "0",
        # Keeps the marker readable: Ray renames its processes over their environment.
        "SPT_NOENV": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # By default Ray's workers run at 15, and a server would inherit it.
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        **durable_gcs(str(gcs_store)),
        RESTARTS: SUPERVISOR,
    }


def durable_gcs(folder: str) -> dict[str, str]:
    """Return the variables with which a GCS that is started again has its tables (Ray 2.60)."""
    return {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": folder,
        # By default raylets and workers exit when the GCS is away for 60 s.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_AWAY_S),
    }


def begin(process: subprocess.Popen[str]) -> None:
    """Let a prepared `ray start` begin."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed; `finish` reports why
        process.stdin.write("\n")
        process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait until a `ray start` has done its work.

    Raises:
        ClusterError: it failed, or took too long; its last lines are the evidence.
    """
    is_late = False
    try:
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        is_late = True
        output = _kill(process)
    if is_late or (process.returncode and _RAY_GAVE_UP in output):
        load, _, _ = os.getloadavg()
        raise ClusterError(
            f"{TOO_LATE} {START_TIMEOUT_S:.0f} s",
            evidence=_tail(output),
            why=f"the load average of this machine is {load:.1f}, on {os.cpu_count()} CPUs",
            todo="`raylaunch start` again; if the load is low, Ray's lines above show why it waits",
        )
    if process.returncode:
        raise ClusterError(
            f"the embedded Ray cluster did not start (exit status {process.returncode})",
            evidence=_tail(output),
            todo="the lines above are Ray's; `raylaunch start` may simply be tried again",
        )


def _kill(process: subprocess.Popen[str]) -> str:
    """Kill a `ray start`; return what it had printed. Its daemons are killed by their marker."""
    process.kill()
    try:
        output, _ = process.communicate(timeout=_KILLED_S)
    except subprocess.TimeoutExpired as error:
        # A daemon has the pipe open.
        printed = error.output or b""
        output = printed if isinstance(printed, str) else printed.decode(errors="replace")
    return output


def _tail(output: str) -> str:
    return "\n".join(_NO_ACL.sub("", output).strip().splitlines()[-8:])
