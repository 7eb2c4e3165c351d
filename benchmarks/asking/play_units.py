"""Play the part of systemd on a test host for units of `raylaunch service install`.

    play_units.py UNIT_FILE...

Each unit's own `ExecStart` and `Environment` are used. Of its other settings these are honoured:
`EnvironmentFile`, `Type=notify` with the notification socket and `WatchdogSec`, `Restart`,
`RestartSec`, `RestartPreventExitStatus`, `SuccessExitStatus`, and `KillMode=control-group`, where
processes are found by INVOCATION_ID, which they inherit. Any other setting is without effect: the
units are started in the order in which they are given, as root. Prints one JSON object for each
start, exit and notification; what the units print goes to /root/journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

JOURNAL = Path("/root/journal")
SOCKETS = Path("/run/systemd")
CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
"""systemd.service(5), SuccessExitStatus."""
USER = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME": "/root",
    "LOGNAME": "root",
    "USER": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}
"""What a service with `User=root` gets (systemd.exec(5))."""


@dataclass(frozen=True)
class Unit:
    """The settings of a unit's section [Service]; a repeated one has several values."""

    name: str
    settings: Mapping[str, list[str]]

    def last(self, key: str, default: str = "") -> str:
        """Return the value that counts."""
        return self.settings.get(key, [default])[-1]

    def codes(self, key: str) -> set[int]:
        """Return exit statuses that a setting lists."""
        return {int(word) for value in self.settings.get(key, []) for word in value.split()}

    @property
    def command(self) -> list[str]:
        """The words of its command line."""
        return [plain(word.replace("$$", "$")) for word in shlex.split(self.last("ExecStart"))]

    def environment(self) -> dict[str, str]:
        """Return what it sets, without what its file has."""
        words = [
            word for value in self.settings.get("Environment", []) for word in shlex.split(value)
        ]
        return dict(plain(word).partition("=")[::2] for word in words)

    def restarts(self, status: int) -> bool:
        """Whether an exit is followed by another start; a signal is a negative status."""
        if status in self.codes("RestartPreventExitStatus"):
            return False
        if self.last("Restart", "no") == "always":
            return True
        clean = {0, *(-number for number in CLEAN_SIGNALS)} | self.codes("SuccessExitStatus")
        return self.last("Restart", "no") == "on-failure" and status not in clean


def plain(word: str) -> str:
    """Return a word without systemd's specifiers, of which only `%%` is known here."""
    rest = word.replace("%%", "")
    if "%" in rest:
        raise ValueError(f"a specifier in {word!r}")
    return word.replace("%%", "%")


def read_unit(path: Path) -> Unit:
    """Read a unit's file."""
    settings: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service" and line and line[0] not in "#;":
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return Unit(path.name, settings)


def say(unit: str, kind: str, **more: object) -> None:
    """Print an event; one write, because several threads do so."""
    line = json.dumps({"at": time.time(), "unit": unit, "kind": kind, **more})
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass
class Service:
    """A unit that is kept running."""

    unit: Unit
    process: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    alive_at: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Start it again and again, as its settings have it."""
        while True:
            status = self._run_once()
            say(self.unit.name, "exit", status=status)
            if not self.unit.restarts(status):
                return
            time.sleep(float(self.unit.last("RestartSec", "0.1")))

    def _run_once(self) -> int:
        invocation = uuid.uuid4().hex
        env = USER | self.unit.environment() | self._file() | {"INVOCATION_ID": invocation}
        if self.unit.last("Type") == "notify":
            env["NOTIFY_SOCKET"] = str(socket_of(self.unit))
        self.is_ready = False
        with (JOURNAL / f"{self.unit.name}.log").open("ab") as log:
            log.write(f"---- start at {time.time():.1f}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                self.unit.command,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        say(self.unit.name, "start")
        status = self.process.wait()
        if self.unit.last("KillMode", "control-group") == "control-group":
            kill_invocation(invocation)
        return status

    def _file(self) -> dict[str, str]:
        path = Path(self.unit.last("EnvironmentFile").removeprefix("-") or "/none")
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(word.partition("=")[::2] for line in lines for word in shlex.split(line))

    def listen(self, notifications: socket.socket) -> None:
        """Pass its notifications on, and abort it when the watchdog has had none."""
        limit_s = float(self.unit.last("WatchdogSec", "0")) or float("inf")
        notifications.settimeout(1.0)
        while True:
            with contextlib.suppress(TimeoutError):
                text = notifications.recv(65536).decode(errors="replace")
                self.alive_at = time.monotonic()
                self.is_ready |= text == "READY=1"
                if text != "WATCHDOG=1":
                    say(self.unit.name, "notify", text=text)
            if self.is_ready and time.monotonic() - self.alive_at > limit_s:
                self.is_ready = False
                say(self.unit.name, "watchdog")
                self.process.send_signal(signal.SIGABRT)


def socket_of(unit: Unit) -> Path:
    """Return where a unit's notifications go."""
    return SOCKETS / f"{unit.name}.notify"


def kill_invocation(invocation: str) -> None:
    """SIGKILL what is left of a unit."""
    for pid in marked(f"INVOCATION_ID={invocation}".encode()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(variable: bytes) -> Iterator[int]:
    """Yield the pids of the processes of this host that have inherited a variable."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def main() -> None:
    JOURNAL.mkdir(exist_ok=True)
    SOCKETS.mkdir(parents=True, exist_ok=True)
    threads = []
    for word in sys.argv[1:]:
        service = Service(read_unit(Path(word)))
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notifications.bind(str(socket_of(service.unit)))
        listener = threading.Thread(target=service.listen, args=[notifications], daemon=True)
        listener.start()
        threads.append(threading.Thread(target=service.run))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
