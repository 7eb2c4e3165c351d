"""The daemons of Ray on this machine, as /proc shows them: which ones, and how to start them again.

Found by the marker of an embedded cluster or by Ray's session, never by a name alone. Nothing here
imports Ray. Command lines are those of Ray 2.60 (`ray/_private/services.py`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raylaunch.node.process.guard import Process, descendants, processes, read_process
from raylaunch.node.process.process_markers import DEPLOYMENT

GCS = "gcs_server"
RAYLET = "raylet"
HELPERS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Titles that the agents of a node give themselves."""
HELPER_FILES = ("dashboard/agent.py", "runtime_env/agent/main.py")
RESTARTS = "RAYLAUNCH_RAY_RESTARTS"
"""In the environment of daemons that something starts again: what does so."""
SUPERVISOR = "supervisor"
"""`runtime/cluster/daemon_supervisor.py`: after every exit."""
LOOP = "loop"
"""A shell loop around `ray start --block`: not after SIGTERM, as `ray stop` sends it."""
LISTEN_PORT = "dashboard_agent_listen_port_"
"""Begins the name of the port file that a raylet awaits although it was given the port."""
NO_PORT = "-1"
"""In a port file of a session: there is no such port (see `runtime/cluster/ray_start.py`)."""


@dataclass(frozen=True)
class RayDaemon:
    """A GCS or a raylet: the process, and what it was started with."""

    process: Process
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str

    @property
    def kind(self) -> str:
        """GCS or RAYLET."""
        return Path(self.argv[0]).name

    @property
    def session(self) -> str:
        """Name of Ray's session: all daemons of a cluster have the same."""
        return self.option("session-name")

    @property
    def node_id(self) -> str:
        """Ray's id of the node. Ray accepts none again that it has marked dead."""
        return self.option("node_id") or self.option("node-id")

    def option(self, name: str) -> str:
        """Return the value of `--name=value`; "" when the daemon was started without it."""
        prefix = f"--{name}="
        return next((one[len(prefix) :] for one in self.argv if one.startswith(prefix)), "")


def marked_daemons(marker: str) -> list[RayDaemon]:
    """Return the daemons of an embedded cluster, the GCS first."""
    return _find(lambda daemon: (DEPLOYMENT, marker) in daemon.env)


def session_daemons(raylet_pid: int) -> list[RayDaemon]:
    """Return the daemons on this machine of the cluster of a raylet, the GCS first."""
    process = read_process(raylet_pid)
    raylet = _read_daemon(process) if process is not None else None
    if raylet is None or not raylet.session:
        return []
    return _find(lambda daemon: daemon.session == raylet.session)


def session_processes(daemons: list[RayDaemon]) -> list[Process]:
    """Return these daemons with everything below them, the GCS first.

    A guard is below no daemon, so neither it nor its server is among them.
    """
    found: dict[int, Process] = {}
    for daemon in daemons:
        for process in (daemon.process, *descendants(daemon.process.pid)):
            found[process.pid] = process
    return list(found.values())


def helpers_of(daemon: RayDaemon) -> list[Process]:
    """Return the agents that a raylet has started for its node, also after its death.

    They hold the ports that the next raylet of the node gives to its own agents. A GCS has none,
    although its command line names the head's node: the head's raylet exits without its agents.
    """
    if daemon.kind != RAYLET:
        return []
    return [process for process in processes() if _is_helper(process, daemon)]


def renewed(daemon: RayDaemon) -> RayDaemon:
    """Return what starts a daemon again: a raylet as another node, a GCS as it was.

    The files that a killed raylet leaves are removed: it does not start where its sockets exist.

    Raises:
        OSError: the folder of the session cannot be written to.
    """
    if daemon.kind != RAYLET or not daemon.node_id:
        return daemon
    old = daemon.node_id
    new = secrets.token_hex(len(old) // 2)
    for name in ("raylet_socket_name", "store_socket_name"):
        if path := daemon.option(name):
            Path(path).unlink(missing_ok=True)
    # A raylet awaits the ports of its agents in files that are named after its node, for 15 s.
    for file in Path(daemon.option("session_dir") or os.devnull).glob(f"*_{old}"):
        has_no_port = file.read_text(encoding="ascii", errors="replace").strip() == NO_PORT
        # The agent of the old node has written its port over what the raylet had found there.
        if has_no_port or file.name == LISTEN_PORT + old:
            file.with_name(file.name.replace(old, new)).write_text(NO_PORT, encoding="ascii")
    return replace(daemon, argv=tuple(word.replace(old, new) for word in daemon.argv))


def _find(is_wanted: Callable[[RayDaemon], bool]) -> list[RayDaemon]:
    found = (_read_daemon(process) for process in processes())
    daemons = [daemon for daemon in found if daemon is not None and is_wanted(daemon)]
    return sorted(daemons, key=lambda daemon: (daemon.kind != GCS, daemon.process.pid))


def _read_daemon(process: Process) -> RayDaemon | None:
    """Read a daemon; None for another process, and for one that is gone or of another user."""
    folder = Path(f"/proc/{process.pid}")
    try:
        argv = _words(folder / "cmdline")
        if not argv or Path(argv[0]).name not in (GCS, RAYLET):
            return None
        entries = [entry.partition("=") for entry in _words(folder / "environ")]
        cwd = str((folder / "cwd").readlink())
    except OSError:
        return None
    now = read_process(process.pid)
    if now is None or now.started != process.started:
        return None
    env = tuple((name, value) for name, equals, value in entries if equals)
    return RayDaemon(process, tuple(argv), env, cwd)


def _is_helper(process: Process, daemon: RayDaemon) -> bool:
    """Return whether a process is an agent of the node. Its raylet has set RAY_NODE_ID for it."""
    folder = Path(f"/proc/{process.pid}")
    with contextlib.suppress(OSError):
        # A title that a process gives itself need not end with a NUL.
        words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
        is_agent = any(word in HELPERS or word.endswith(HELPER_FILES) for word in words)
        return is_agent and f"RAY_NODE_ID={daemon.node_id}" in _words(folder / "environ")
    return False


def _words(path: Path) -> list[str]:
    """Return the words of a NUL-separated file; the last of them ends with a NUL too."""
    return [os.fsdecode(word) for word in path.read_bytes().split(b"\0")[:-1]]
