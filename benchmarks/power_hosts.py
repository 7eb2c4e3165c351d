"""Three test hosts that start Ray and a deployment as `raylaunch service install` has it.

The hosts are namespaces (tests/hosts/hosts.py; needs root), with real Ray and the stand-in of the
tests. Each has an /etc of its own with the files that `service install --print` wrote, and
asking/play_units.py in the place of systemd. A power cut kills everything on a host, empties what
a reboot empties, and loses each packet to it until the power is back.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from availability_service import AwaitedError, words_of
from benchmark_hosts import ASKING
from hosts import HOME, PATH, Host, build_hosts
from report import ROOT

NAMES = ("h0", "h1", "h2")
DEPLOYMENT = "power"
CLUSTER = "power"
CLUSTER_FILE = f"{HOME}/cluster.yaml"
TOKEN = f"{HOME}/.raylaunch/cluster/{CLUSTER}/token"
UNITS = f"{HOME}/units"
UNIT_FOLDER = "/etc/systemd/system"
CLUSTER_UNIT = f"raylaunch-cluster-{CLUSTER}.service"
DEPLOYMENT_UNIT = f"raylaunch-deployment-{DEPLOYMENT}.service"
RECIPE = "local-dual"
SETTINGS = (
    "parallel.data=3",
    "network.interface=auto",
    "gateway.port=28300",
    "network.http_port=28310",
    "network.rpc_port=28330",
)
"""One server on each host: without one of them nothing serves."""
BASHRC = f"""\
export PATH={PATH}
export RAYLAUNCH_VLLM={ROOT / "tests" / "standin" / "bin" / "vllm"} STANDIN_PYTHON=python
"""
SERVER = "standin_vllm.py serve"
OWN_ETC = f"cp -a /etc {HOME}/etc && mount -n --bind {HOME}/etc /etc"
COMMAND_S = 120.0
COMPLETION = """
import httpx, sys
body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
print(httpx.post(sys.argv[1] + "/completions", json=body, timeout=60, trust_env=False).status_code)
"""


@dataclass(frozen=True)
class Seen:
    """What play_units.py reported: a start, an exit, a notification, a watchdog that fired."""

    at: float
    unit: str
    kind: str
    text: str = ""
    status: int | None = None


@dataclass(eq=False)
class PoweredHost:
    """A host and what its units did since the power came last."""

    host: Host
    units: tuple[str, ...]
    seen: list[Seen] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    on_at: float | None = None

    @property
    def ip(self) -> str:
        """Its address."""
        return self.host.ip

    def power_on(self) -> None:
        """Connect the host, and start its units."""
        self.host.heal()
        with self.changed:
            self.seen.clear()
        self.on_at = time.time()
        paths = [f"{UNIT_FOLDER}/{unit}" for unit in self.units]
        command = ["python", "-u", str(ASKING / "play_units.py"), *paths]
        player = self.host.popen(command, stdout=subprocess.PIPE)
        threading.Thread(target=self._read, args=[player], daemon=True).start()

    def _read(self, player: subprocess.Popen[str]) -> None:
        assert player.stdout is not None
        for line in player.stdout:
            with self.changed:
                self.seen.append(Seen(**json.loads(line)))
                self.changed.notify_all()

    def notifications(self, unit: str) -> list[Seen]:
        """Return what a unit has sent to the service manager."""
        with self.changed:
            return [one for one in self.seen if (one.unit, one.kind) == (unit, "notify")]

    def starts(self, unit: str) -> list[Seen]:
        """Return the starts of a unit."""
        with self.changed:
            return [one for one in self.seen if (one.unit, one.kind) == (unit, "start")]

    def await_ready(self, unit: str, limit_s: float) -> float:
        """Return when the unit was ready.

        Raises:
            AwaitedError: it was not within `limit_s`.
        """

        def ready() -> Seen | None:
            return next((one for one in self.notifications(unit) if one.text == "READY=1"), None)

        with self.changed:
            if not self.changed.wait_for(ready, limit_s):
                shown = [one.text for one in self.notifications(unit)][-1:]
                raise AwaitedError(f"not ready within {limit_s:g} s: {shown}")
            found = ready()
        assert found is not None
        return found.at


@dataclass(eq=False)
class Site:
    """The hosts; the first is the head."""

    hosts: tuple[PoweredHost, ...]

    @property
    def head(self) -> PoweredHost:
        """The host of the deployment's unit."""
        return self.hosts[0]

    def cut_power(self) -> None:
        """Cut the power of all hosts at the same time."""
        for one in self.hosts:
            one.host.cut()
            one.on_at = None
        command = ["python", "-I", "-S", str(ASKING / "power_off.py")]
        offs = [
            one.host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for one in self.hosts
        ]
        for one, off in zip(self.hosts, offs, strict=True):
            out, errors = off.communicate(timeout=COMMAND_S)
            if out.strip() != "off":
                raise AwaitedError(f"{one.host.name}: the power was not cut: {errors[-500:]}")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of raylaunch on the head."""
        env = {
            "RAY_ADDRESS": f"{self.head.ip}:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": TOKEN,
        }
        command = ["raylaunch", *words]
        return self.head.host.run(command, env=env, timeout=COMMAND_S, check=False)

    def status(self) -> dict[str, Any]:
        """Return the deployment's status.

        Raises:
            AwaitedError: the command has none.
        """
        done = self.run("status", DEPLOYMENT, "-o", "json")
        with contextlib.suppress(ValueError):
            found = json.loads(done.stdout)
            if isinstance(found, dict):
                return found
        raise AwaitedError(f"status: exit {done.returncode}: {done.stderr.strip()[-500:]}")

    def events(self) -> list[dict[str, Any]]:
        """Return all events that the controller has, oldest first."""
        done = self.run("events", DEPLOYMENT, "-o", "json")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def ask(self, endpoint: str) -> str:
        """Return the HTTP status of one completion that the head asks for, or what went wrong."""
        done = self.head.host.run(
            ["python", "-c", COMPLETION, endpoint], timeout=COMMAND_S, check=False
        )
        return done.stdout.strip() or done.stderr.strip()[-300:]

    def servers(self) -> dict[str, int]:
        """Count the processes of servers on each host."""
        found: Counter[str] = Counter()
        for one in self.hosts:
            lines = one.host.processes().values()
            found[one.ip] = sum(SERVER in line for line in lines)
        return dict(found)

    def save(self, folder: Path) -> None:
        """Keep what the units and Ray printed."""
        for one in self.hosts:
            for path in (f"{HOME}/journal", "/tmp/ray/session_latest/logs", f"{HOME}/.raylaunch"):
                one.host.save(path, folder / one.host.name)


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Build hosts that have the files of the service; all of them are without power."""
    keys = folder / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        hosts = build_hosts(NAMES, keys, stack).hosts
        for host in hosts:
            host.run(["bash", "-c", OWN_ETC])
            host.run(["sysctl", "-w", "net.ipv4.tcp_orphan_retries=1"])
            host.put(f"{HOME}/.bashrc", BASHRC)
        _install(hosts)
        head, *workers = hosts
        powered = [PoweredHost(head, (CLUSTER_UNIT, DEPLOYMENT_UNIT))]
        powered += [PoweredHost(worker, (CLUSTER_UNIT,)) for worker in workers]
        site = Site(tuple(powered))
        site.cut_power()
        yield site


def _install(hosts: Sequence[Host]) -> None:
    """Do what `service install` does, without the SSH: files, and the token of the cluster."""
    head, *workers = hosts
    where = ["--head", head.ip, *(word for one in workers for word in ("--worker", one.ip))]
    where += ["--ssh-user", "root", "--bare", "--name", CLUSTER, "-o", CLUSTER_FILE]
    head.run(["raylaunch", "cluster", RECIPE, *where, *words_of(SETTINGS)])
    printed = ["--cluster", CLUSTER_FILE, "--name", DEPLOYMENT, "--print", "--out", UNITS]
    head.run(["raylaunch", "service", "install", RECIPE, *printed, *words_of(SETTINGS)])
    token = head.path(TOKEN).read_text()
    for host in hosts:
        host.put(TOKEN, token, 0o600)
        files = head.path(f"{UNITS}/{host.ip}")
        for path in files.rglob("*"):
            if path.is_file():
                mode = 0o755 if path.suffix == ".sh" else 0o644
                host.put(f"/{path.relative_to(files)}", path.read_text(), mode)
