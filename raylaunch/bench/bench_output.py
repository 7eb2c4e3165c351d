"""Reads the progress of `vllm bench serve` from its output."""

from __future__ import annotations

import re
from dataclasses import dataclass

STARTING = "starting"
PREPARING = "preparing prompts"
RUNNING = "running"

_PROGRESS_BAR = re.compile(r"(\d+)/(\d+) \[")
"""tqdm: " 25%|##5       | 4/16 [00:12<00:36,  3.01s/it]"."""
_MAIN_RUN = "Starting main benchmark run"
"""Printed by vLLM 0.32 (benchmarks/serve.py) after the warm-up."""


@dataclass(frozen=True)
class BenchProgress:
    """The stage of a benchmark and the number of its requests that are answered."""

    stage: str
    done: int
    total: int


def read_progress(text: str, total: int) -> BenchProgress:
    """Read the progress from the end of the output; `total` is the number of requests."""
    # Progress bars of other phases (a warm-up) have other totals.
    bars = _PROGRESS_BAR.findall(text)
    counts = [int(done) for done, of in bars if int(of) == total]
    if counts:
        done = min(counts[-1], total)
        return BenchProgress(RUNNING, done, total)
    if _MAIN_RUN in text:
        return BenchProgress(RUNNING, 0, total)
    if text.strip():
        return BenchProgress(PREPARING, 0, total)
    return BenchProgress(STARTING, 0, total)
