"""The output of vLLM's client, read as a stage and a count."""

from __future__ import annotations

import pytest

from raylaunch.bench.bench_output import PREPARING, RUNNING, STARTING, BenchProgress, read_progress

BAR = "\r  0%|          | 0/16 [00:00<?, ?it/s]\r  6%|▋         | 1/16 [00:09<02:28,  9.9s/it]"


@pytest.mark.parametrize(
    ("text", "progress"),
    [
        ("", BenchProgress(STARTING, 0, 16)),
        (
            "Namespace(subparser='bench', bench_type='serve', num_prompts=16)\n",
            BenchProgress(PREPARING, 0, 16),
        ),
        (
            "Starting main benchmark run...\nTraffic request rate: inf\n",
            BenchProgress(RUNNING, 0, 16),
        ),
        (BAR, BenchProgress(RUNNING, 1, 16)),
        (
            BAR + "\r100%|##########| 16/16 [02:00<00:00,  7.5s/it]\n====== Serving",
            BenchProgress(RUNNING, 16, 16),
        ),
        (
            "100%|##########| 4/4 [00:01<00:00,  4it/s]\nWarmup run completed.\n",
            BenchProgress(PREPARING, 0, 16),
        ),
    ],
)
def test_progress_is_read_from_the_end_of_the_output(text, progress):
    assert read_progress(text, 16) == progress
