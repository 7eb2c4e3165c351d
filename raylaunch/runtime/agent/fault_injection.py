"""Faults for a drill, injected on the node by the agent itself: by pid, never by name.

The agent knows its server, the server's members and its guard, so nothing has to be searched for and nothing else can
be hit. A fault that takes the agent with it happens a moment after the answer, at a time that the answer names.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from raylaunch.errors import NodeError
from raylaunch.node.process.guard import Process, descendants, read_process, send_signal

ANSWER_S = 0.1
"""What an answer needs to get away before the agent or its node goes down."""
STEAL_WITHIN_S = 60.0
STEAL_PAUSE_S = 0.002
MAY_CUT = "RAYLAUNCH_DRILL_CUT"
"""Names the network interface that a drill may take down on this node, in the environment of its raylet."""


@dataclass(frozen=True)
class Injected:
    """What was done. `at`: seconds on the monotonic clock of the agent."""

    at: float
    what: str


def kill_process(pid: int, name: str) -> Injected:
    """SIGKILL one process.

    Raises:
        NodeError: it is gone already.
    """
    process = _find(pid, name)
    at = time.monotonic()
    send_signal(process, signal.SIGKILL)
    return Injected(at, f"SIGKILL to {name} (pid {pid})")


def stop_tree(pid: int) -> Injected:
    """SIGSTOP a server and everything below it, as a machine that stalls.

    Raises:
        NodeError: it is gone already.
    """
    server = _find(pid, "the server")
    tree = [server, *descendants(pid)]
    at = time.monotonic()
    for process in tree:
        send_signal(process, signal.SIGSTOP)
    return Injected(
        at,
        f"SIGSTOP to the server and what is below it (pids {', '.join(str(one.pid) for one in tree)})",
    )


def kill_later(
    pid: int, name: str, later: Callable[[float, Callable[[], None]], object]
) -> Injected:
    """SIGKILL this process or its parent, after the answer."""
    process = _find(pid, name)
    later(ANSWER_S, lambda: send_signal(process, signal.SIGKILL))
    return Injected(time.monotonic() + ANSWER_S, f"SIGKILL to {name} (pid {pid})")


def steal_port(port: int, hold_s: float) -> None:
    """Wait until nobody listens on `port` and listen there for `hold_s` seconds; give up after a minute."""
    deadline = time.monotonic() + STEAL_WITHIN_S
    while time.monotonic() < deadline:
        thief = socket.socket()
        try:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("", port))
            thief.listen(1)
        except OSError:
            thief.close()
            time.sleep(STEAL_PAUSE_S)  # a port announces to nobody that it is free
            continue
        with thief:
            time.sleep(hold_s)  # this is the fault
        return


def cuttable_interface() -> str:
    """The interface that may be taken down here; "" when nobody allowed it."""
    return os.environ.get(MAY_CUT, "")


def cut_node(hold_s: float) -> Injected:
    """Take the allowed interface down for `hold_s` seconds. A process of its own brings it up again, come what may.

    Raises:
        NodeError: it is not allowed, or there is no `ip`.
    """
    interface, program = (
        cuttable_interface(),
        shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"),
    )
    if not interface or program is None:
        raise NodeError(
            "this node may not be cut off",
            why=f"{MAY_CUT} does not name an interface, or `ip` is missing",
        )
    script = 'sleep "$1"; "$2" link set "$3" down; sleep "$4"; "$2" link set "$3" up'
    words = ["sh", "-c", script, "cut", str(ANSWER_S), program, interface, str(hold_s)]
    subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    return Injected(time.monotonic() + ANSWER_S, f"{interface} down for {hold_s:g} s")


def _find(pid: int, name: str) -> Process:
    process = read_process(pid)
    if process is None:
        raise NodeError(f"{name} (pid {pid}) is gone already")
    return process
