"""A running deployment from outside: `top`, and its metrics beside `status`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from recovery import User, cpu_s
from report import ROOT

from raylaunch.monitoring.targets import KIND
from raylaunch.supervise.deployment_status import Status

sys.path.insert(0, str(ROOT / "tests"))

from browser import find_browser

TOP_S = 30.0
TOP_BEGINS_S = 15.0
"""Its imports and its first frames are no steady state."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels of a sample."""
Samples = Mapping[Key, float]
ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
"""As Prometheus asks."""


# -- the page ----------------------------------------------------------------------------------


def missing_browser() -> str:
    """Return what has to be installed; "" for nothing."""
    return "" if find_browser() else "chromium is missing: apt-get install chromium (Debian)"


# -- top ---------------------------------------------------------------------------------------


def watch_top(user: User, name: str) -> float:
    """Return the part of a core that `raylaunch top` takes on a terminal of 80x24."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "raylaunch", "top", name]
    process = subprocess.Popen(command, env=user.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    drawn = bytearray()
    reader = threading.Thread(target=_read_all, args=(master, drawn), daemon=True)
    reader.start()
    try:
        time.sleep(TOP_BEGINS_S)
        shown = psutil.Process(process.pid)
        before, began, had = cpu_s(shown), time.monotonic(), len(drawn)
        time.sleep(TOP_S)
        used = (cpu_s(shown) - before) / (time.monotonic() - began)
        if len(drawn) == had or b"q quit" not in drawn:
            raise SystemExit(f"top drew nothing: {bytes(drawn[-500:])!r}")
        return used
    finally:
        process.terminate()
        process.wait()
        reader.join()
        os.close(master)


def _read_all(master: int, drawn: bytearray) -> None:
    # EIO: the process that had the terminal has exited.
    with contextlib.suppress(OSError):
        while piece := os.read(master, 1 << 16):
            drawn += piece


# -- metrics beside status ---------------------------------------------------------------------


def metrics_address(home: Path, name: str) -> str:
    """Return where the metrics of a deployment are served, from its targets."""
    entries = json.loads((home / "monitoring" / f"{name}.json").read_text())
    [address] = [one["targets"][0] for one in entries if one["labels"][KIND] == "raylaunch"]
    return str(address)


def read_samples(text: str) -> Samples:
    """Return the samples of an answer in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def disagreements(before: Status, samples: Samples, after: Status) -> list[str]:
    """Return what the metrics say otherwise than `status` right before and right after."""
    expected = dict(_as_samples(before))
    later = dict(_as_samples(after))
    found = []
    for key, first in expected.items():
        name, labels = key
        place = tuple(sorted({"deployment": before.deployment, **dict(labels)}.items()))
        value = samples.get((name, place))
        low, high = sorted((first, later.get(key, first)))
        if value is None or not low <= value <= high:
            found.append(f"{name}{dict(labels)}: {value}, and `status`: {low:g} to {high:g}")
    return found


def _as_samples(status: Status) -> Iterator[tuple[Key, float]]:
    """Yield the numbers of a status that only grow, or stay while nothing happens."""

    def sample(name: str, value: float, **labels: object) -> tuple[Key, float]:
        return (f"raylaunch_{name}", tuple((key, str(one)) for key, one in labels.items())), value

    yield sample("deployment_phase", 1, phase=status.phase)
    for group in status.groups:
        yield sample("group_phase", 1, group=group.name, phase=group.phase)
        yield sample("group_attempt", group.attempt, group=group.name)
        for server in group.servers:
            for rank in server.seen.ranks:
                place = {"group": group.name, "rank": rank.rank}
                yield sample("rank_tokens_total", rank.tokens, **place)
                yield sample("rank_requests_finished_total", rank.finished, **place)
    if status.gateway is not None:
        counters = [node.counters for node in status.gateway.nodes]
        yield sample("gateway_requests_total", sum(one.requests for one in counters))
        yield sample("gateway_failed_requests_total", sum(one.failed for one in counters))
