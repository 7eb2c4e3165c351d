"""Ray clusters and command lines for tests: every process marked, every folder the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from raylaunch.node.process.process_markers import (
    ANY_INSTANCE,
    ATTEMPT,
    DEPLOYMENT,
    terminate_marked,
)

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests" / "standin" / "bin" / "vllm"
START_DEADLINE_S = 120
COMMAND_DEADLINE_S = 240


def clean_env(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a new user: nothing of Ray or raylaunch but what the test says."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "RAYLAUNCH_HOME"))
    }
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAYLAUNCH_HOME": str(home),
        "RAYLAUNCH_LOG_DIR": str(home / "logs"),
        "STANDIN_PYTHON": sys.executable,
        **extra,
    }


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, below those that the kernel deals out: a worker of Ray once took one of these."""
    with contextlib.ExitStack() as stack:
        probes: list[socket.socket] = []
        while len(probes) < count:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
                probes.append(probe)
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Run:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@dataclass
class User:
    """A person at a shell: runs `raylaunch` as a process of its own, in its own home."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return clean_env(self.home, **self.extra)

    def run(self, *words: str, deadline_s: float = COMMAND_DEADLINE_S, **extra: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "raylaunch", *words],
            env={**self.env, **extra},
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    def popen(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "raylaunch", *words],
            env={**self.env, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def python(self, program: str, deadline_s: float = COMMAND_DEADLINE_S) -> Run:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr)


@dataclass
class RayNodes:
    """Ray nodes on this machine with NPUs declared by hand, started as an operator would: with `ray start`."""

    folder: Path
    record: Path
    env: dict[str, str]
    address: str = ""
    marker: str = field(default_factory=lambda: f"@tests-{secrets.token_hex(4)}")
    started: int = 0

    def start(self, npus: list[int]) -> None:
        (port,) = free_ports(1)
        self._start_one(npus[0], "--head", f"--port={port}", "--include-dashboard=false")
        ip = next(json.loads(line)["ip"] for line in [self._own_ip()])
        self.address = f"{ip}:{port}"
        for count in npus[1:]:
            self.add(count)

    def add(self, npus: int) -> None:
        self._start_one(npus, f"--address={self.address}")

    def _own_ip(self) -> str:
        program = "import ray.util, json; print(json.dumps({'ip': ray.util.get_node_ip_address()}))"
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=self._env(),
        ).stdout.splitlines()[-1]

    def _env(self) -> dict[str, str]:
        return {**self.env, DEPLOYMENT: self.marker, ATTEMPT: "0", "SPT_NOENV": "1"}

    def _start_one(self, npus: int, *words: str) -> None:
        self.started += 1
        done = subprocess.run(
            [
                sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words,
                f"--temp-dir={self.folder}", f"--resources={json.dumps({'NPU': npus})}", "--num-cpus=1",
                "--object-store-memory=80000000", "--disable-usage-stats", "--dashboard-agent-listen-port=0",
                "--min-worker-port=0", "--max-worker-port=0", "--no-monitor", "--include-log-monitor=false",
            ],
            env=self._env(), capture_output=True, text=True, timeout=START_DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        left = terminate_marked(self.marker, instance=ANY_INSTANCE, grace_s=1)
        assert not left, left


def await_true(condition, what: str, deadline_s: float = 60.0):
    """Look until `condition` holds; what is awaited here tells nobody."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


def model_folder(
    folder: Path, *, heads: int = 48, kv_heads: int = 8, model_type: str = "minimax_m2"
) -> Path:
    """A folder that looks like weights: enough for the checks and for the stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = b"{}      "
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder
