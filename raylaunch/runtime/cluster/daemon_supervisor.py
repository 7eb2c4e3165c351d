"""Starts the daemons of an embedded cluster again when they exit: GCS and raylets.

A process of its own (`python -m`), in its own session, with the marker of the cluster. It outlives
`raylaunch start`, waits on pidfds, and touches nothing but those daemons. The GCS comes back with
the same command line and environment and reads its tables from disk (RAY_gcs_storage); the raylets
that live reconnect to it (measured, Ray 2.60). A raylet comes back as another node: Ray accepts the
id of a dead one no more. `local_cleanup` kills this process before it kills the daemons.

stdin:  a line when all daemons run; end of file before it: the start was given up.
stdout: a line once they are watched. Then the log is in `daemons.log` in the cluster's folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raylaunch.errors import ClusterError
from raylaunch.node.process.guard import Process, read_process, send_signal
from raylaunch.node.process.process_markers import GROUP, await_readable, find_marked
from raylaunch.node.process.ray_daemons import GCS, RayDaemon, helpers_of, marked_daemons, renewed
from raylaunch.plan.facts import MarkedProcess

log = logging.getLogger(__name__)

SUPERVISOR_GROUP = "ray-supervisor"
"""The group in the marker of this process: no group of a deployment has a marker with "@"."""
READY_S = 30.0
"""In which a supervisor must report that it watches the daemons."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A daemon that ran this long is started again without a pause."""
GCS_WAIT_S = 30.0
"""A raylet is started once the GCS accepts connections, or after this time."""
GCS_CHECK_S = 5.0
GCS_CLOSED_S = 10.0
"""A GCS that has closed its port and lives for so long does not open it again."""
GCS_POLL_S = 0.1
"""Nothing announces that a port accepts connections."""


@dataclass
class Watched:
    """A daemon under supervision. Times on the monotonic clock, in seconds."""

    daemon: RayDaemon
    pidfd: int = -1
    started_at: float = 0.0
    pause_s: float = 0.0
    due_at: float | None = None
    """When to start it again; None while it runs."""
    gcs_awaited_since: float | None = None
    """Since when it is due and the GCS does not answer."""
    has_listened: bool = False
    """Of a GCS: it has accepted a connection since it was started."""
    refuses_since: float | None = None
    """Of a GCS: since when it lives and accepts no connection any more."""


@dataclass
class DaemonSupervisor:
    """Watches daemons and starts them again.

    Args:
        daemons: Those that run, the GCS first: a raylet needs it.
        start: Starts one of them and returns its process; does not wait.
        has_gcs: Returns whether the GCS that a raylet needs accepts connections; None for unknown.
        clock: A monotonic clock.
    """

    daemons: Sequence[RayDaemon]
    start: Callable[[RayDaemon], Process]
    has_gcs: Callable[[RayDaemon], bool | None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    watched: list[Watched] = field(init=False)

    def __post_init__(self) -> None:
        self.watched = [Watched(daemon) for daemon in self.daemons]
        for one in self.watched:
            self._watch(one)

    def run(self) -> None:
        """Watch until this process is killed."""
        while True:
            self.step()

    def step(self) -> None:
        """Wait for the exit of a daemon, or until one is due; start those that are due."""
        poller = select.poll()
        running = {one.pidfd: one for one in self.watched if one.pidfd >= 0}
        for pidfd in running:
            poller.register(pidfd, select.POLLIN)
        for pidfd, _ in poller.poll(self._timeout_ms()):
            self._on_exit(running[pidfd])
        self._check_gcs()
        for one in self.watched:
            if self._may_start(one) and self.clock() >= (one.due_at or 0.0):
                self._start_or_postpone(one)

    def _timeout_ms(self) -> float:
        due = [one.due_at or 0.0 for one in self.watched if self._may_start(one)]
        now = self.clock()
        return 1000 * max(0.0, min([*due, now + GCS_CHECK_S]) - now)

    def _check_gcs(self) -> None:
        """Kill a GCS that lives and has closed its port: it hangs in its own shutdown.

        Seen with Ray 2.60, where GCS and raylets get SIGTERM at the same moment. The raylets wait
        for its answer, and exit once the next GCS gives it.
        """
        raylet = next((one.daemon for one in self.watched if one.daemon.kind != GCS), None)
        for one in self.watched:
            if one.daemon.kind != GCS or one.due_at is not None or raylet is None:
                continue
            listens = self.has_gcs(raylet)
            if listens is not False:
                one.has_listened = one.has_listened or listens is True
                one.refuses_since = None
            elif one.has_listened and one.refuses_since is None:
                one.refuses_since = self.clock()
            elif one.refuses_since is not None and self.clock() - one.refuses_since >= GCS_CLOSED_S:
                pid = one.daemon.process.pid
                log.warning("killing %s, pid %d: its port is closed", one.daemon.kind, pid)
                send_signal(one.daemon.process, signal.SIGKILL)
                one.refuses_since = None

    def _may_start(self, one: Watched) -> bool:
        """Return whether a daemon has exited and finds what it needs: a raylet needs the GCS."""
        if one.due_at is None:
            return False
        has_gcs = all(other.due_at is None for other in self.watched if other.daemon.kind == GCS)
        return has_gcs or one.daemon.kind == GCS

    def _watch(self, one: Watched) -> None:
        process = one.daemon.process
        one.started_at = self.clock()
        one.due_at = None
        one.has_listened = False
        one.refuses_since = None
        try:
            one.pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._schedule(one)
            return
        now = read_process(process.pid)
        if now is None or now.started != process.started:
            self._on_exit(one)

    def _on_exit(self, one: Watched) -> None:
        os.close(one.pidfd)
        one.pidfd = -1
        pid = one.daemon.process.pid
        with contextlib.suppress(ChildProcessError):  # `ray start` has started the first one
            os.waitpid(pid, os.WNOHANG)
        log.warning("%s has exited, pid %d", one.daemon.kind, pid)
        self._schedule(one)

    def _schedule(self, one: Watched) -> None:
        now = self.clock()
        if now - one.started_at >= STEADY_S:
            one.pause_s = 0.0
        one.due_at = now + one.pause_s
        one.pause_s = min(LONGEST_PAUSE_S, 2 * one.pause_s or FIRST_PAUSE_S)

    def _start_or_postpone(self, one: Watched) -> None:
        """Start a daemon, a raylet only with a GCS.

        A GCS that was killed together with its raylets may exit after them. Waiting for it here
        would be waiting for what this loop starts.
        """
        now = self.clock()
        if one.daemon.kind != GCS and self.has_gcs(one.daemon) is False:
            if one.gcs_awaited_since is None:
                one.gcs_awaited_since = now
            if now - one.gcs_awaited_since < GCS_WAIT_S:
                one.due_at = now + GCS_POLL_S
                return
        one.gcs_awaited_since = None
        self._start(one)

    def _start(self, one: Watched) -> None:
        try:
            for helper in helpers_of(one.daemon):
                send_signal(helper, signal.SIGKILL)
            daemon = renewed(one.daemon)
            one.daemon = replace(daemon, process=self.start(daemon))
        except OSError as error:
            log.warning("cannot start %s: %s", one.daemon.kind, error)
            one.started_at = self.clock()
            self._schedule(one)
            return
        log.warning("started %s again, pid %d", one.daemon.kind, one.daemon.process.pid)
        self._watch(one)


def start_daemon(daemon: RayDaemon) -> Process:
    """Start a daemon as it was started before, without its standard streams.

    Raises:
        OSError: it cannot be started.
    """
    child = subprocess.Popen(
        daemon.argv,
        env=dict(daemon.env),
        cwd=daemon.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    child.returncode = 0  # reaped by us, never by subprocess
    return read_process(child.pid) or Process(child.pid, os.getpid(), "Z", 0)


def has_gcs(raylet: RayDaemon) -> bool | None:
    """Return whether the GCS of a raylet accepts connections; None where that is not known."""
    host, _, port = raylet.option("gcs-address").rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), GCS_POLL_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True


# -- the process, as `local_cluster` starts and finds it -------------------------------------------


@contextlib.contextmanager
def prepared_supervisor(
    marker: str, folder: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a supervisor, which imports its code and waits for `supervise`."""
    # The code may have been unpacked where no new interpreter finds it.
    path = [str(Path(__file__).parents[3]), *filter(None, [env.get("PYTHONPATH")])]
    command = [sys.executable, "-m", __name__, marker, str(Path(folder) / "daemons.log")]
    with subprocess.Popen(
        command,
        env={**env, GROUP: SUPERVISOR_GROUP, "PYTHONPATH": os.pathsep.join(path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process


def supervise(process: subprocess.Popen[str]) -> None:
    """Let a prepared supervisor watch the daemons, which all run.

    Raises:
        ClusterError: it does not.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    is_ready = await_readable(process.stdout.fileno(), time.monotonic() + READY_S)
    if not is_ready or not process.stdout.readline():
        raise ClusterError(
            "the supervisor of the embedded Ray cluster did not start",
            why=f"it did not answer within {READY_S:g} s, or exited",
            todo="`raylaunch start` again",
        )


def find_supervisors(marker: str) -> list[MarkedProcess]:
    """Return the supervisor of an embedded cluster, if one lives."""
    return [found for found in find_marked(marker) if found.group == SUPERVISOR_GROUP]


def _has_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def main(marker: str, log_file: str) -> int:
    """Become the supervisor of the cluster with this marker."""
    if os.fork():
        return 0  # no child of the command: nothing there would reap it
    if not sys.stdin.readline():
        return 0
    logging.basicConfig(
        filename=log_file, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    if not _has_pidfds():
        log.error("this kernel has no pidfds (before Linux 5.3): no daemon is started again")
        sys.stdout.write("no pidfds\n")
        return 0
    supervisor = DaemonSupervisor(marked_daemons(marker), start_daemon, has_gcs)
    log.info("watching %s", [(one.kind, one.process.pid) for one in supervisor.daemons])
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
