"""Faults for a drill, injected on the node by the agent itself: by pid, never by name.

The agent knows its server, the server's children and its guard, so nothing has to be searched for
and nothing else can be hit. A fault that kills the agent too is injected a moment after the
answer, at a time that the answer names.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from raylaunch.errors import NodeError
from raylaunch.node.process.guard import Process, descendants, read_process, send_signal
from raylaunch.node.process.vllm_children import VllmChild

ANSWER_S = 0.1
"""What an answer needs to leave the node before the agent or the network goes down."""
STEAL_S = 5.0
"""How long a drill holds a stolen port: shorter than a restart waits for it."""
STEAL_WITHIN_S = 60.0
STEAL_PAUSE_S = 0.002
CUT_S = 40.0
"""How long a drill takes the network interface down."""
CUT_VARIABLE = "RAYLAUNCH_DRILL_CUT"
"""Names the network interface that a drill may take down on this node, in the raylet's environment.
"""

CallLater = Callable[[float, Callable[[], None]], object]


@dataclass(frozen=True)
class Injected:
    """The fault that was injected. `at`: seconds on the monotonic clock of the agent."""

    at: float
    what: str


@dataclass(frozen=True)
class Targets:
    """The processes of one server that a fault may hit, by pid."""

    server: int
    guard: int | None
    find_engine: Callable[[], VllmChild]
    """Returns an engine core; raises NodeError when there is none."""
    agent: int
    raylet: int


INIT = 1


def inject_fault(fault: str, port: int, targets: Targets, call_later: CallLater) -> Injected:
    """Inject `fault` into one server.

    Args:
        fault: Name of the fault, as in `raylaunch.supervise.drills`.
        port: The port that "steal-port" takes.
        targets: The server's processes.
        call_later: `loop.call_later` of the agent.

    Raises:
        NodeError: The target is gone, or there is no such fault.
    """
    match fault:
        case "kill-engine":
            engine = targets.find_engine()
            return kill_process(engine.pid, engine.name)
        case "kill-server":
            return kill_process(targets.server, "the server's main process")
        case "stop-server":
            return stop_tree(targets.server)
        case "kill-guard":
            if targets.guard is None:
                raise NodeError("the guard is not running yet")
            return kill_process(targets.guard, "the guard")
        case "kill-agent":
            return kill_later(targets.agent, "the agent", call_later)
        case "kill-raylet":
            return kill_later(targets.raylet, "the raylet", call_later)
        case "steal-port":
            return kill_and_steal(targets.find_engine(), port)
        case "cut-node":
            return cut_node(CUT_S)
    raise NodeError(f"no such fault: {fault}")


def kill_process(pid: int, name: str) -> Injected:
    """SIGKILL one process.

    Raises:
        NodeError: It has exited already.
    """
    process = _find(pid, name)
    at = time.monotonic()
    send_signal(process, signal.SIGKILL)
    return Injected(at, f"SIGKILL to {name} (pid {pid})")


def stop_tree(pid: int) -> Injected:
    """SIGSTOP a server and everything below it, as a machine that stalls would.

    Raises:
        NodeError: It has exited already.
    """
    server = _find(pid, "the server")
    tree = [server, *descendants(pid)]
    at = time.monotonic()
    for process in tree:
        send_signal(process, signal.SIGSTOP)
    pids = ", ".join(str(process.pid) for process in tree)
    return Injected(at, f"SIGSTOP to the server and its descendants (pids {pids})")


def kill_later(pid: int, name: str, call_later: CallLater) -> Injected:
    """SIGKILL this process or its parent, once the answer has left.

    Raises:
        NodeError: It has exited already.
    """
    process = _find(pid, name)
    at = time.monotonic() + ANSWER_S
    call_later(ANSWER_S, lambda: send_signal(process, signal.SIGKILL))
    return Injected(at, f"SIGKILL to {name} (pid {pid})")


def kill_and_steal(engine: VllmChild, port: int) -> Injected:
    """Kill an engine core and listen on `port` for STEAL_S as soon as its listener is gone.

    Raises:
        NodeError: The engine core has exited already.
    """
    thief = threading.Thread(target=steal_port, args=(port, STEAL_S), daemon=True)
    thief.start()
    killed = kill_process(engine.pid, engine.name)
    what = f"{killed.what}, port {port} held for {STEAL_S:g} s"
    return replace(killed, what=what)


def steal_port(port: int, hold_s: float) -> None:
    """Wait until no process listens on `port`, then listen there for `hold_s` seconds.

    Gives up after STEAL_WITHIN_S.
    """
    deadline = time.monotonic() + STEAL_WITHIN_S
    while time.monotonic() < deadline:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen(1)
        except OSError:
            listener.close()
            time.sleep(STEAL_PAUSE_S)  # the kernel does not report that a port is free
            continue
        with listener:
            time.sleep(hold_s)  # holding the port is the fault
        return


def cuttable_interface(env: Mapping[str, str] = os.environ) -> str:
    """Return the interface that a drill may take down on this node; "" when none is allowed."""
    return env.get(CUT_VARIABLE, "")


def cut_node(hold_s: float) -> Injected:
    """Take the allowed interface down for `hold_s` seconds.

    A separate process brings it up again, even if the agent is killed meanwhile.

    Raises:
        NodeError: No interface is allowed, or there is no `ip`.
    """
    interface = cuttable_interface()
    search_path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which("ip", path=search_path)
    if not interface or program is None:
        raise NodeError(
            "this node may not be cut off",
            why=f"{CUT_VARIABLE} does not name an interface, or `ip` is missing",
        )
    script = 'sleep "$1"; "$2" link set "$3" down; sleep "$4"; "$2" link set "$3" up'
    arguments = [str(ANSWER_S), program, interface, str(hold_s)]
    at = time.monotonic() + ANSWER_S
    subprocess.Popen(
        ["sh", "-c", script, "cut", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Injected(at, f"{interface} down for {hold_s:g} s")


def _find(pid: int, name: str) -> Process:
    # The parent of an orphan is init: its own parent, for example the raylet, has exited.
    process = None if pid == INIT else read_process(pid)
    if process is None:
        raise NodeError(f"{name} (pid {pid}) has exited already")
    return process
