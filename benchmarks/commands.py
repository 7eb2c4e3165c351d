"""Measure what a command costs before it acts, beside ray, vllm and a bare typer program.

The repetitions are interleaved; the first of each is not counted. CPU seconds (user and system,
with children) tell more than the wall clock on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recovery import PORTS, User
from report import publish, spread, table

NAME = "bench-commands"
SCRIPTS = Path(sysconfig.get_path("scripts"))
HOSTS = ("--host", "192.0.2.10%enp67s0f0np0", "--host", "192.0.2.11%enp67s0f0np0")
TYPER = """
import typer
app = typer.Typer()
@app.command()
def hello(name: str, loud: bool = False) -> None:
    "Say hello."
app()
"""
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "python -c 'import typer, pydantic'": (sys.executable, "-c", "import typer, pydantic"),
    "a bare typer program --help": (sys.executable, "-c", TYPER, "--help"),
    "raylaunch --help": (str(SCRIPTS / "raylaunch"), "--help"),
    "raylaunch list": (str(SCRIPTS / "raylaunch"), "list"),
    "raylaunch plan a2-dual --host .. --host ..": (
        str(SCRIPTS / "raylaunch"),
        "plan",
        "a2-dual",
        *HOSTS,
    ),
    f"raylaunch status {NAME}": (str(SCRIPTS / "raylaunch"), "status", NAME),
    "ray --help": (str(SCRIPTS / "ray"), "--help"),
    "vllm --help": (str(SCRIPTS / "vllm"), "--help"),
}
SLOW = "vllm --help"
SLOW_ROUNDS = 3
YARDSTICK = "ray --help"


def run(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process and its children."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)[:200]} exited {process.returncode}: {said.decode()[-500:]}"
        )
    return wall, used.ru_utime + used.ru_stime


def measure(rounds: int, env: Mapping[str, str]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every command, round by round."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in COMMANDS}
    for number in range(-1, rounds):
        for name, command in COMMANDS.items():
            if name == SLOW and number >= SLOW_ROUNDS:
                continue
            wall, cpu = run(command, env)
            if number >= 0:
                found[name]["wall"].append(wall)
                found[name]["cpu"].append(cpu)
    return found


def write(found: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[str, list[str]]:
    """Text of the section, and what of raylaunch is slower than the yardstick."""
    base = statistics.median(found[YARDSTICK]["cpu"])
    rows, missed = [], []
    for name, times in found.items():
        ratio = statistics.median(times["cpu"]) / base
        rows.append([f"`{name}`" if "program" not in name else name, len(times["wall"]), spread(times["wall"], 2),
                     spread(times["cpu"], 2), f"{ratio:.2f}"])  # fmt: skip
        if name.startswith("raylaunch") and ratio > 1:
            missed.append(f"{name}: {ratio:.2f} of the CPU time of `{YARDSTICK}`")
    head = ["command", "times", "wall, s", "CPU, s", f"CPU, ratio to `{YARDSTICK}`"]
    intro = (
        f"Whole processes, repetitions interleaved; `{NAME}` are two idle stand-in servers on an embedded cluster. "
        f"Goal: no command of raylaunch takes longer than `{YARDSTICK}`."
    )
    return f"{intro}\n\n{table(head, rows)}", missed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--short", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="rl-") as folder:
        user = User(Path(folder), standin=True)
        user.env = {name: value for name, value in user.env.items() if not name.startswith("RAY_")}
        user.run("start", "local-dual", "--name", NAME, *PORTS)
        try:
            env = user.env | {"PYTHONPATH": _metadata(Path(folder))}
            found: dict[str, Any] = measure(3 if given.short else given.rounds, env)
        finally:
            user.run("stop", NAME)
    text, missed = write(found)
    publish(
        "commands", "The command line", text, {"commands": found}, missed=missed, short=given.short
    )


def _metadata(folder: Path) -> str:
    """Write the metadata-only distribution `vllm` that the CPU wheel lacks: `vllm --help` needs it."""
    info = folder / "site" / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    return str(folder / "site")


if __name__ == "__main__":
    main()
