"""A Ray cluster on test hosts, made as a user makes one: `raylaunch cluster` on a desk of their
own, then `ray up`."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hosts import HOME, Host, Hosts

NAME = "test"
FILE = f"{HOME}/hosts.yaml"
KEY = f"{HOME}/.ssh/id_ed25519"
TOKEN = f"{HOME}/.raylaunch/cluster/{NAME}/token"
UP_S = 600.0
JOIN_S = 600.0
DOWN_S = 180.0


@dataclass(eq=False)
class RayCluster:
    """A Ray cluster: h0 is its head, h1 a worker, `desk` the machine from which it was brought up
    by FILE."""

    hosts: Hosts
    head: Host
    worker: Host
    desk: Host

    @property
    def address(self) -> str:
        """GCS address."""
        return f"{self.head.ip}:6379"

    @property
    def token_file(self) -> str:
        """Path of the token, the same on every host."""
        return TOKEN

    @property
    def environment(self) -> dict[str, str]:
        """What a process on a host needs to talk to the cluster."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": TOKEN}

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head that may talk to the cluster."""
        return self.head.run(
            command, timeout=timeout, check=check, env={**self.environment, **(env or {})}
        )

    def npus(self) -> int:
        """NPUs in the cluster now; 0 also when its head does not answer yet."""
        done = self.run(["ray", "status"], check=False)
        found = re.search(r"/([\d.]+) NPU", done.stdout)
        return int(float(found[1])) if found else 0

    def up(self, npus: int) -> None:
        """`ray up`, until that many NPUs are in the cluster."""
        self.desk.run(["ray", "up", "-y", FILE], timeout=UP_S)
        await_true(
            lambda: self.npus() == npus,
            JOIN_S,
            lambda: self.run(["ray", "status"], check=False).stdout,
        )

    def down(self) -> str:
        """`ray down`; returns what it said."""
        done = self.desk.run(["ray", "down", "-y", FILE], timeout=DOWN_S)
        return done.stdout + done.stderr

    def save_logs(self, folder: Path) -> None:
        """Copy Ray's logs of both hosts to `folder`."""
        for host in (self.head, self.worker):
            host.save("/tmp/ray/session_latest/logs", folder / host.name)


def write_cluster_file(hosts: Hosts, recipe: str = "a2-dual", *more: str) -> RayCluster:
    """Write FILE on the desk with `raylaunch cluster`; nothing is started."""
    head, worker, desk = hosts
    desk.put(KEY, hosts.private_key, 0o600)
    where = [
        "--head",
        head.ip,
        "--worker",
        worker.ip,
        "--ssh-user",
        "root",
        "--ssh-key",
        "~/.ssh/id_ed25519",
    ]
    desk.run(["raylaunch", "cluster", recipe, "--name", NAME, *where, "-o", FILE, *more])
    return RayCluster(hosts, head, worker, desk)


def await_true(ask: Callable[[], object], deadline_s: float, explain: Callable[[], object]) -> None:
    """Ask until the answer is true.

    There is no event to wait for in another process's view of a cluster.
    """
    end = time.monotonic() + deadline_s
    while not ask():
        assert time.monotonic() < end, f"still not so after {deadline_s} s: {explain()}"
        time.sleep(1)
