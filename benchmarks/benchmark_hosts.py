"""The two test hosts on which the peers are measured: fresh, warmed up, optionally with Ray.

Every run of a peer gets hosts of its own (namespaces, see tests/hosts/hosts.py), so nothing of the
one before can be left. They hold the generated model and vLLM's cache, as hosts do on which the
model was served before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import ROOT

from raylaunch.node.model.tiny_model import Kind, ensure_tiny_model

sys.path.insert(0, str(ROOT / "tests" / "hosts"))
from hosts import HOME, Host, build_hosts

ASKING = Path(__file__).with_name("asking")
SITE = f"{HOME}/.raylaunch/vllm-metadata/0.32.0"
"""Where raylaunch and its scripts put the metadata of vLLM; the other peers get it there too."""
MOE_PLUGIN = Path(__file__).with_name("moe_on_cpu.py")
START_S = 300.0
TAIL = 12
TOUCHED_BYTES = 8 << 30
NAMED_ERROR = re.compile(r"\b\w*(?:Error|Exception): (?!Traceback).+")
VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TP_SOCKET_IFNAME": "eth0",
    "PYTHONPATH": SITE,
}
"""What recipe local-dual gives its servers, for the peers that plan nothing."""
VLLM_ARGS = {"enforce-eager": True, "max-model-len": 1024, "max-num-seqs": 8, "dtype": "float32"}


@dataclass(frozen=True)
class Model:
    """A generated model that all peers serve, and the flags they serve it with."""

    kind: Kind
    args: Mapping[str, Any]
    sets: tuple[str, ...] = ()
    """What makes recipe local-dual serve it."""

    @property
    def path(self) -> str:
        """Where raylaunch makes it, on each host."""
        return f"{HOME}/.raylaunch/models/tiny-{self.kind}"

    @property
    def words(self) -> list[str]:
        """The flags on a command line."""
        return [word for name, value in self.args.items() for word in _flag(name, value)]


MODELS = {
    "dense": Model("qwen3", VLLM_ARGS),
    "moe": Model(
        "minimax_m2",
        {**VLLM_ARGS, "enable-expert-parallel": True},
        ("model.tiny=minimax_m2", "model.type=minimax_m2", "parallel.expert=true"),
    ),
}
"""Dense: the ranks are independent.

MoE with experts across the ranks: they step together, one lost stops all.
"""
DENSE = MODELS["dense"]
RAY_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_DEDUP_LOGS": "0",
}
RAY_PORT = 6379


class PeerError(Exception):
    """A peer did not do what it should; the text is what it said."""


@dataclass
class Command:
    """One command of a user on one host, and where its output goes."""

    host: Host
    process: subprocess.Popen[str]
    log: Path

    def tail(self) -> str:
        """The end of what it said, and last the latest line that names an error."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace")).splitlines()
        named = [found[0] for line in lines if (found := NAMED_ERROR.search(line))]
        return "\n".join([*lines[-TAIL:], *named[-1:]])


@dataclass
class TwoHosts:
    """Two hosts for one run of one peer. `folder` keeps the logs of the run on this machine."""

    hosts: tuple[Host, Host]
    folder: Path
    model: Model = DENSE
    commands: list[Command] = field(default_factory=list)

    @property
    def head(self) -> Host:
        """The host with the API."""
        return self.hosts[0]

    @property
    def ray_env(self) -> dict[str, str]:
        """What a driver on a host needs to talk to the cluster."""
        return {**RAY_ENV, "RAY_ADDRESS": f"{self.head.ip}:{RAY_PORT}"}

    def command(
        self, host: Host, words: list[str], env: Mapping[str, str] | None = None, **more: int
    ) -> Command:
        """Start a command of the user on a host."""
        log = self.folder / f"{len(self.commands)}-{host.name}-{Path(words[0]).name}.log"
        with log.open("w") as sink:
            process = host.popen(words, env=env, stdout=sink, stderr=subprocess.STDOUT, **more)
        self.commands.append(Command(host, process, log))
        return self.commands[-1]

    def ask(
        self, program: str, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program of `asking/` on the head; what it prints is read from its stdout.

        To kill what is returned would end `nsenter` and not the program: close its stdin, or the
        hosts.
        """
        command = ["python", "-u", str(ASKING / program), *words]
        errors = (self.folder / f"{program}.err").open("w")
        with errors:
            return self.head.popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )


@contextmanager
def open_hosts(folder: Path, cache: Path, model: Model = DENSE) -> Iterator[TwoHosts]:
    """Fresh hosts with model and cache; afterwards the cache is kept for the next ones."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        keys = folder / "keys"
        keys.mkdir(exist_ok=True)
        h0, h1 = build_hosts(["h0", "h1"], keys, stack).hosts
        for host in (h0, h1):
            ensure_tiny_model(model.kind, host.path(model.path))
            _put_metadata(host)
            if model is MODELS["moe"]:
                _put_plugin(host)
            if cache.exists():
                shutil.copytree(cache, host.path(f"{HOME}/.cache"))
        yield TwoHosts((h0, h1), folder, model)
        if not cache.exists() and h0.path(f"{HOME}/.cache").exists():
            shutil.copytree(h0.path(f"{HOME}/.cache"), cache, symlinks=True)


def _put_metadata(host: Host) -> None:
    """The metadata-only distribution that the CPU wheel of vLLM lacks."""
    text = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
    host.put(f"{SITE}/vllm-0.32.0+cpu.dist-info/METADATA", text)


def _put_plugin(host: Host) -> None:
    """Install what vLLM lacks to serve an MoE over several ranks on CPU, for every peer's servers."""
    name = MOE_PLUGIN.stem
    host.put(f"{SITE}/{MOE_PLUGIN.name}", MOE_PLUGIN.read_text())
    host.put(
        f"{SITE}/{name}-1.0.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    )
    host.put(
        f"{SITE}/{name}-1.0.dist-info/entry_points.txt",
        f"[vllm.general_plugins]\n{name} = {name}:register\n",
    )


def put_npu_platform(host: Host) -> None:
    """A vLLM platform plug-in: the CPU, which Ray knows as NPU.

    Stock vLLM has no Ray resource for the CPU.
    """
    code = (
        "from vllm.platforms.cpu import CpuPlatform\n\n\n"
        "class NpuNamedCpu(CpuPlatform):\n    ray_device_key = 'NPU'\n\n\n"
    )
    host.put(f"{HOME}/plugin/npu_named_cpu.py", code)
    host.put(
        f"{HOME}/plugin/npu_named_cpu_entry.py",
        "def name():\n    return 'npu_named_cpu.NpuNamedCpu'\n",
    )
    info = f"{HOME}/plugin/npu_named_cpu-1.0.dist-info"
    host.put(f"{info}/METADATA", "Metadata-Version: 2.1\nName: npu-named-cpu\nVersion: 1.0\n")
    host.put(
        f"{info}/entry_points.txt",
        "[vllm.platform_plugins]\nnpu_named_cpu = npu_named_cpu_entry:name\n",
    )


def start_ray(pair: TwoHosts, env: Mapping[str, str]) -> None:
    """A cluster of 16 NPUs declared by hand on both hosts, as `ray up` leaves one.

    `env` reaches every worker.
    """
    for host in pair.hosts:
        join_ray(pair, host, env)


def join_ray(pair: TwoHosts, host: Host, env: Mapping[str, str]) -> None:
    """Start Ray on one of the hosts."""
    address = f"{pair.head.ip}:{RAY_PORT}"
    way = [f"--address={address}"]
    if host is pair.head:
        way = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
    words = [
        *("ray", "start", *way, f"--node-ip-address={host.ip}", '--resources={"NPU": 8}'),
        *("--num-cpus=4", "--object-store-memory=80000000", "--disable-usage-stats"),
        *("--include-log-monitor=false", "--max-worker-port=19999"),
    ]
    host.run(words, env={**RAY_ENV, **env}, timeout=120)


def await_first_token(
    pair: TwoHosts, url: str, watcher: subprocess.Popen[str], limit_s: float = START_S
) -> float:
    """The time of the first answer.

    Raises:
        PeerError: a command of the user ended before, or there was no answer within `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    try:
        while watcher.poll() is None:
            broken = [one for one in pair.commands if one.process.poll() not in (None, 0)]
            if broken:
                raise PeerError(f"exit code {broken[0].process.returncode}: {broken[0].tail()}")
            if time.monotonic() > deadline:
                tails = "\n".join([*(one.tail() for one in pair.commands), *actor_errors(pair)])
                raise PeerError(f"no answer from {url} within {limit_s:g} s: {tails}")
            time.sleep(0.2)  # two kinds of processes are awaited at once
    finally:
        watcher.kill()
    assert watcher.stdout is not None
    return float(json.loads(watcher.stdout.read())["at"])


@contextmanager
def one_scheduling_group() -> Iterator[None]:
    """Have the kernel weigh processes, as in a container, and not whole sessions (autogroups).

    Both hosts share the cores of this machine. Where each session gets the same share, a server
    alone in its session is stalled for seconds by another one's busy workers. Two servers started from
    one terminal are not: 10 to 12 requests/s instead of 18 to 19 at 4 clients,
    TTFT p99 1.2 to 3.5 s instead of 0.06 to 0.08 s (measured with the same two scripts). It holds
    for processes that are started inside.
    """
    switch = Path("/proc/sys/kernel/sched_autogroup_enabled")
    before = switch.read_text() if switch.exists() else ""
    try:
        if before:
            switch.write_text("0")
        yield
    finally:
        if before:
            switch.write_text(before)


def actor_errors(pair: TwoHosts) -> list[str]:
    """Return the last line of each host's actor logs that names an error: Ray does not print those."""
    found = []
    for host in pair.hosts:
        logs = [*host.path("/tmp/ray").glob("session_2*/logs/serve/*.log"),
                *host.path("/tmp/ray").glob("session_2*/logs/worker-*.err")]  # fmt: skip
        for log in sorted(logs, key=lambda path: path.stat().st_mtime):
            found += [match[0] for match in NAMED_ERROR.finditer(log.read_text(errors="replace"))][
                -1:
            ]
    return found


OWNERS = (
    (
        "vLLM",
        r"VLLM::|bin/vllm serve|multiprocessing\.(spawn|resource_tracker)|EngineCoreActor|DPCoordinator",
    ),
    ("raylaunch's command", r"bin/raylaunch"),
    ("raylaunch's controller", r"ray::Controller"),
    ("raylaunch's agents and guards", r"ray::Agent|node/process/guard\.py"),
    ("Ray", r"\bray(::|/|\.|let\b)"),
)
"""Whose a process is, by what its command line looks like; the first that fits."""


def cpu_by_owner(pair: TwoHosts) -> dict[str, float]:
    """Return the CPU seconds used so far by each owner's processes on the hosts, Ray's included."""
    ticks = os.sysconf("SC_CLK_TCK")
    used: dict[str, float] = {}
    for host in pair.hosts:
        for pid, line in host.processes().items():
            owner = next((owner for owner, pattern in OWNERS if re.search(pattern, line)), "")
            with contextlib.suppress(OSError):
                fields = host.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                used[owner] = used.get(owner, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    return used


def touch_memory() -> None:
    """Write to as much memory as a peer needs, and free it, before its clock starts.

    A virtual machine gives freed memory back to its host, and what it then takes again costs 2 s per
    GB (measured): a peer that needs more than the one before it would pay for that.
    """
    subprocess.run([sys.executable, "-c", f"bytearray(b'x') * {TOUCHED_BYTES}"], check=False)


def _flag(name: str, value: object) -> list[str]:
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def pythonpath(*folders: str) -> str:
    """For hosts: the given folders and the one with vLLM's metadata."""
    return ":".join([*folders, SITE])


PEERS_SITE = Path(sysconfig.get_path("data")) / "peers"
"""Packages that only Ray Serve needs: beside the environment, so that the others run without them.
"""
SERVE_PACKAGES = ("grpcio-reflection", "jsonref", "mmh3", "watchfiles", "pyarrow")


def install_serve() -> str:
    """Install what Ray Serve LLM needs beyond this environment into PEERS_SITE; "" on success."""
    if all(any(PEERS_SITE.glob(f"{name.replace('-', '_')}*.dist-info")) for name in SERVE_PACKAGES):
        return ""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--target",
        str(PEERS_SITE),
        *SERVE_PACKAGES,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip()[-500:]
