"""The units of `service install --cluster` under a real systemd, on two hosts; needs root.

Two hosts boot systemd (booted_host.py) with sshd, joined by one cable. The first one installs the
service over SSH on both. Then faults under clients that never retry, power cuts with the hosts
booted in either order and apart, and the removal. The stand-in of the tests is in vLLM's place.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from availability_service import AwaitedError
from booted_host import BootedHost, BootedHostError, await_true, open_host
from report import publish, table
from service_systemd import (
    BIN,
    HEAD,
    RECIPE,
    SETTINGS,
    STANDIN,
    UNIT,
    Service,
    Step,
    missed,
    rows,
    run_step,
    show,
    start_anew,
)

CLUSTER = "pair"
RAY_UNIT = f"raylaunch-cluster-{CLUSTER}.service"
FILE = f"/root/{CLUSTER}.yaml"
ADDRESSES = {"h0": "10.77.0.10", "h1": "10.77.0.11"}
KEY = "/root/.ssh/id_ed25519"
SETS = (*SETTINGS, "network.interface=auto")
BASHRC = f"""export PATH={BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export RAYLAUNCH_VLLM={STANDIN} STANDIN_PYTHON={sys.executable} STANDIN_TOKEN_S=0.005
export PYTHONDONTWRITEBYTECODE=1
"""
SSHD_UNIT = """[Service]
ExecStartPre=/usr/bin/chmod 600 /etc/ssh/host_key
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/config
Restart=always
"""
SSHD_CONFIG = """HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
"""
LATER_S = 30.0
"""Between the boots of the hosts after a power cut."""
STARTED_S = 300.0


class ClusterService(Service):
    """The service on the hosts, seen from the head."""

    address = ADDRESSES["h0"]

    def __init__(self, hosts: Sequence[BootedHost]) -> None:
        super().__init__(hosts[0])
        self.hosts = tuple(hosts)

    def install(self) -> None:
        """Install the service on both hosts."""
        sets = [word for setting in SETS for word in ("--set", setting)]
        self.raylaunch("service", "install", RECIPE, "--cluster", FILE, *sets)

    def raylaunch(self, *words: str, accepted: Sequence[int] = (0,)) -> str:
        """Run raylaunch on the head, with the cluster's token."""
        env = {
            "RAY_ADDRESS": f"{ADDRESSES['h0']}:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"/root/.raylaunch/cluster/{CLUSTER}/token",
        }
        return self.host.run(f"{BIN}/raylaunch", *words, env=env, accepted=accepted)

    def all_of(self, host: BootedHost, *parts: str) -> set[tuple[str, int]]:
        """Return hosts and pids of the processes with one of these parts."""
        running = host.processes()
        return {
            (host.name, pid) for pid, args in running.items() if any(one in args for one in parts)
        }

    def server_places(self) -> set[tuple[str, int]]:
        """Return where the servers run."""
        return {
            place for host in self.hosts for place in self.all_of(host, "standin_vllm.py serve")
        }

    def servers(self) -> set[int]:
        """Return the pids of the servers; on two hosts they may be equal."""
        return {pid for _, pid in self.server_places()}

    def daemons(self) -> set[int]:
        """Return the pids of Ray's GCS and raylets, with the host's number in front."""
        parts = ("/gcs_server ", "/raylet/raylet ")
        return {
            number * 10_000_000 + pid
            for number, host in enumerate(self.hosts)
            for _, pid in self.all_of(host, *parts)
        }


def _kill_ray(service: Service, number: int) -> list[int]:
    assert isinstance(service, ClusterService)
    host = service.hosts[number]
    parts = ("/site-packages/ray/", "ray::", "/gcs_server ", "/raylet/raylet ", "/bin/ray start")
    pids = [pid for _, pid in service.all_of(host, *parts)]
    if not pids:
        raise AwaitedError("there is no process to kill")
    host.run("kill", "-9", *map(str, pids), accepted=(0, 1))
    return [number * 10_000_000 + pid for pid in pids]


def _restart_ray(service: Service, number: int) -> list[int]:
    assert isinstance(service, ClusterService)
    before = service.daemons()
    service.hosts[number].run("systemctl", "restart", "--no-block", RAY_UNIT)
    return [pid for pid in before if pid // 10_000_000 == number]


def _restart_deployment(service: Service) -> list[int]:
    service.host.run("systemctl", "restart", "--no-block", UNIT)
    return []


FAULTS: Mapping[str, Callable[[Service], list[int]]] = {
    "SIGKILL of all of Ray on the worker": lambda service: _kill_ray(service, 1),
    "SIGKILL of all of Ray on the head": lambda service: _kill_ray(service, 0),
    "`systemctl restart` of Ray's unit on the worker": lambda service: _restart_ray(service, 1),
    "`systemctl restart` of Ray's unit on the head": lambda service: _restart_ray(service, 0),
    "`systemctl restart` of the deployment's unit": _restart_deployment,
}


@contextmanager
def open_pair() -> Iterator[ClusterService]:
    """Build and boot two hosts with sshd, joined by a cable, and the cluster's file on the head."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rl-keys-")))
        private, public = _key(folder, "user")
        table_of_hosts = "".join(f"{ip} {name}\n" for name, ip in ADDRESSES.items())
        hosts = []
        for name in ADDRESSES:
            files = {
                "/etc/hosts": f"127.0.0.1 localhost\n{table_of_hosts}",
                "/etc/shadow": "root:*:1::::::\n",  # without it sshd takes root for locked
                "/etc/ssh/host_key": _key(folder, name)[0],
                "/etc/ssh/authorized": public,
                "/etc/ssh/config": SSHD_CONFIG,
                "/etc/systemd/system/sshd.service": SSHD_UNIT,
                "/etc/systemd/system/multi-user.target.d/sshd.conf": "[Unit]\nWants=sshd.service\n",
                "/root/.bashrc": BASHRC,
                "/root/.profile": ". ~/.bashrc\n",
                KEY: private,
            }
            hosts.append(stack.enter_context(open_host(name, files=files, path=BIN)))
        _join(hosts)
        for host in hosts:
            host.boot()
        for host in hosts:
            host.await_booted()
            host.run("chmod", "600", KEY)
        words = ["--name", CLUSTER, "--head", ADDRESSES["h0"], "--worker", ADDRESSES["h1"]]
        words += ["--ssh-user", "root", "--ssh-key", KEY, "--bare", "-o", FILE]
        hosts[0].run(f"{BIN}/raylaunch", "cluster", RECIPE, *words)
        yield ClusterService(hosts)


def _key(folder: Path, name: str) -> tuple[str, str]:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
    subprocess.run(words, check=True)
    return (folder / name).read_text(), (folder / f"{name}.pub").read_text()


def _join(hosts: Sequence[BootedHost]) -> None:
    """Lay a cable between the hosts. It outlives their power cuts."""
    first, second = hosts
    ends = ["eth0", "netns", str(first.holder), "type", "veth"]
    ends += ["peer", "name", "eth0", "netns", str(second.holder)]
    subprocess.run(["ip", "link", "add", *ends], check=True)
    for host in hosts:
        inside = ["nsenter", f"--target={host.holder}", "--net", "--", "ip"]
        address = f"{ADDRESSES[host.name]}/24"
        subprocess.run([*inside, "address", "add", address, "dev", "eth0"], check=True)
        subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)


def install(service: ClusterService) -> Step:
    """Install the service on both hosts, and wait until the deployment's unit is active."""
    step = Step("`service install --cluster`")
    began = time.monotonic()
    service.install()
    await_true(service.follows, STARTED_S, "the deployment's unit")
    step.took_s = time.monotonic() - began
    await_true(service.is_ready, STARTED_S, "`raylaunch status`")
    step.shown_s = time.monotonic() - began
    for host in service.hosts:
        step.problems += host.run(
            "sh", "-c", "systemd-analyze verify /etc/systemd/system/raylaunch-*.service 2>&1"
        ).splitlines()
    return step


def cut_both(service: ClusterService, order: Sequence[int]) -> Step:
    """Cut the power of both hosts, and boot them in this order, LATER_S apart."""
    names = ", then ".join("the head" if number == 0 else "the worker" for number in order)

    def boot() -> None:
        service.hosts[order[0]].boot()
        time.sleep(LATER_S)
        service.hosts[order[1]].boot()

    def down() -> None:
        for host in service.hosts:
            host.cut_power()

    return start_anew(service, f"power cut of both; {LATER_S:.0f} s apart: {names}", down, boot)


def cut_worker(service: ClusterService) -> Step:
    """Cut the power of the worker, and boot it again."""
    worker = service.hosts[1]
    return start_anew(service, "power cut of the worker", worker.cut_power, worker.boot)


def remove(service: ClusterService) -> Step:
    """Remove the service; list what is left on the hosts."""
    step = Step("`service remove --cluster`")
    began = time.monotonic()
    service.raylaunch("service", "remove", RECIPE, "--cluster", FILE)
    step.took_s = time.monotonic() - began
    for host in service.hosts:
        running = [args for args in host.processes().values() if "sshd" not in args]
        step.problems += [f"{host.name} runs {args[:150]}" for args in running]
        paths = ("/etc/systemd/system", "/etc/raylaunch")
        words = [*paths, "-name", "*raylaunch-*", "-o", "-path", "*/raylaunch/*"]
        found = host.run("find", *words, accepted=(0, 1))
        step.problems += [f"{host.name} has {path}" for path in found.split()]
    return step


def run_trial(names: Sequence[str]) -> list[Step]:
    """Run everything; return the steps."""
    steps: list[Step] = []

    def add(step: Step) -> bool:
        steps.append(step)
        show(step)
        return step.took_s is not None

    with open_pair() as service:
        try:
            add(install(service))
            with service.clients() as clients:
                for what in names:
                    if not add(run_step(service, what, FAULTS[what], clients)):
                        break
            for order in ((0, 1), (1, 0)):
                add(cut_both(service, order))
            add(cut_worker(service))
            add(remove(service))
        except (BootedHostError, AwaitedError) as error:
            steps.append(Step("the trial", problems=[str(error)]))
            show(steps[-1])
    return steps


def main() -> int:
    """Run the trial and publish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="print the table only")
    parser.add_argument("--only", action="append", default=[], help="a part of a fault's name")
    options = parser.parse_args()
    names = [name for name in FAULTS if not options.only or any(p in name for p in options.only)]
    steps = run_trial(names)
    text = table(HEAD, rows(steps))
    data = {"steps": [vars(step) for step in steps]}
    title = "The service's units under systemd on two hosts"
    short = options.short
    publish("service_systemd_hosts", title, text, data, missed=list(missed(steps)), short=short)
    return 1 if any(step.took_s is None for step in steps) else 0


if __name__ == "__main__":
    sys.exit(main())
