"""Real `vllm serve` processes on this machine's CPU, each in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from raylaunch.node.model.tiny_model import ensure_tiny_model
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata

START_S = 600.0
POLL_S = 0.5
ENVIRONMENT = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ("--served-model-name=tiny", "--host=127.0.0.1", "--enforce-eager", "--dtype=float32")
FLAGS += ("--max-model-len=1024", "--max-num-seqs=16")


@dataclass
class VllmServer:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill_engine(self) -> None:
        """SIGKILL the engine: the API server has to notice."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        engine = next(child for child in children if "EngineCore" in " ".join(child.cmdline()))
        engine.kill()

    def kill(self) -> None:
        """SIGKILL the whole server."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


def start_vllm(folder: Path, port: int, kind: str = "qwen3") -> VllmServer:
    model = ensure_tiny_model(kind, folder / kind)
    metadata = folder / "vllm-metadata" / "0.32.0"
    ensure_vllm_metadata(metadata)
    log = folder / f"vllm-{port}.log"
    program = Path(sys.executable).with_name("vllm")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", str(model), f"--port={port}", *FLAGS],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(metadata)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return VllmServer(port, process, log)
