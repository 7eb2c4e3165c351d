"""Rounds of the availability benchmark that take away what is not vLLM: agent, controller, Ray.

`local-dual` on its own embedded cluster of two nodes. `raylaunch drill` injects the faults and says
how long the deployment was without control; clients of the gateway's address run all the while.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from availability_rounds import QUIET_S, Round, show
from availability_service import Clients, clients_at, words_of
from recovery import User

from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked

NAME = "availability-dual"
SETTINGS = ("gateway.port=28250", "network.http_port=28260", "network.rpc_port=28280")
OF_OTHERS = ("kill-agent", "kill-controller", "kill-raylet", "kill-gcs", "kill-ray", "restart-ray")
FD_SLACK = 40
"""Open files of all processes together may differ by that many between two moments of quiet."""
NOT_DRILLED = 7


@dataclass(frozen=True)
class Held:
    """What the deployment and its cluster hold at a moment of quiet."""

    processes: int
    sockets: int
    files: int

    def grown(self, first: Held) -> list[str]:
        """Return what is more than it was."""
        pairs = (
            ("processes", self.processes, first.processes),
            ("unix sockets of guards", self.sockets, first.sockets),
            ("open files", self.files, first.files + FD_SLACK),
        )
        return [f"{now} {what}, {before} before" for what, now, before in pairs if now > before]


def run_ray(rounds: int, folder: Path, limit_s: float, *, standin: bool) -> list[Round]:
    """Inject each fault `rounds` times, in turns; begin none after `limit_s`. Then stop.

    Raises:
        AwaitedError: the clients got no answer before the first fault.
    """
    until = time.monotonic() + limit_s
    done: list[Round] = []
    # Real servers leave too little of a small machine to Ray, with more clients than these.
    each = 4 if standin else 2
    user = User(folder / "home", standin=standin)
    with _service(user, done), clients_at(_endpoint(user), each, each) as clients:
        first: Held | None = None
        for fault in [fault for _ in range(rounds) for fault in OF_OTHERS]:
            if time.monotonic() > until:
                break
            one = Round("ray", fault)
            done.append(one)
            _run_round(user, clients, one)
            show(one)
            if one.recovery_s is None:
                break  # what follows would count the effects of this one
            held = _held(user)
            # Ray starts workers in advance: what is there after each fault once is the measure.
            if first is None or len(done) <= len(OF_OTHERS):
                first = _most(first, held)
            else:
                one.problems += held.grown(first)
    return done


@contextmanager
def _service(user: User, done: Sequence[Round]) -> Iterator[None]:
    """Start the deployment; stop it, and report what is left in the last round."""
    user.env["STANDIN_TOKEN_S"] = "0.005"  # a stream lasts a second: each fault hits some
    try:
        user.run("start", "local-dual", "--name", NAME, *words_of(SETTINGS))
        yield
    finally:
        left = []
        try:
            user.run("stop", NAME)
        except SystemExit as error:
            left.append(str(error))
        left += _left(user)
        print(*left, sep="\n", file=sys.stderr)
        for one in done[-1:]:
            one.problems += left


def _run_round(user: User, clients: Clients, one: Round) -> None:
    clients.take()
    time.sleep(QUIET_S)
    try:
        _break(user, one)
    except SystemExit as error:
        print(error, file=sys.stderr)
        one.problems.append(str(error))
    one.count(clients.take())


def _break(user: User, one: Round) -> None:
    before = _pids(user)
    words = ("drill", NAME, "--fault", one.kind, "--yes", "-o", "json")
    (outcome,) = json.loads(user.run(*words, refused=(NOT_DRILLED,)))
    one.recovery_s = outcome["recovery_s"]
    problems = (outcome["problem"], outcome["skipped"])
    one.problems += [problem for problem in problems if problem]
    time.sleep(QUIET_S)
    if _pids(user) != before:
        one.problems.append("servers were not left alone")


def _status(user: User) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(user.run("status", NAME, "-o", "json"))
    return status


def _endpoint(user: User) -> str:
    endpoint: str = _status(user)["endpoint"]
    return endpoint


def _pids(user: User) -> list[tuple[int, int]]:
    """Return attempt and pid of each server."""
    status = _status(user)
    return [(status["attempt"], server["seen"]["pid"]) for server in status["servers"]]


def _held(user: User) -> Held:
    pids = _own_pids()
    files = 0
    for pid in pids:
        try:
            files += psutil.Process(pid).num_fds()
        except psutil.Error:
            continue  # gone meanwhile
    return Held(len(pids), len(_sockets(user)), files)


def _most(first: Held | None, now: Held) -> Held:
    if first is None:
        return now
    return Held(
        max(first.processes, now.processes),
        max(first.sockets, now.sockets),
        max(first.files, now.files),
    )


def _own_pids() -> list[int]:
    """Return the processes of the deployment and of its cluster."""
    own = (NAME, f"@{NAME}-")
    return [found.pid for found in find_marked() if found.deployment.startswith(own)]


def _sockets(user: User) -> list[Path]:
    return list(Path(user.env["RAYLAUNCH_HOME"]).rglob("*.sock"))


def _left(user: User) -> list[str]:
    """Return what is left after `stop`; stop it, so that the next part is not disturbed."""
    left = [f"process {pid} is left" for pid in _own_pids() if pid != os.getpid()]
    left += [f"{path.name} is left" for path in _sockets(user)]
    terminate_marked(NAME, instance=ANY_INSTANCE, grace_s=0)
    return left
