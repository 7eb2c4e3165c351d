"""`raylaunch diagnose` on large logs: whole processes, on generated logs with a failure at their end.

A log is written to the folder for temporary files, which needs 1 GB there; `--short` takes a tenth.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from report import publish, table

GB = 1_000_000_000
SECONDS_PER_GB, MAX_MB = 20.0, 200.0
FAILURE = """(EngineCore_DP1 pid=4210) ERROR {time} [core.py:1510] EngineCore failed to start.
(EngineCore_DP1 pid=4210) ERROR {time} [core.py:1510] Traceback (most recent call last):
(EngineCore_DP1 pid=4210) ERROR {time} [core.py:1510]   File "/vllm-workspace/vllm/v1/worker/worker_base.py", line 9, in load
(EngineCore_DP1 pid=4210) ERROR {time} [core.py:1510] RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 3; 61.27 GiB total capacity; 59.10 GiB already allocated; 1.10 GiB free; 59.70 GiB reserved in total by PyTorch)
(APIServer pid=4121) ERROR {time} [async_llm.py:416] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
"""
EXPECTED = "npu-oom"
REPEATED = 20


def serving(size: int) -> Iterator[str]:
    """A serving log: requests, throughput, debug output, prompts, a refused request now and then."""
    chance = random.Random(1)
    yield (
        "(APIServer pid=4121) INFO 11-22 23:59:59 [utils.py:333] non-default args: "
        + "x" * 600
        + "\n"
    )
    written = 0
    second = 0
    while written < size:
        second += 1
        clock = f"11-23 {second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
        lines = [
            f"(APIServer pid=4121) INFO:     192.0.2.{chance.randint(1, 250)}:{chance.randint(20000, 60000)} - "
            f'"POST /v1/chat/completions HTTP/1.1" 200 OK'
            for _ in range(chance.randint(2, 9))
        ]
        if second % 10 == 0:
            lines.append(
                f"(APIServer pid=4121) INFO {clock} [loggers.py:257] Engine 000: Avg prompt throughput: "
                f"{chance.random() * 1000:.1f} tokens/s, Avg generation throughput: {chance.random() * 1000:.1f} "
                f"tokens/s, Running: {chance.randint(1, 64)} reqs, Waiting: 0 reqs, GPU KV cache usage: 3.1%"
            )
        if second % 3 == 0:
            lines.append(
                f"(EngineCore_DP1 pid=4210) DEBUG {clock} [core.py:733] request cmpl-{second:x} added"
            )
        if second % 7 == 0:
            prompt = "".join(chance.choices("abcdefgh ijklmn opqrst uvwxyz,.", k=300))
            lines.append(
                f"(APIServer pid=4121) INFO {clock} [logger.py:39] Received request {second}: prompt: {prompt!r}"
            )
        if second % 20_000 == 0:
            lines.append(
                f"(APIServer pid=4121) ERROR {clock} [serving_chat.py:170] ValueError: the prompt is too long"
            )
        text = "\n".join(lines) + "\n"
        written += len(text)
        yield text


def plog(size: int) -> Iterator[str]:
    """A debug log of CANN's host side."""
    written = 0
    step = 0
    while written < size:
        step += 1
        clock = f"2026-11-23-{step // 36000 % 24:02}:{step // 600 % 60:02}:{step // 10 % 60:02}.{step % 10}70.463"
        text = (
            f"[INFO] RUNTIME(4210,python3):{clock} [stream.cc:{step % 900}] 4260 StreamLaunch: stream_id={step % 64}, task_id={step}\n"
            f"[EVENT] HCCL(4210,python3):{clock} [hccl_impl.cc:{step % 300}][4260][hcclImpl] tag AllReduce_{step} entered\n"
        )
        written += len(text)
        yield text


def no_level(size: int) -> Iterator[str]:
    """Lines that name no level: each might be an error, so the most are kept."""
    written = 0
    step = 0
    while written < size:
        step += 1
        text = f"step {step}: the cache holds {step % 977} blocks of layer {step % 61}, nothing else to report\n"
        written += len(text)
        yield text


def open_plain(path: Path) -> IO[str]:
    return path.open("w")


def open_gzip(path: Path) -> IO[str]:
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", compresslevel=1))


KINDS: tuple[tuple[str, Callable[[int], Iterator[str]], Callable[[Path], IO[str]]], ...] = (
    ("serving log", serving, open_plain),
    ("serving log, gzip", serving, open_gzip),
    ("plog at level INFO", plog, open_plain),
    ("lines without a level", no_level, open_plain),
)


def write(
    path: Path, make: Callable[[int], Iterator[str]], size: int, opener: Callable[[Path], IO[str]]
) -> int:
    """Write a log of about `size` bytes: a part of it many times, then the failure. Its bytes before compression."""
    part = "".join(make(size // REPEATED))
    end = FAILURE.format(time="11-23 20:00:00")
    with opener(path) as file:
        for _ in range(REPEATED):
            file.write(part)
        file.write(end)
    return len(part) * REPEATED + len(end)


def write_apart(
    path: Path, make: Callable[[int], Iterator[str]], size: int, opener: Callable[[Path], IO[str]]
) -> int:
    """Write in a process of its own: a child's peak memory counts what its parent had when it began."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(write, path, make, size, opener).result()


def run(path: Path) -> tuple[float, float, float, dict[str, Any]]:
    """Wall and CPU seconds, MB of memory, and the diagnosis of one `raylaunch diagnose`."""
    program = Path(sys.executable).with_name("raylaunch")
    answer = path.with_suffix(".json")
    began = time.monotonic()
    with answer.open("wb") as out:
        pid = os.posix_spawn(
            program,
            [program, "diagnose", path, "-o", "json"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)],
        )
        _, status, used = os.wait4(pid, 0)
    wall = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0
    cpu = used.ru_utime + used.ru_stime
    return wall, cpu, used.ru_maxrss / 1000, json.loads(answer.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    size = GB // 10 if short else GB
    rows = []
    measured = []
    missed = []
    for name, make, opener in KINDS:
        with tempfile.TemporaryDirectory(prefix="rl-") as folder:
            path = Path(folder) / "vllm.log"
            written = write_apart(path, make, size, opener)
            wall, cpu, megabytes, found = run(path)
        right = found is not None and found["id"] == EXPECTED
        per_gb = cpu / written * GB
        measured.append(
            {
                "log": name,
                "bytes": written,
                "wall_s": wall,
                "cpu_s": cpu,
                "rss_mb": megabytes,
                "right": right,
            }
        )
        rows.append(
            (
                name,
                f"{written / GB:.2f}",
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{written / cpu / 1e6:.0f}",
                f"{megabytes:.0f}",
                "yes" if right else "no",
            )
        )
        if not short and per_gb > SECONDS_PER_GB:
            missed.append(
                f"diagnose: {name} takes {per_gb:.0f} s of CPU per GB, goal {SECONDS_PER_GB:.0f}"
            )
        if megabytes > MAX_MB:
            missed.append(f"diagnose: {name} takes {megabytes:.0f} MB, goal {MAX_MB:.0f}")
        if not right:
            missed.append(f"diagnose: {name} is not diagnosed as {EXPECTED}")
    head = ("log", "GB", "wall, s", "CPU, s", "MB per CPU second", "memory, MB", "right")
    text = (
        f"Whole processes of `raylaunch diagnose FILE`, one core, on generated logs with a failure at their end. "
        f"Goal: {SECONDS_PER_GB:.0f} s per GB, {MAX_MB:.0f} MB.\n\n{table(head, rows)}"
    )
    publish(
        "diagnose", "Diagnosis of large logs", text, {"logs": measured}, missed=missed, short=short
    )


if __name__ == "__main__":
    main()
