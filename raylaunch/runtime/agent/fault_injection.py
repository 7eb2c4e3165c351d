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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from raylaunch.errors import NodeError
from raylaunch.node.process import ray_stop
from raylaunch.node.process.guard import Process, descendants, read_process, send_signal
from raylaunch.node.process.ray_daemons import GCS, RESTARTS, RayDaemon, session_processes
from raylaunch.node.process.vllm_children import VllmChild

ANSWER_S = 0.1
"""What an answer needs to leave the node before the agent or the network goes down."""
LEAVE_S = 1.0
"""What clients of the cluster need to leave it: Ray's calls wait for dead daemons for ever."""
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
    find_ray: Callable[[], Sequence[RayDaemon]] = tuple
    """Returns the daemons of Ray on this machine, the GCS first."""


@dataclass(frozen=True)
class DrillLimits:
    """What a drill may do to the node of an agent."""

    interface: str
    """The network interface that it may take down; "" for none."""
    restarts_ray: str
    """What starts Ray again there, see `ray_daemons.RESTARTS`; "" for nothing."""


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
        case "kill-agent" | "kill-raylet":
            return kill_ours(fault, targets, call_later)
        case "kill-gcs" | "kill-ray" | "restart-ray":
            return break_ray(fault, targets, call_later)
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


def kill_ours(fault: str, targets: Targets, call_later: CallLater) -> Injected:
    """SIGKILL this agent, or its parent, the raylet, once the answer has left.

    Raises:
        NodeError: It has exited already.
    """
    pid, name, after_s = targets.agent, "the agent", ANSWER_S
    if fault == "kill-raylet":
        pid, name, after_s = targets.raylet, "the raylet", LEAVE_S
    process = _find(pid, name)
    at = time.monotonic() + after_s
    call_later(after_s, lambda: send_signal(process, signal.SIGKILL))
    return Injected(at, f"SIGKILL to {name} (pid {pid})")


def break_ray(fault: str, targets: Targets, call_later: CallLater) -> Injected:
    """Kill daemons of Ray, with all workers if it is "kill-ray", once the clients have left.

    "restart-ray" stops them instead, as `ray stop` does.

    Raises:
        NodeError: There is none that the fault could hit.
    """
    daemons = list(targets.find_ray())
    if fault == "kill-gcs":
        daemons = [daemon for daemon in daemons if daemon.kind == GCS]
    if not daemons:
        raise NodeError(f"there is no daemon of Ray on this node for {fault}")
    found = [daemon.process for daemon in daemons]
    if fault == "kill-ray":
        found = session_processes(daemons)
    # This process is one of the workers.
    found.sort(key=lambda process: process.pid == targets.agent)

    def kill_all() -> None:
        for process in found:
            send_signal(process, signal.SIGKILL)

    def stop_all() -> None:
        raylets = [daemon.process for daemon in daemons if daemon.kind != GCS]
        ray_stop.stop_detached(raylets, [one for one in found if one not in raylets])

    is_stop = fault == "restart-ray"
    at = time.monotonic() + LEAVE_S
    call_later(LEAVE_S, stop_all if is_stop else kill_all)
    names = ", ".join(f"{daemon.kind} (pid {daemon.process.pid})" for daemon in daemons)
    number = "SIGTERM" if is_stop else "SIGKILL"
    return Injected(at, f"{number} to {len(found)} processes: {names}")


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


def drill_limits(env: Mapping[str, str] = os.environ) -> DrillLimits:
    """Return what a drill may do to this node."""
    return DrillLimits(cuttable_interface(env), env.get(RESTARTS, ""))


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
