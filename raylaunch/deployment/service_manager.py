"""Notifications to systemd, for a command that runs as a unit of `Type=notify` (sd_notify(3))."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Self

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")
STDOUT = "stdout"
"""Instead of a socket: one line of stdout per notification, for a script that passes them on.

systemd takes none from a container: that is not in the control group of the unit.
"""
LINE = "sd_notify: "
SEND_S = 5.0
"""Longest wait for room in the socket's queue."""


@dataclass(frozen=True)
class ServiceManager:
    """The socket of systemd, or STDOUT. Without one, notifications go nowhere."""

    address: str = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Take the socket out of the environment: child processes must not notify for this one."""
        for name in WATCHDOG:
            environ.pop(name, None)
        return cls(environ.pop(SOCKET, ""))

    def notify_ready(self) -> None:
        """Report that the start-up of the unit is complete."""
        self._send("READY=1")

    def notify_status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        line = " ".join(text.split())
        self._send(f"STATUS={line}")

    def notify_alive(self) -> None:
        """Reset the watchdog of the unit."""
        self._send("WATCHDOG=1")

    def notify_stopping(self) -> None:
        """Report that this process is about to exit."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self.address:
            return
        if self.address == STDOUT:
            sys.stdout.write(f"{LINE}{message}\n")
            sys.stdout.flush()
            return
        address = self.address
        if address.startswith("@"):  # an abstract socket, which is in no file system
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_S)
                sender.connect(address)
                sender.send(message.encode())
        except OSError as error:
            # The unit's own time-out and watchdog follow from silence.
            log.warning("cannot notify systemd (%s): %s", message, error)
