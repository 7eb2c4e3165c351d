"""A Prometheus of its own that scrapes the deployments of a home, and what fires in it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from raylaunch.api import monitoring_files

POLL_S = 1.0
UP_S = 300.0
"""For a machine that is busy with other things."""
ANSWER_S = 30.0

Labels = tuple[str, str, str]
"""Deployment, group and name of an alert."""


@dataclass(frozen=True)
class Fired:
    """One alert that fired. Times: seconds since the epoch, as the polls saw them."""

    deployment: str
    alert: str
    first: float
    last: float
    group: str = ""
    """The group that it is about; "" for the deployment or a node."""


class AlertLog:
    """What fires, poll by poll. An alert that pauses for longer than two polls is another one."""

    def __init__(self) -> None:
        self._open: dict[Labels, Fired] = {}
        self._closed: list[Fired] = []
        self._lock = threading.Lock()

    def take(self, firing: Iterable[Labels], now: float) -> None:
        """Take the answer of one poll."""
        with self._lock:
            for labels in firing:
                known = self._open.get(labels)
                first = now if known is None else known.first
                deployment, group, alert = labels
                self._open[labels] = Fired(deployment, alert, first, now, group)
            for key, one in list(self._open.items()):
                if now - one.last > 2 * POLL_S:
                    self._closed.append(self._open.pop(key))

    @property
    def firing(self) -> list[Fired]:
        """What fires now."""
        with self._lock:
            return list(self._open.values())

    def since(self, at: float) -> list[Fired]:
        """Return what began to fire after a time, oldest first."""
        with self._lock:
            found = [*self._closed, *self._open.values()]
        return sorted((one for one in found if one.first >= at), key=lambda one: one.first)


def firing_in(answer: Mapping[str, Any]) -> list[Labels]:
    """Return the alerts of an answer of /api/v1/alerts that fire, without those that wait."""
    found = []
    for alert in answer["data"]["alerts"]:
        if alert["state"] == "firing":
            labels = alert["labels"]
            place = (labels.get("deployment", ""), labels.get("group", ""))
            found.append((*place, labels["alertname"]))
    return found


def missing_programs() -> str:
    """Return what has to be installed; "" for nothing."""
    if shutil.which("prometheus") is None:
        return "prometheus is missing: apt-get install prometheus (Debian)"
    return ""


@contextmanager
def running_prometheus(folder: Path, home: Path) -> Iterator[AlertLog]:
    """Run a Prometheus with the files of `raylaunch monitoring`; yield what fires.

    Args:
        folder: For its configuration and its data.
        home: RAYLAUNCH_HOME of the deployments.
    """
    for name, text in monitoring_files(str(home / "monitoring" / "*.json")).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=error"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"),
    ]
    log = AlertLog()
    stopping = threading.Event()
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    thread = threading.Thread(target=_poll, args=(f"http://{address}", log, stopping), daemon=True)
    try:
        _await_up(f"http://{address}/-/ready", process, folder / "prometheus.log")
        thread.start()
        yield log
    finally:
        stopping.set()
        if thread.is_alive():
            thread.join()
        process.terminate()
        process.wait()


def _await_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, trust_env=False, timeout=ANSWER_S).is_success:
                return
        time.sleep(0.2)  # Prometheus sends no event when it is ready
    raise SystemExit(f"prometheus is not ready:\n{log.read_text()[-2000:]}")


def _poll(url: str, log: AlertLog, stopping: threading.Event) -> None:
    with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
        while not stopping.wait(POLL_S):
            with contextlib.suppress(httpx.HTTPError):
                answer = client.get(f"{url}/api/v1/alerts").json()
                log.take(firing_in(answer), time.time())
