"""What the metrics of two servers cost: windows with and without scrapes take turns.

Nothing else asks the deployment meanwhile, and the servers are idle: what a window takes without a
scrape changes less from one to the next than a scrape costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
from alerts_rounds import SHAPE
from alerts_views import ACCEPT, metrics_address
from availability_service import running_service
from recovery import actors, cpu_s

PERIOD_S = 5.0
"""Of the scrapes, as `raylaunch monitoring` configures Prometheus."""
SCRAPES = 4
"""In a window."""
PAIRS = 15


def measure_cost(folder: Path, scale: float) -> dict[str, list[float]]:
    """Return the CPU seconds of a scrape, a value for each pair of windows, and those of rest.

    Args:
        folder: For the deployment.
        scale: Shortens the measurement.
    """
    with running_service(folder, SHAPE) as service:
        controller, agents = actors(service.user)
        watched = [controller, *agents]
        address = metrics_address(Path(service.user.env["RAYLAUNCH_HOME"]), service.name)
        time.sleep(2 * PERIOD_S)  # what follows the start is not rest
        quiet, asked = [], []
        for _ in range(max(2, round(PAIRS * scale))):
            quiet.append(_window(watched, ""))
            asked.append(_window(watched, f"http://{address}/metrics"))
    lasts_s = SCRAPES * PERIOD_S
    return {
        "rest": [used / lasts_s for used in quiet],
        "scrape_s": [
            (with_ - without) / SCRAPES for with_, without in zip(asked, quiet, strict=True)
        ],
    }


def _window(watched: Sequence[psutil.Process], url: str) -> float:
    """Return the CPU seconds that processes take together while time passes."""
    before = sum(map(cpu_s, watched))
    began = time.monotonic()
    for scrape in range(SCRAPES):
        if url:
            answer = httpx.get(url, headers={"Accept": ACCEPT}, trust_env=False, timeout=60)
            answer.raise_for_status()
        until = began + (scrape + 1) * PERIOD_S
        time.sleep(max(0.0, until - time.monotonic()))
    return sum(map(cpu_s, watched)) - before
