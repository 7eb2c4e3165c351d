"""A deployment with a gateway on an embedded Ray cluster of two nodes, and its clients."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from recovery import User
from report import ROOT

from raylaunch.gateway.gateway_client import GatewayClient, connect_gateway
from raylaunch.gateway.gateway_messages import GatewayStatus
from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked
from raylaunch.recipe.group_names import GATEWAY_GROUP
from raylaunch.runtime.cluster.connection import connect
from raylaunch.runtime.cluster.local_cleanup import stop_local
from raylaunch.runtime.cluster.local_cluster import start_local
from raylaunch.runtime.controller.controller_client import ControllerClient, require_controller
from raylaunch.supervise.deployment_status import Event, Status

NAME = "availability"
NODES = 2
SERVER_NPUS = 8
CLIENTS = ROOT / "benchmarks" / "asking" / "clients.py"
READY_S = 300.0
LAST_ANSWERS_S = 900.0
POLL_S = 1.0
FIRST_PORT = 28200


def settings_from(first_port: int) -> tuple[str, ...]:
    """Return the settings of a deployment that uses the 100 ports from `first_port` on."""
    return (
        "gateway.enabled=true",
        f"gateway.port={first_port}",
        f"network.http_port={first_port + 10}",
        f"network.rpc_port={first_port + 30}",
        # A round waits for the recovery, not for the back-off.
        "health.max_restarts=1000",
        "health.backoff_first_s=0",
    )


SETTINGS = settings_from(FIRST_PORT)


class AwaitedError(Exception):
    """What was awaited did not happen."""


@dataclass(frozen=True)
class Shape:
    """What is started, and on what.

    Args:
        groups: Equal groups of one server.
        spare: Whether the nodes have the NPUs of another deployment of this shape.
        is_standin: The stand-in of the tests in place of real vLLM.
        name: Of the deployment; its cluster is named after it.
        first_port: The deployment uses ports from here on.
    """

    groups: int
    spare: bool
    is_standin: bool
    name: str = NAME
    first_port: int = FIRST_PORT

    @property
    def npus_per_node(self) -> int:
        """NPUs that each node declares."""
        return 2 * SERVER_NPUS if self.spare else SERVER_NPUS


class Service:
    """The deployment, seen from the process that is connected to its cluster."""

    def __init__(self, user: User, name: str = NAME) -> None:
        self.user = user
        self.name = name

    @property
    def controller(self) -> ControllerClient:
        """The controller, also after Ray has started it again."""
        return require_controller(self.name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of raylaunch to its end, whatever its exit status."""
        command = [sys.executable, "-m", "raylaunch", *words]
        return subprocess.run(
            command, env=self.user.env, capture_output=True, text=True, check=False
        )

    def status(self) -> Status:
        """Return where the deployment is now."""
        return self.controller.status()

    def last_event(self) -> int:
        """Return the number of the newest event."""
        return max((event.number for event in self.controller.events()), default=0)

    def await_event(
        self, after: int, wanted: Callable[[Event], bool], limit_s: float, what: str
    ) -> Event:
        """Return the first wanted event after number `after`.

        Raises:
            AwaitedError: none came within `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        version = -1
        while time.monotonic() < deadline:
            events = self.controller.events(after)
            found = next((event for event in events if wanted(event)), None)
            if found is not None:
                return found
            version, _ = self.controller.wait_change(version, POLL_S)
        raise AwaitedError(f"{what}: not within {limit_s:g} s")

    @property
    def gateway(self) -> GatewayClient:
        """The gateway of the deployment.

        Raises:
            AwaitedError: no keeper answers.
        """
        folders = (Path(self.user.env["RAYLAUNCH_HOME"]) / "gateways").glob("*")
        found = next(filter(None, map(connect_gateway, folders)), None)
        if found is None:
            raise AwaitedError("no gateway answers")
        return found

    def gateway_status(self) -> GatewayStatus:
        """Return the gateway's pids and counters."""
        return self.gateway.status()


def pids_by_group() -> dict[str, set[int]]:
    """Return the pids of each group's processes, by their markers; without the gateway's."""
    found: dict[str, set[int]] = {}
    for process in find_marked(NAME):
        if process.group != GATEWAY_GROUP:
            found.setdefault(process.group, set()).add(process.pid)
    return found


@contextmanager
def running_service(folder: Path, shape: Shape) -> Iterator[Service]:
    """Start cluster and deployment; stop both, also when something failed."""
    user = User(folder / "home", standin=shape.is_standin)
    user.env["STANDIN_TOKEN_S"] = "0.005"  # a stream lasts a second: each fault hits some
    home = Path(user.env["RAYLAUNCH_HOME"])
    os.environ.update(user.env)
    name, cluster_name = shape.name, f"{shape.name}-ray"
    cluster = start_local(home, cluster_name, nodes=NODES, npus_per_node=shape.npus_per_node)
    try:
        user.env |= {
            "RAY_ADDRESS": cluster.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(cluster.token_file),
        }
        settings = (
            *settings_from(shape.first_port),
            f"parallel.replicas={shape.groups}",
            f"hardware.npus_per_node={shape.npus_per_node}",
        )
        user.run("start", "local-replicas", "--name", name, *words_of(settings))
        connect(cluster.address, cluster.token_file)
        yield Service(user, name)
    finally:
        user.run("stop", name, refused=(3, 5, 9))
        terminate_marked(name, instance=ANY_INSTANCE, grace_s=0)
        stop_local(home, cluster_name)


class Clients:
    """Plain and streaming clients that never retry, as a process of their own (clients.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def await_ready(self) -> None:
        """Wait until the undisturbed texts are known and the clients run.

        Raises:
            AwaitedError: an undisturbed request failed.
        """
        if not self._ready.wait(READY_S) or self._process.poll() is not None:
            self._process.kill()
            raise AwaitedError("the clients got no undisturbed answers")

    def take(self) -> list[dict[str, Any]]:
        """Return the requests that have finished since the last call."""
        with self._lock:
            taken, self._lines = self._lines, []
        return taken

    def close(self) -> None:
        """Begin no new request; those that run are finished."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the last request has finished, after `close`."""
        try:
            self._process.wait(LAST_ANSWERS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            seen = json.loads(line)
            if "ready" in seen:
                self._ready.set()
                continue
            with self._lock:
                self._lines.append(seen)
        self._ready.set()  # also after an early exit: `await_ready` checks for it


@contextmanager
def clients_of(service: Service, plain: int = 4, streams: int = 4) -> Iterator[Clients]:
    """Run clients in front of the deployment's address."""
    with clients_at(service.status().endpoint, plain, streams) as clients:
        yield clients


@contextmanager
def clients_at(endpoint: str, plain: int = 4, streams: int = 4) -> Iterator[Clients]:
    """Run clients in front of an address."""
    url = endpoint.removesuffix("/v1")
    command = [sys.executable, "-u", str(CLIENTS), url, str(plain), str(streams)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with asking(process) as clients:
        yield clients


@contextmanager
def asking(process: subprocess.Popen[str]) -> Iterator[Clients]:
    """Wait until the clients of a process ask; let them finish at the end."""
    clients = Clients(process)
    try:
        clients.await_ready()
        yield clients
    finally:
        clients.close()
        clients.wait()


def kill(pid: int | None) -> None:
    """SIGKILL one process of the gateway."""
    if pid is not None:
        psutil.Process(pid).kill()


def words_of(settings: Sequence[str]) -> list[str]:
    """Return settings as `--set` words."""
    return [word for setting in settings for word in ("--set", setting)]
