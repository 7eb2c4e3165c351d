"""Rounds of the availability benchmark over two test hosts: the network of one is cut.

The hosts are namespaces with a network between them (tests/hosts/hosts.py; needs root), with real
Ray and the stand-in of the tests. Each host serves one group. The gateway and the clients are on
the head; the other host is cut off. Ray there is started again where it gave the node up, as its
systemd unit does.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from availability_rounds import DETECTED_S, QUIET_S, RECOVERED_S, Round, show
from availability_service import NAME, SETTINGS, AwaitedError, Clients, asking, words_of
from benchmark_hosts import TwoHosts, join_ray, open_hosts, start_ray
from report import ROOT

START_S = 300.0
POLL_S = 1.0
ENV = {
    "RAYLAUNCH_VLLM": str(ROOT / "tests" / "standin" / "bin" / "vllm"),
    "STANDIN_PYTHON": "python",
    "STANDIN_TOKEN_S": "0.005",
}


def run_cut_host(rounds: int, folder: Path, limit_s: float) -> list[Round]:
    """Cut the worker's network `rounds` times under load; begin none after `limit_s`.

    Raises:
        AwaitedError: the deployment did not start.
    """
    until = time.monotonic() + limit_s
    done: list[Round] = []
    with open_hosts(folder / "hosts", folder / "cache") as pair:
        service = HostService(pair)
        service.start()
        with service.clients() as clients:
            for _ in range(rounds):
                if time.monotonic() > until:
                    break
                one = Round("cut-host", "cut network")
                done.append(one)
                service.run_round(one, clients, service.cut_once)
                show(one)
                if one.recovery_s is None:
                    break  # what follows would count the effects of this one
    return done


class HostService:
    """The deployment on the hosts, seen through raylaunch's commands on the head."""

    def __init__(self, pair: TwoHosts) -> None:
        self.pair = pair

    def start(self, recipe: str = "local-replicas", *more: str) -> None:
        """Start Ray and a recipe: by default two groups. `more` are further settings."""
        start_ray(self.pair, ENV)
        settings = (*SETTINGS, "network.interface=auto", "hardware.npus_per_node=8", *more)
        done = self._run("start", recipe, "--name", NAME, *words_of(settings))
        if done.returncode:
            raise AwaitedError(f"start: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {**self.pair.ray_env, **ENV}
        return self.pair.head.run(["raylaunch", *words], env=env, timeout=START_S, check=False)

    def status(self) -> dict[str, Any]:
        """Return what `status` says of the deployment."""
        status: dict[str, Any] = json.loads(self._run("status", NAME, "-o", "json").stdout)
        return status

    def events(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        return [
            json.loads(line)
            for line in self._run("events", NAME, "-o", "json").stdout.split("\n")
            if line
        ]

    @contextmanager
    def clients(self, plain: int = 4, streams: int = 4) -> Iterator[Clients]:
        """Run clients on the head, in front of the deployment's address."""
        url = self.status()["endpoint"].removesuffix("/v1")
        with asking(self.pair.ask("clients.py", url, str(plain), str(streams))) as clients:
            yield clients

    def run_round(self, one: Round, clients: Clients, work: Callable[[Round], None]) -> None:
        """Do the work of one round; count what the clients saw until all is quiet again."""
        clients.take()
        time.sleep(QUIET_S)
        try:
            work(one)
        except AwaitedError as error:
            one.problems.append(str(error))
        time.sleep(QUIET_S)
        one.count(clients.take())

    def cut_once(self, one: Round) -> None:
        """Cut the worker and heal it; the round is over when its group is ready again."""
        worker = self.pair.hosts[1]
        last = self.events()[-1]["number"]
        servers = self.status()["servers"]
        (group,) = {server["group"] for server in servers if server["ip"] == worker.ip}
        others = _pids(servers, group)
        began = time.time()
        worker.cut()
        try:
            failed = self.await_event(last, group, "failure", "", DETECTED_S)
            one.detection_s = failed["at"] - began
        finally:
            worker.heal()
        ready = self._await_ready(failed["number"], group)
        one.recovery_s = ready["at"] - began
        if _pids(self.status()["servers"], group) != others:
            one.problems.append("processes of another group are not those of before")

    def _await_ready(self, after: int, group: str) -> Mapping[str, Any]:
        """Return the event that the group is ready; Ray is started again if it gave up the node."""
        return self.await_event(after, group, "phase", "ready", RECOVERED_S, self.rejoin)

    def rejoin(self) -> None:
        """Start Ray on the worker again if it gave the node up."""
        worker = self.pair.hosts[1]
        if not any("raylet/raylet" in line for line in worker.processes().values()):
            join_ray(self.pair, worker, ENV)

    def await_event(
        self,
        after: int,
        group: str | None,
        kind: str,
        text: str,
        limit_s: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Mapping[str, Any]:
        """Return the first such event after number `after`.

        With the text "" any text will do, and without a group that of any group.

        Raises:
            AwaitedError: none came within `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for event in self.events():
                of_group = group is None or event.get("group") in ("", None, group)
                is_wanted = of_group and event["kind"] == kind and text in ("", event["text"])
                if event["number"] > after and is_wanted:
                    return event
            meanwhile()
            time.sleep(POLL_S)  # the controller is in another network namespace
        raise AwaitedError(f"{kind} {text}: not within {limit_s:g} s")


def _pids(servers: list[Mapping[str, Any]], group: str) -> set[int]:
    """Return the pids of the servers of all other groups."""
    return {server["seen"]["pid"] for server in servers if server["group"] != group}
