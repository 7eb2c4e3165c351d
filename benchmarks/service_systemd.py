"""The units of `raylaunch service install --local` under a real systemd; needs root.

A host boots systemd (booted_host.py), gets the service, and then one fault or change after the
other, under clients that never retry. Then its power is cut, as often as --cuts says, it is
rebooted in order, and the service is removed. The stand-in of the tests is in vLLM's place.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from availability_service import CLIENTS, AwaitedError, Clients, asking
from booted_host import BootedHost, BootedHostError, await_true, open_host
from report import ROOT, publish, spread, table

RECIPE = "local-dual"
UNIT = f"raylaunch-deployment-{RECIPE}.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
BIN = f"{sys.prefix}/bin"
STANDIN = f"{ROOT}/tests/standin/bin/vllm"
GATEWAY_PORT = 28200
SETTINGS = (
    *("gateway.enabled=true", f"gateway.port={GATEWAY_PORT}"),
    *("network.http_port=28210", "network.rpc_port=28230"),
)
MANAGER = f"""[Manager]
DefaultEnvironment=RAYLAUNCH_VLLM={STANDIN} STANDIN_PYTHON={sys.executable} STANDIN_TOKEN_S=0.005
"""
"""What a host with vLLM has anyway: the units are exactly those that raylaunch writes."""
WATCHDOG_S = 30
WATCHDOG_FILE = f"/run/systemd/system/{UNIT}.d/watchdog.conf"
STARTED_S, CONTROL_S, QUIET_S, DOWN_S = 300.0, 300.0, 3.0, 180.0
GOAL_S = 60.0
"""Goal: under control again, with 0 failed requests and the same servers."""
DAEMONS = {"gcs": "/gcs_server ", "raylet": "/raylet/raylet "}


@dataclass
class Step:
    """One fault or change, and what it did. Seconds; None: not reached."""

    what: str
    took_s: float | None = None
    """Until the unit is active, reports ready, and Ray has all its daemons."""
    shown_s: float | None = None
    """Until `raylaunch status` has shown the deployment under control; it takes seconds itself."""
    requests: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    kept: bool | None = None
    """Whether the servers are the same processes; None where they cannot be."""
    problems: list[str] = field(default_factory=list)

    def count(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Add finished requests."""
        self.requests += len(requests)
        self.failed += sum(one["result"] != "ok" for one in requests)
        self.slowest_s = max([self.slowest_s, *(one["s"] for one in requests)])
        self.problems += sorted({one["result"] for one in requests} - {"ok"})[:3]


class Service:
    """The service on its host."""

    address = "127.0.0.1"
    """The gateway's."""

    def __init__(self, host: BootedHost) -> None:
        self.host = host

    def raylaunch(self, *words: str, accepted: Sequence[int] = (0,)) -> str:
        """Run raylaunch as a person does who has logged in."""
        return self.host.run(f"{BIN}/raylaunch", *words, accepted=accepted)

    def install(self) -> None:
        """Install the service."""
        sets = [word for setting in SETTINGS for word in ("--set", setting)]
        self.raylaunch("service", "install", RECIPE, "--local", *sets)

    def state(self) -> dict[str, str]:
        """Return what systemd has of the unit."""
        names = ("ActiveState", "SubState", "MainPID", "NRestarts", "StatusText", "Type")
        return self.host.unit(UNIT, *names, "LoadState", "UnitFileState", "WatchdogUSec", "Result")

    def status(self) -> dict[str, Any]:
        """Return what `raylaunch status` shows; {} while it finds nothing."""
        try:
            shown: dict[str, Any] = json.loads(self.raylaunch("status", RECIPE, "-o", "json"))
        except (BootedHostError, ValueError):
            return {}
        return shown

    def servers(self) -> set[int]:
        """Return the pids of the servers' main processes."""
        return set(self.find("standin_vllm.py serve"))

    def is_controlled(self) -> bool:
        """Whether the deployment is ready, and each server has an agent that knows its pid."""
        shown = self.status()
        seen = [server["seen"] for server in shown.get("servers", ())]
        known = {one.get("pid") for one in seen if not one.get("agent_lost")}
        return shown.get("phase") == "ready" and bool(known) and known == self.servers()

    def follows(self) -> bool:
        """Whether the unit runs, and has reported to systemd that the deployment is ready.

        It costs little: a command of raylaunch takes seconds of CPU time.
        """
        state = self.state()
        is_running = (state["ActiveState"], state["SubState"]) == ("active", "running")
        return is_running and f"{RECIPE} is ready" in state["StatusText"]

    def is_ready(self) -> bool:
        """Whether the unit follows, and the deployment is under control."""
        return self.follows() and self.is_controlled()

    def daemons(self) -> set[int]:
        """Return the pids of Ray's GCS and raylets."""
        running = self.host.processes()
        return {
            pid for pid, args in running.items() if any(kind in args for kind in DAEMONS.values())
        }

    def find(self, *parts: str) -> list[int]:
        """Return the pids of processes whose command line has one of these parts."""
        running = self.host.processes()
        return [pid for pid, args in running.items() if any(part in args for part in parts)]

    def kill(self, pids: list[int], number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Send a signal to processes, which may have exited meanwhile; return their pids."""
        if not pids:
            raise AwaitedError("there is no process to kill")
        self.host.run("kill", f"-{int(number)}", *map(str, pids), accepted=(0, 1))
        return pids

    @contextmanager
    def clients(self) -> Iterator[Clients]:
        """Run clients on the host, in front of the deployment's address."""
        url = f"http://{self.address}:{GATEWAY_PORT}"
        process = self.host.popen(sys.executable, "-u", str(CLIENTS), url, "2", "1")
        with asking(process) as clients:
            yield clients


# -- faults ----------------------------------------------------------------------------------------


def kill_follower(service: Service) -> list[int]:
    """SIGKILL the unit's main process."""
    return service.kill([int(service.state()["MainPID"])])


def kill_gcs(service: Service) -> list[int]:
    """SIGKILL the GCS."""
    return service.kill(service.find(DAEMONS["gcs"]))


def kill_raylets(service: Service) -> list[int]:
    """SIGKILL all raylets."""
    return service.kill(service.find(DAEMONS["raylet"]))


def kill_ray(service: Service) -> list[int]:
    """SIGKILL every process of Ray."""
    return service.kill(service.find("/site-packages/ray/", "ray::", *DAEMONS.values()))


def kill_ray_and_supervisor(service: Service) -> list[int]:
    """SIGKILL every process of Ray and what would start it again."""
    ray = ("/site-packages/ray/", "ray::", *DAEMONS.values())
    supervisor = service.kill(service.find("daemon_supervisor"))
    return [*supervisor, *service.kill(service.find(*ray))]


def restart_unit(service: Service) -> list[int]:
    """Restart the unit."""
    service.host.run("systemctl", "restart", "--no-block", UNIT)
    return []


def stop_and_start_unit(service: Service) -> list[int]:
    """Stop the unit, then start it."""
    service.host.run("systemctl", "stop", UNIT)
    service.host.run("systemctl", "start", "--no-block", UNIT)
    return []


def install_again(service: Service) -> list[int]:
    """Install the service a second time."""
    service.install()
    return []


def reexecute_systemd(service: Service) -> list[int]:
    """Let systemd replace itself, as an update of its package does."""
    service.host.run("systemctl", "daemon-reexec")
    return []


def hang_follower(service: Service) -> list[int]:
    """SIGSTOP the unit's main process, so that the watchdog fires."""
    return service.kill([int(service.state()["MainPID"])], signal.SIGSTOP)


FAULTS: Mapping[str, Callable[[Service], list[int]]] = {
    "SIGKILL of `start --follow`": kill_follower,
    "SIGKILL of the GCS": kill_gcs,
    "SIGKILL of all raylets": kill_raylets,
    "SIGKILL of all of Ray": kill_ray,
    "SIGKILL of all of Ray and of what starts it again": kill_ray_and_supervisor,
    "`systemctl restart` of the unit": restart_unit,
    "`systemctl stop`, then `start`": stop_and_start_unit,
    "`service install` again": install_again,
    "`systemctl daemon-reexec`": reexecute_systemd,
    f"SIGSTOP of `start --follow` (watchdog, {WATCHDOG_S} s here)": hang_follower,
}
RESTARTED = (kill_follower, restart_unit, stop_and_start_unit, install_again, hang_follower)
"""Faults after which the unit has another main process."""


def run_step(
    service: Service, what: str, fault: Callable[[Service], list[int]], clients: Clients
) -> Step:
    """Inject one fault; wait until the deployment is under control again."""
    step = Step(what)
    servers, daemons, main = service.servers(), len(service.daemons()), service.state()["MainPID"]
    clients.take()
    time.sleep(QUIET_S)
    began = time.monotonic()

    def is_back() -> bool:
        if fault in RESTARTED and service.state()["MainPID"] in (main, "0"):
            return False
        now = service.daemons()
        is_whole = len(now) == daemons and now.isdisjoint(killed)
        return is_whole and service.follows()

    try:
        killed = fault(service)
        await_true(is_back, CONTROL_S, what)
        step.took_s = time.monotonic() - began
        await_true(service.is_ready, CONTROL_S, f"{what}: `raylaunch status`")
        step.shown_s = time.monotonic() - began
        step.kept = service.servers() == servers
    except (BootedHostError, AwaitedError) as error:
        step.problems.append(str(error)[:300])
    time.sleep(QUIET_S)
    step.count(clients.take())
    return step


def run_faults(service: Service, names: Sequence[str]) -> Iterator[Step]:
    """Inject faults one after the other; stop at the first after which nothing comes back."""
    with service.clients() as clients:
        for what in names:
            if FAULTS[what] is hang_follower:
                set_watchdog(service)
            step = run_step(service, what, FAULTS[what], clients)
            yield step
            if step.shown_s is None:
                return


def set_watchdog(service: Service) -> None:
    """Shorten the watchdog until the next boot, and restart the unit."""
    folder, _, _ = WATCHDOG_FILE.rpartition("/")
    text = f"[Service]\\nWatchdogSec={WATCHDOG_S}\\n"
    write = f'mkdir -p {folder} && printf "{text}" > {WATCHDOG_FILE} && systemctl daemon-reload'
    service.host.run("sh", "-c", write)
    service.host.run("systemctl", "restart", UNIT)
    await_true(service.is_ready, CONTROL_S, "the unit with a short watchdog")


# -- boots -----------------------------------------------------------------------------------------


def start_anew(
    service: Service,
    what: str,
    down: Callable[[], None],
    boot: Callable[[], None] | None = None,
) -> Step:
    """Take a host down and boot it: no command is typed."""
    step = Step(what)
    try:
        down()
        began = time.monotonic()
        (boot or service.host.boot)()
        await_true(lambda: _follows(service), STARTED_S, f"{what}: the unit")
        step.took_s = time.monotonic() - began
        print(f"{what}: the unit was ready after {step.took_s:.1f} s", file=sys.stderr)
        await_true(service.is_ready, CONTROL_S, what)
        step.shown_s = time.monotonic() - began
        with service.clients() as clients:
            time.sleep(QUIET_S)
        step.count(clients.take())
    except (BootedHostError, AwaitedError) as error:
        step.problems.append(str(error)[:300])
    return step


def _follows(service: Service) -> bool:
    try:
        return service.follows()
    except (BootedHostError, KeyError):
        return False  # systemd does not answer yet


def shut_down(host: BootedHost) -> float:
    """Shut the host down as `reboot` does; return how long it took, in seconds."""
    began = time.monotonic()
    host.run("systemctl", "poweroff", accepted=(0, 1))
    await_true(lambda: not host.is_up, DOWN_S, f"{host.name}: shut down")
    return time.monotonic() - began


# -- the trial -------------------------------------------------------------------------------------


def install(service: Service) -> Step:
    """Install the service on a fresh host, and wait until the unit is active."""
    step = Step("`service install --local`")
    began = time.monotonic()
    service.install()
    await_true(lambda: _follows(service), STARTED_S, "the unit")
    step.took_s = time.monotonic() - began
    if not service.is_ready():
        step.problems.append("the unit is active, and `status` does not show ready")
    step.shown_s = time.monotonic() - began
    state = service.state()
    if state["UnitFileState"] != "enabled" or state["Type"] != "notify":
        step.problems.append(f"the unit: {state}")
    verified = service.host.run("systemd-analyze", "verify", UNIT_FILE)
    step.problems += verified.splitlines()
    return step


def remove(service: Service) -> Step:
    """Remove the service, stop the deployment, and list what is left."""
    step = Step("`service remove`, then `stop`")
    servers = service.servers()
    began = time.monotonic()
    service.raylaunch("service", "remove", RECIPE)
    step.took_s = time.monotonic() - began
    left = [
        path for path in (UNIT_FILE, f"/etc/raylaunch/deployments/{RECIPE}") if _is(service, path)
    ]
    if left or service.state()["LoadState"] != "not-found":
        step.problems.append(f"left: {left}, {service.state()}")
    step.kept = service.servers() == servers
    service.raylaunch("stop", RECIPE)
    step.problems += [f"left: {args[:150]}" for args in service.host.processes().values()]
    return step


def _is(service: Service, path: str) -> bool:
    return service.host.file(path).exists()


def run_trial(cuts: int, names: Sequence[str], show: Callable[[Step], None]) -> list[Step]:
    """Run everything; return the steps."""
    steps: list[Step] = []

    def add(step: Step) -> Step:
        steps.append(step)
        show(step)
        return step

    files = {"/etc/systemd/system.conf.d/standin.conf": MANAGER}
    with open_host("h0", files=files, path=BIN) as host:
        service = Service(host)
        host.boot()
        host.await_booted()
        add(install(service))
        for step in run_faults(service, names):
            add(step)
        for _ in range(cuts):
            add(start_anew(service, "power cut", host.cut_power))
        add(start_anew(service, "reboot in order", lambda: add_down(steps, host)))
        add(remove(service))
    return steps


def add_down(steps: list[Step], host: BootedHost) -> None:
    """Shut down, as a step of its own."""
    steps.append(Step("shut down in order", took_s=shut_down(host)))


def missed(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a sentence for each goal that was missed."""
    for step in steps:
        if step.took_s is None or step.problems:
            yield f"systemd: {step.what}: {'; '.join(step.problems) or 'not reached'}"
        elif step.kept is False:
            yield f"systemd: {step.what}: other servers than before"
        elif step.kept and step.took_s > GOAL_S and step.requests:
            yield f"systemd: {step.what}: {step.took_s:.0f} s, goal {GOAL_S:.0f} s"


def rows(steps: Sequence[Step]) -> list[list[str]]:
    """Return the table, a row for each kind of step in order of first appearance."""
    same: dict[str, list[Step]] = {}
    for step in steps:
        same.setdefault(step.what, []).append(step)
    return [_row(what, those) for what, those in same.items()]


def _row(what: str, those: Sequence[Step]) -> list[str]:
    took = [one.took_s for one in those if one.took_s is not None]
    shown = [one.shown_s for one in those if one.shown_s is not None]
    requests = sum(one.requests for one in those)
    kept = {one.kept for one in those}
    return [
        what,
        str(len(those)),
        spread(took) if took else "never",
        spread(shown) if shown else "-",
        {True: "the same", False: "others"}.get(kept.pop(), "-") if len(kept) == 1 else "mixed",
        f"{sum(one.failed for one in those)} of {requests}" if requests else "-",
        f"{max(one.slowest_s for one in those):.1f}" if requests else "-",
    ]


HEAD = (
    *("what happened", "times", "unit and Ray back after, s", "shown by `status` after, s"),
    *("servers", "requests failed", "slowest, s"),
)


def show(step: Step) -> None:
    """Print a step as soon as it is done."""
    print(json.dumps(vars(step)), flush=True)


def main() -> int:
    """Run the trial and publish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=3, help="power cuts")
    parser.add_argument("--short", action="store_true", help="print the table only")
    parser.add_argument("--only", action="append", default=[], help="a part of a fault's name")
    options = parser.parse_args()
    names = [name for name in FAULTS if not options.only or any(p in name for p in options.only)]
    steps = run_trial(options.cuts, names, show)
    version = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[0]
    text = table(HEAD, rows(steps))
    data = {"systemd": version, "steps": [vars(step) for step in steps]}
    title = f"The service's unit under {version.partition(' (')[0]}"
    publish("service_systemd", title, text, data, missed=list(missed(steps)), short=options.short)
    return 1 if any(step.took_s is None for step in steps) else 0


if __name__ == "__main__":
    sys.exit(main())
