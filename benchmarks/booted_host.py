"""A host that boots a real systemd, on this machine; needs root.

Its first process is systemd, in namespaces and a root folder of its own: booted_init.py has what
keeps the machine safe from it. Its files outlive a power cut, its processes do not.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from report import ROOT

INIT = Path(__file__).with_name("booted_init.py")
SYSTEMD = ("/lib/systemd/systemd", "--unit=multi-user.target", "--show-status=0")
NAMESPACES = ("--mount", "--net", "--uts", "--ipc", "--propagation", "private")
SIZE = "4g"
BOOTED_S = 120.0
COMMAND_S = 300.0
POLL_S = 0.5


class BootedHostError(Exception):
    """The host did not do what was asked; the text has what it printed."""


class BootedHost:
    """One host. `path` is that of a login on it."""

    def __init__(self, name: str, holder: subprocess.Popen[str], path: str) -> None:
        self.name = name
        self.path = path
        self.first = 0
        self._holder = holder

    @property
    def is_up(self) -> bool:
        """Whether its first process runs."""
        return is_alive(self.first)

    @property
    def holder(self) -> int:
        """Pid of the process that has the host's network and files, booted or not."""
        return self._holder.pid

    def boot(self, command: Sequence[str] = SYSTEMD) -> None:
        """Start the first process; do not wait for anything."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(json.dumps({"boot": list(command)}) + "\n")
        self._holder.stdin.flush()
        answer = self._holder.stdout.readline()
        if not answer:
            raise BootedHostError(f"{self.name} did not boot")
        self.first = json.loads(answer)["pid"]

    def cut_power(self) -> None:
        """SIGKILL the first process, and with it every process of the host."""
        descriptor = os.pidfd_open(self.first)
        try:
            os.kill(self.first, 9)
            await_true(lambda: not is_alive(self.first), BOOTED_S, f"{self.name}: power cut")
        finally:
            os.close(descriptor)

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` on the host from outside."""
        spaces = ("--user", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup")
        return ["nsenter", f"--target={self.first}", *spaces, "--wdns=/root", "--", *words]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a fresh login has, and `more`."""
        fixed = {"HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        return {**fixed, "PATH": self.path, "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}

    def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        timeout: float = COMMAND_S,
        accepted: Sequence[int] = (0,),
    ) -> str:
        """Run a command on the host; return its stdout.

        Raises:
            BootedHostError: another exit status than the accepted ones.
        """
        done = subprocess.run(
            self.command(words),
            env=self.environment(env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode not in accepted:
            raise BootedHostError(
                f"{self.name}: {' '.join(words)} exited with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """Start a command on the host, with pipes."""
        return subprocess.Popen(
            self.command(words),
            env=self.environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def file(self, path: str) -> Path:
        """Return a path of the host, as this machine reaches it."""
        return Path(f"/proc/{self.holder}/root") / path.lstrip("/")

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, as systemd has them."""
        text = self.run("systemctl", "show", f"--property={','.join(properties)}", name)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def await_booted(self) -> None:
        """Wait until systemd has started its default target.

        Raises:
            BootedHostError: not in time.
        """
        await_true(self._is_booted, BOOTED_S, f"{self.name}: systemd did not reach its target")

    def processes(self) -> dict[int, str]:
        """Return the command lines of the host's processes by their pids there, without systemd."""
        lines = self.run("ps", "-ww", "-eo", "pid=,stat=,args=").splitlines()
        found = {}
        for pid, stat, args in (line.split(None, 2) for line in lines):
            own = pid == "1" or args.startswith(("ps -ww", "/lib/systemd/", "(sd-"))
            if not own and not stat.startswith("Z"):
                found[int(pid)] = args
        return found

    def _is_booted(self) -> bool:
        try:
            return self.unit("multi-user.target", "ActiveState")["ActiveState"] == "active"
        except (BootedHostError, KeyError):
            return False


def await_true(check: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait until `check` holds.

    Raises:
        BootedHostError: not within `limit_s`.
    """
    until = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > until:
            raise BootedHostError(f"{what}: not within {limit_s:g} s")
        time.sleep(POLL_S)


def is_alive(pid: int) -> bool:
    """Whether a process of the machine runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def open_host(
    name: str,
    *,
    files: Mapping[str, str] | None = None,
    path: str = "",
) -> Iterator[BootedHost]:
    """Build a host; the end of the context ends it, as does the death of this process.

    Args:
        name: Its hostname.
        files: Texts by absolute path, in place before the first boot.
        path: Folders of programs that come first in its PATH.
    """
    own = {
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost {name}\n::1 localhost\n",
        "/etc/resolv.conf": "",
        # Without one the first boot enables whatever the distribution has.
        "/etc/machine-id": f"{secrets.token_hex(16)}\n",
        **(files or {}),
    }
    programs = list(dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix]))
    programs = [one for one in programs if not _is_below(one, programs)]
    # An exception, so that the folder and the host go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="rl-host-") as folder:
        wanted = {
            "name": f"{name}-{secrets.token_hex(4)}",
            "root": folder,
            "size": SIZE,
            "files": own,
            "programs": programs,
        }
        words = ["unshare", *NAMESPACES, sys.executable, "-I", "-S", str(INIT)]
        holder = subprocess.Popen(
            [*words, json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            if not holder.stdout.readline():
                raise BootedHostError(f"{name} could not be built")
            usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            yield BootedHost(name, holder, f"{path}:{usual}" if path else usual)
        finally:
            holder.stdin.close()
            holder.wait(COMMAND_S)


def _is_below(path: str, others: Sequence[str]) -> bool:
    return any(path != one and Path(path).is_relative_to(one) for one in others)
