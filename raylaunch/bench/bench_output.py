"""What `vllm bench serve` prints while it runs, as a stage and a count."""

from __future__ import annotations

import re
from dataclasses import dataclass

STARTING, PREPARING, RUNNING = "starting", "preparing prompts", "running"
_BAR = re.compile(r"(\d+)/(\d+) \[")
"""tqdm: " 25%|##5       | 4/16 [00:12<00:36,  3.01s/it]"."""


@dataclass(frozen=True)
class BenchProgress:
    """Where a benchmark is: how many of its requests are answered."""

    stage: str
    done: int
    total: int


def read_progress(text: str, total: int) -> BenchProgress:
    """Read the end of the output. Other bars (a warm-up) have other totals."""
    counts = [int(done) for done, of in _BAR.findall(text) if int(of) == total]
    if counts:
        return BenchProgress(RUNNING, min(counts[-1], total), total)
    if "Starting main benchmark run" in text:  # vLLM 0.32, benchmarks/serve.py
        return BenchProgress(RUNNING, 0, total)
    return BenchProgress(PREPARING if text.strip() else STARTING, 0, total)
