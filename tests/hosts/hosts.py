"""Test hosts: each with its own address, processes, hostname, HOME, /tmp, /dev/shm and sshd, on one
machine.

A host is a set of unnamed Linux namespaces held by one process (host_init.py); so is the switch
that joins them. Nothing is made in the machine's own network, so runs side by side cannot collide,
and nothing outlives the test run: when the process that built the hosts ends, theirs end too, and
with them the network. Files are the machine's, except for the folders in PRIVATE. Each host sees
its own processes only, so `ray stop` and `ray down` are as real as on two machines.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
INIT = Path(__file__).with_name("host_init.py")
NET = "10.77.0"
HOME = "/root"
PRIVATE = ("/run", "/dev/shm", HOME, "/tmp")
KEPT = tuple(dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix]))
SCRIPTS = sysconfig.get_path("scripts")
PATH = f"{SCRIPTS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY_S = 60.0
END_S = 60.0
UNSHARE = ("--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--mount-proc", "--kill-child")

SSHD_CONFIG = """\
HostKey /run/sshd/host_key
AuthorizedKeysFile /run/sshd/authorized
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
PidFile none
"""


@dataclass(eq=False)
class Host:
    """One test host.

    `ip` is its address on the switch (interface eth0), `init` the pid of its first process.
    """

    name: str
    ip: str
    init: int
    switch: int
    _holder: subprocess.Popen[str]
    _others: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host with its output captured; raise AssertionError with both
        streams when it fails."""
        done = subprocess.run(
            self.command(command),
            env=self.environment(env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            shown = f"{done.stdout}\n{done.stderr}"
            raise AssertionError(f"{self.name}: {list(command)} exited {done.returncode}:\n{shown}")
        return done

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **more
    ) -> subprocess.Popen[str]:
        """Start a command on the host.

        Its process here is `nsenter`; the host's end ends what it started.
        """
        process = subprocess.Popen(
            self.command(command),
            env=self.environment(env),
            text=True,
            **{"stdin": subprocess.DEVNULL, **more},
        )
        self._others.append(process)
        return process

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` on this host from outside."""
        spaces = ("--net", "--mount", "--pid", "--uts", "--ipc")
        return ["nsenter", f"--target={self.init}", *spaces, f"--wdns={HOME}", "--", *command]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a fresh login would have; nothing of the test run but what is listed in `more`."""
        return {
            "HOME": HOME,
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "USER": "root",
            **(more or {}),
        }

    def path(self, path: str) -> Path:
        """A path of the host, seen from outside."""
        return Path(f"/proc/{self.init}/root") / path.lstrip("/")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the host."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def processes(self) -> dict[int, str]:
        """Command lines of the host's living processes, by their pid there; without its first one
        and its sshd."""
        found = {}
        for entry in self.path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                args = (
                    (entry / "cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                    .strip()
                )
                if (
                    entry.name != "1"
                    and state != "Z"
                    and not args.startswith(("sshd", "/usr/sbin/sshd"))
                ):
                    found[int(entry.name)] = args
        return found

    def cut(self) -> None:
        """Let the network lose every packet to and from the host, as a failing switch would; links
        stay up."""
        _in_net(self.switch, "ip", "link", "set", f"to-{self.name}", "nomaster")

    def heal(self) -> None:
        """Undo `cut` or `unplug`."""
        _in_net(self.switch, "ip", "link", "set", f"to-{self.name}", "master", "br0", "up")

    def unplug(self) -> None:
        """Pull the cable: the host sees its link go down."""
        _in_net(self.switch, "ip", "link", "set", f"to-{self.name}", "down")

    def add_nic(self, name: str, *addresses: str, kind: str = "veth", network: str = "br0") -> None:
        """Give the host one more interface of any name ("eth10", "bond0"), with "address/bits"
        each.

        A veth is joined to the hosts' switch (to another one with another `network`, which is made
        when it is new), a vlan lies on eth0; a bridge (as docker0 is), dummy or bond is on the host
        alone. Not every kernel has all kinds (`kernel_has`).
        """
        if kind == "veth":
            _plug(self.switch, self.init, name, f"{self.name[:4]}-{name[-9:]}", network)
        elif kind == "vlan":
            _in_net(
                self.init,
                "ip",
                "link",
                "add",
                "link",
                "eth0",
                "name",
                name,
                "type",
                "vlan",
                "id",
                "77",
            )
        else:
            _in_net(self.init, "ip", "link", "add", name, "type", kind)
        _in_net(self.init, "ip", "link", "set", name, "up")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            _in_net(self.init, "ip", "address", "add", address, "dev", name, *nodad)

    def disguise(self, nic: str, uevent: str, *folders: str) -> None:
        """Let /sys describe an interface as another kind does, for kernels without that kind."""
        shown = f"/sys/devices/virtual/net/{nic}"
        files = {
            name: self.run(["cat", f"{shown}/{name}"]).stdout
            for name in ("type", "ifindex", "iflink")
        }
        self.run(["mount", "-n", "-t", "tmpfs", "disguise", shown])
        for name, text in {**files, "uevent": f"{uevent}\nINTERFACE={nic}\n"}.items():
            self.put(f"{shown}/{name}", text)
        for folder in folders:
            self.path(f"{shown}/{folder}").mkdir()

    def save(self, path: str, folder: Path) -> None:
        """Copy a file or folder of the host to `folder` (for the logs of a failed test); nothing
        when it is missing."""
        # An absolute link (Ray's session_latest) would lead to the machine's own files from here.
        real = self.run(["readlink", "-e", path], check=False).stdout.strip()
        if real:
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["cp", "-r", "--no-dereference", str(self.path(real)), str(folder)], check=False
            )


@dataclass(eq=False)
class Hosts:
    """Test hosts joined by a switch.

    `private_key` is the text of the key that every host's root accepts.
    """

    hosts: list[Host]
    switch: int
    private_key: str

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __len__(self) -> int:
        return len(self.hosts)


def kernel_has(kind: str) -> bool:
    """Whether interfaces of this kind can be made on this machine."""
    parent = "ip link add p type veth peer name q && ip link add link p name x type vlan id 5"
    wanted = parent if kind == "vlan" else f"ip link add x type {kind}"
    command = ["unshare", "--net", "sh", "-c", wanted]
    return (
        subprocess.run(command, env={"PATH": PATH}, capture_output=True, check=False).returncode
        == 0
    )


def build_hosts(names: Sequence[str], folder: Path, stack: ExitStack) -> Hosts:
    """Build hosts of these names, each with sshd; `stack` ends them.

    `folder` holds keys while they are made.
    """
    _, switch = _hold("switch", {"files": {}, "private": [], "kept": []}, stack)
    addresses = {name: f"{NET}.{10 + number}" for number, name in enumerate(names)}
    hosts = [_build(name, addresses, switch, stack) for name in names]
    user_key = _make_key(folder / "user")
    for host in hosts:
        _start_sshd(host, folder, user_key.with_suffix(".pub").read_text(), stack)
    stack.callback(_end_at_once, hosts)
    return Hosts(hosts, switch, user_key.read_text())


def _build(name: str, addresses: Mapping[str, str], switch: int, stack: ExitStack) -> Host:
    table = "".join(f"{ip} {each}\n" for each, ip in addresses.items())
    files = {
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{table}",
        "/etc/resolv.conf": "",
    }
    holder, init = _hold(name, {"files": files, "private": PRIVATE, "kept": KEPT}, stack)
    _plug(switch, init, "eth0", f"to-{name}")
    _in_net(init, "ip", "address", "add", f"{addresses[name]}/24", "dev", "eth0")
    host = Host(name, addresses[name], init, switch, holder)
    # `ray up` runs its commands in login shells: they must find this run's python, as on a host
    # prepared by hand.
    host.put(f"{HOME}/.bashrc", f"export PATH={PATH}\n")
    host.put(f"{HOME}/.profile", ". ~/.bashrc\n")
    return host


def _hold(
    name: str, wanted: Mapping[str, object], stack: ExitStack
) -> tuple[subprocess.Popen[str], int]:
    """Start a set of namespaces; return the process that holds it and the pid of the first one
    inside."""
    command = ["unshare", *UNSHARE, sys.executable, "-I", "-S", str(INIT), name, json.dumps(wanted)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    stack.callback(_end, process)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        said = process.stdout.readline().strip() if selector.select(READY_S) else "nothing"
    assert said == "ready", f"test host {name} said {said!r}"
    (init,) = psutil.Process(process.pid).children()
    return process, init.pid


def _end_at_once(hosts: Sequence[Host]) -> None:
    """Begin the end of all hosts together: each takes 1.5 s. Whoever waits for it comes later."""
    for host in hosts:
        host._holder.stdin.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Close the stdin that a first process waits for, and wait until the kernel has ended all of
    its host."""
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()  # unshare --kill-child: its child goes too
        process.wait()
    process.stdout.close()


def _plug(switch: int, init: int, nic: str, port: str, bridge: str = "br0") -> None:
    """Join a host to a switch by a cable: `nic` at the host's end, `port` at the switch's."""
    if not _has_nic(switch, bridge):
        _in_net(switch, "ip", "link", "add", bridge, "type", "bridge", "stp_state", "0")
        _in_net(switch, "ip", "link", "set", bridge, "up")
    _in_net(
        switch, "ip", "link", "add", port, "type", "veth", "peer", "name", nic, "netns", str(init)
    )
    _in_net(switch, "ip", "link", "set", port, "master", bridge, "up")
    _in_net(init, "ip", "link", "set", nic, "up")


def _start_sshd(host: Host, folder: Path, authorized: str, stack: ExitStack) -> None:
    host.put("/run/sshd/host_key", _make_key(folder / host.name).read_text(), 0o600)
    host.put("/run/sshd/authorized", authorized)
    host.put("/run/sshd/config", SSHD_CONFIG)
    log = host.path("/run/sshd/log").open("w")
    process = host.popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", "/run/sshd/config"], stdout=log, stderr=log
    )
    log.close()
    stack.callback(_reap, host, process)
    # `ss` shows a listener as soon as there is one; ssh itself would retry only by the clock.
    waiting = "until ss -Hltn 'sport = :22' | grep -q .; do sleep 0.05; done"
    host.run(["timeout", str(int(READY_S)), "bash", "-c", waiting], timeout=2 * READY_S)


def _reap(host: Host, sshd: subprocess.Popen[str]) -> None:
    sshd.terminate()
    for process in [sshd, *host._others]:
        if process.poll() is None and process is not sshd:
            process.kill()
        process.wait(END_S)


def _make_key(path: Path) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)],
        check=True,
    )
    return path


def _has_nic(pid: int, name: str) -> bool:
    shown = ["nsenter", f"--target={pid}", "--net", "--", "ip", "link", "show", name]
    return (
        subprocess.run(shown, env={"PATH": PATH}, capture_output=True, check=False).returncode == 0
    )


def _in_net(pid: int, *command: str) -> None:
    """Run a command in the network of another process, with this machine's files and processes."""
    done = subprocess.run(
        ["nsenter", f"--target={pid}", "--net", "--", *command],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
