"""The guard: owns one server's process tree and log, and stops the tree when its owner goes away.

Run by path with `python -I -S`, from the standard library alone, so that it starts in a few
milliseconds and works wherever raylaunch was unpacked. Nothing here may import raylaunch.

There are two processes. The *keeper* only waits. The *guard* is the keeper's child and does the
work. With `--detach` the first process forks and exits, so that the keeper is a child of init: Ray
SIGKILLs the direct children of a worker that exits (measured, Ray 2.60: a child in a session of its
own is killed, its children live on). Ray's raylet reaches it only as a child subreaper, which is
off by default (RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper). If the guard is
SIGKILLed, the kernel reparents its children to the keeper, which kills them. Each of the two
notices the other's death: a guard without a keeper reports `keeper_lost` and stops its server,
because a later SIGKILL of the guard would leave processes behind that hold the NPUs.

The first owner holds our stdin and stdout. When it goes away, the guard waits `owner_wait_s` for
another one on its unix socket, while the server runs; then it stops the server. The socket takes
one JSON line per connection, of this user or root only: {"do": "describe"}, answered with one line;
{"do": "keep", "name": N, "number": I, "data": D}, which stores a note for the next owner; and
{"do": "adopt"}, which makes the connection the owner's: first the event `guard`, with the notes,
then the events that still count, then the same protocol as on stdin and stdout.

/proc may hide other users' processes and non-dumpable ones (mount option hidepid). Those are
skipped; the tree is then found by the server's process group and by the kernel's own list of our
children, to which every orphan below us is added (child subreaper).

stdin:  one JSON line, the spec (`raylaunch.node.process.server_process.ServerSpec`). Then commands
        as JSON lines: {"do": "stop", "term_timeout_s": 10} or {"do": "kill"}. End of file means
        that the owner is gone.
stdout: events as JSON lines: guard (with `--detach` only); spawned | failed; socket_failed (no
        other owner can adopt this guard: it does not wait for one); log (the log grew); log_failed
        (a full or read-only disk; once per outage) and log_recovered; keeper_lost; exit; and last
        clean, with the pids that resisted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PIPE_BYTES = 1 << 20
READ_BYTES = 1 << 16
GUARD_OOM_SCORE = -500
SERVER_OOM_SCORE = 0
"""Ray gives its workers 1000 (first to be killed), and children inherit it."""
FLUSH_S = 60.0
DRAIN_S = 1.0
KILL_ROUND_S = 0.2
KEEPER_KILL_S = 10.0
KEEPER_EXITED = signal.SIGUSR2
"""Sent to the guard by the kernel when the keeper exits (PR_SET_PDEATHSIG)."""
DISK_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
    }
)
"""A server starts without a log when the log cannot be created for one of these reasons."""
LOG_RETRY_S = 1.0
LOG_RETRY_MAX_S = 30.0
MESSAGE_BYTES = 64 << 20
"""Longest message on the socket: a note with a plan takes some 100 kB."""
VISITORS = 16
"""Connections that have not sent their message yet; more are refused."""
SOCKET_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes, the last of them zero."""
LOG_STABLE_S = 60.0
"""After so long without a failure, the back-off between log retries starts over."""

_libc = ctypes.CDLL(None, use_errno=True)


class Spec(TypedDict):
    """The fields of `ServerSpec`, as they arrive on stdin. Times in seconds."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: str
    rotate_bytes: int
    keep: int
    term_timeout_s: float
    orphan_grace_s: float
    kill_timeout_s: float
    niceness: int | None
    socket: str
    owner_wait_s: float
    owner: int
    memo: dict[str, str]


class GuardRunsError(OSError):
    """A second guard would put a second server where the first one's still runs."""


class Process(NamedTuple):
    """A line of the process table.

    `started` (clock ticks since boot) distinguishes a recycled pid from its first owner.
    """

    pid: int
    ppid: int
    state: str
    started: int


def main() -> int:
    """Fork into keeper and guard; return the exit status of this one of the two."""
    detached = sys.argv[1:2] == ["--detach"]
    if detached and os.fork():
        return 0
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ray's workers have an OOM score of 1000: without this the keeper is the first victim.
    set_oom_score(GUARD_OOM_SCORE, SERVER_OOM_SCORE)
    keeper_pid = os.getpid()
    guard_pid = os.fork()
    if guard_pid:
        return keep(guard_pid)
    return guard(keeper_pid, detached)


def keep(guard_pid: int) -> int:
    """Wait for the guard; when it dies before its work is done, SIGKILL what it leaves behind."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    # The owner must see end of file when the guard dies, so the keeper may not hold the pipes.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    status = _wait_for(guard_pid)
    if status == 0:
        return 0
    deadline = time.monotonic() + KEEPER_KILL_S
    while not _reap_all() and time.monotonic() < deadline:
        signal_below(signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], KILL_ROUND_S)
    return 1


def guard(keeper_pid: int, detached: bool) -> int:
    """Read the spec, run the server, return when everything below is gone."""
    os.setsid()
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    line, rest = _read_line(0)
    if not line:
        return 0  # the owner exited before it sent a spec
    running = Guard(json.loads(line), rest, keeper_pid)
    if detached:
        running.introduce()
    running.run()
    return 0


class Guard:
    """The event loop: control pipe, log pipe, socket, signals, deadlines."""

    def __init__(self, spec: Spec, rest: bytes, keeper_pid: int) -> None:
        self.spec = spec
        self.control = rest
        self.control_fd = 0
        self.owner: int | None = spec["owner"]
        """Pid of the owner; None while there is none."""
        self.owner_deadline: float | None = None
        """When to stop waiting for an owner, on the monotonic clock."""
        self.listener: socket.socket | None = None
        self.visitors: dict[socket.socket, bytes] = {}
        """What has arrived on each connection whose message is not complete."""
        self.notes: dict[str, tuple[int, str]] = {}
        self.keeper_pid = keeper_pid
        self.keeper_lost = False
        self.events = Events(1)
        self.log = SafeLog(
            spec["log"],
            spec["rotate_bytes"],
            spec["keep"],
            self.events,
        )
        self.pid: int | None = None
        """The server while it has not been reaped."""
        self.phase = "running"
        self.deadline: float | None = None
        self.selector = selectors.DefaultSelector()
        self.wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # Handlers, not SIG_IGN: exec resets handlers, so the server starts with the defaults.
        handled = (
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            KEEPER_EXITED,
        )
        for number in handled:
            signal.signal(number, lambda _number, _frame: None)
        _libc.prctl(PR_SET_PDEATHSIG, KEEPER_EXITED, 0, 0, 0)

    def run(self) -> None:
        """Spawn the server and stay until nothing is left below."""
        try:
            self.listen()
            self.log.open()
            self.spawn()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            number = getattr(error, "errno", None)
            self.events.send("failed", errno=number, error=str(error)[:1000])
            self.events.send("clean", left=[])
            self.close_socket()
            self.events.flush(FLUSH_S)
            return
        self.selector.register(self.control_fd, selectors.EVENT_READ, self.on_control)
        if self.listener is not None:
            self.selector.register(self.listener, selectors.EVENT_READ, self.on_visitor)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self.on_signal)
        self.selector.register(self.output, selectors.EVENT_READ, self.on_output)
        self.check_keeper()  # it may have exited before the kernel was asked to report that
        self.on_commands()
        while self.phase != "done":
            self.step()
        self.finish()

    def spawn(self) -> None:
        """Start the server in its own process group, output into our pipe."""
        self.output, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.output, False)
        # Above /proc/sys/fs/pipe-max-size this is refused, and the default size is kept.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        niceness = set_niceness(self.spec["niceness"])
        parent = os.getpid()
        child = subprocess.Popen(
            self.spec["argv"],
            env=self.spec["env"],
            cwd=self.spec["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            process_group=0,
            preexec_fn=lambda: prepare_child(parent),  # noqa: PLW1509  one thread, so safe
        )
        os.close(write_end)
        child.returncode = 0  # reaped by us, never by subprocess
        self.pid = child.pid
        self.events.send(
            "spawned",
            pid=child.pid,
            guard=parent,
            niceness=niceness,
            at=time.time(),
        )

    def step(self) -> None:
        """Wait for the next event or deadline and handle it."""
        ready = self.selector.select(self.timeout_s())
        for key, _ in ready:
            key.data()
        self.log.retry()
        self.watch_events()
        if self.phase == "killing":
            self.kill_round()
        elif self.deadline_passed():
            self.kill()
        elif self.owner_deadline is not None and time.monotonic() >= self.owner_deadline:
            self.owner_deadline = None
            self.stop(self.spec["term_timeout_s"])

    def timeout_s(self) -> float | None:
        """Return the seconds until there is something to do without an event; None for never."""
        if self.phase == "killing":
            return (
                KILL_ROUND_S  # a child that was forked during the last round is found in the next
            )
        due = []
        if self.deadline is not None:
            due.append(self.deadline)
        if self.log.retry_at is not None:
            due.append(self.log.retry_at)
        if self.owner_deadline is not None:
            due.append(self.owner_deadline)
        if not due:
            return None
        now = time.monotonic()
        return max(0.0, min(due) - now)

    def deadline_passed(self) -> bool:
        """Return whether the time for the current phase is over."""
        if self.deadline is None:
            return False
        return time.monotonic() >= self.deadline

    def watch_events(self) -> None:
        """Wait for the owner to read only while an event is queued."""
        fd = self.events.fd
        if fd is None:
            return
        watched = fd in self.selector.get_map()
        if self.events.queue and not watched:
            self.selector.register(fd, selectors.EVENT_WRITE, self.events.write)
        elif watched and not self.events.queue:
            self.selector.unregister(fd)

    def on_control(self) -> None:
        """Read commands; end of file means that the owner has exited."""
        try:
            data = os.read(self.control_fd, READ_BYTES)
        except ConnectionResetError:  # a socket whose owner left events unread
            data = b""
        if not data:
            self.on_owner_gone()
            return
        self.control += data
        self.on_commands()

    def on_owner_gone(self) -> None:
        """Wait for another owner while the server runs, if one can come; else stop the server."""
        self.selector.unregister(self.control_fd)
        if self.phase != "running" or self.listener is None or self.spec["owner_wait_s"] <= 0:
            self.stop(self.spec["term_timeout_s"])
            return
        events_fd = self.events.fd
        if events_fd is not None and events_fd in self.selector.get_map():
            self.selector.unregister(events_fd)
        self.events.detach()
        os.close(self.control_fd)
        self.control = b""
        self.owner = None
        self.owner_deadline = time.monotonic() + self.spec["owner_wait_s"]

    def on_commands(self) -> None:
        """Run the complete commands received so far."""
        *lines, self.control = self.control.split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "kill":
                self.kill()
            elif command["do"] == "stop":
                default_s = self.spec["term_timeout_s"]
                self.stop(command.get("term_timeout_s", default_s))

    # -- the socket ----------------------------------------------------------------------------

    def listen(self) -> None:
        """Open the socket for later owners; where that is impossible, report it and go without.

        Raises:
            GuardRunsError: Another guard of the same server runs.
        """
        path = self.spec["socket"]
        if not path:
            return
        try:
            self.listener = open_socket(path)
        except GuardRunsError:
            raise
        except OSError as error:
            self.events.send("socket_failed", error=f"{path}: {error}"[:1000])

    def close_socket(self) -> None:
        """Remove the socket, so that no later owner finds it."""
        if self.listener is None:
            return
        self.listener.close()
        self.listener = None
        with contextlib.suppress(OSError):
            os.unlink(self.spec["socket"])  # noqa: PTH108

    def introduce(self) -> None:
        """Send the owner the pids of guard and keeper: it has no other way to know them."""
        self.events.send("guard", pid=os.getpid(), keeper=self.keeper_pid)

    def on_visitor(self) -> None:
        """Accept a connection of this user or root; others are closed."""
        assert self.listener is not None
        try:
            connection, _ = self.listener.accept()
        except OSError:  # it was closed meanwhile, or no file descriptor is free
            return
        _, uid = peer_of(connection)
        if uid not in (os.geteuid(), 0) or len(self.visitors) >= VISITORS:
            connection.close()
            return
        connection.setblocking(False)
        self.visitors[connection] = b""
        self.selector.register(
            connection, selectors.EVENT_READ, lambda: self.on_visitor_data(connection)
        )

    def on_visitor_data(self, connection: socket.socket) -> None:
        """Collect the one message of a connection and answer it."""
        try:
            data = connection.recv(READ_BYTES)
        except OSError:
            data = b""
        message = self.visitors[connection] + data
        if data and b"\n" not in data and len(message) < MESSAGE_BYTES:
            self.visitors[connection] = message
            return
        del self.visitors[connection]
        self.selector.unregister(connection)
        line, found, rest = message.partition(b"\n")
        try:
            request = json.loads(line) if found else {}
            if request.get("do") == "adopt":
                self.on_adopt(connection, rest)
                return
            self.answer(connection, self.reply_to(request))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.answer(connection, {"event": "refused", "error": str(error)})
        connection.close()

    def reply_to(self, request: dict[str, object]) -> dict[str, object]:
        """Run a message that does not adopt; return the answer.

        Raises:
            ValueError: It makes no sense.
        """
        if request.get("do") == "keep":
            name, number, data = request["name"], request["number"], request["data"]
            if not (isinstance(name, str) and isinstance(number, int) and isinstance(data, str)):
                raise ValueError("a note has a name, a number and data")
            # Messages may overtake each other: an older note never replaces a newer one.
            if number > self.notes.get(name, (-1, ""))[0]:
                self.notes[name] = (number, data)
            return {"event": "kept"}
        if request.get("do") == "describe":
            return self.description()
        raise ValueError(f"unknown message {request.get('do')!r}")

    def answer(self, connection: socket.socket, reply: dict[str, object]) -> None:
        """Send one line. A reader that is too slow loses the rest: the guard must not wait."""
        connection.settimeout(DRAIN_S)
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(reply).encode() + b"\n")

    def description(self) -> dict[str, object]:
        """Return what a visitor may know: the marker, pids, owner, notes. No secrets."""
        wait_s = None
        if self.owner_deadline is not None:
            wait_s = max(0.0, self.owner_deadline - time.monotonic())
        env = self.spec["env"]
        return {
            "event": "guard",
            "pid": os.getpid(),
            "keeper": self.keeper_pid,
            "marker": {name: env[name] for name in env if name.startswith("RAYLAUNCH_")},
            "server_pid": self.pid,
            "log": self.spec["log"],
            "term_timeout_s": self.spec["term_timeout_s"],
            "kill_timeout_s": self.spec["kill_timeout_s"],
            "phase": self.phase,
            "owner": self.owner,
            "owner_wait_s": wait_s,
            "notes": self.notes,
        }

    def on_adopt(self, connection: socket.socket, rest: bytes) -> None:
        """Make a connection the owner's, unless there is an owner or the server is stopping."""
        if self.owner is not None or self.phase != "running":
            self.answer(connection, {**self.description(), "event": "busy"})
            connection.close()
            return
        self.owner_deadline = None
        self.owner, _ = peer_of(connection)
        self.control = rest
        self.control_fd = connection.detach()
        self.selector.register(self.control_fd, selectors.EVENT_READ, self.on_control)
        # A selector takes each descriptor once, and this one is watched for reading.
        self.events.attach(os.dup(self.control_fd))
        facts = {**self.description(), "memo": self.spec["memo"]}
        self.events.send(str(facts.pop("event")), **facts)
        self.events.repeat()
        self.on_commands()

    # -- signals and exits ---------------------------------------------------------------------

    def on_signal(self) -> None:
        """Handle SIGTERM as stop, reap on SIGCHLD; a terminal's SIGINT and SIGHUP are ignored."""
        received = os.read(self.wakeup, 4096)
        if signal.SIGTERM in received:
            self.stop(self.spec["term_timeout_s"])
        if KEEPER_EXITED in received:
            self.check_keeper()
        self.reap()

    def check_keeper(self) -> None:
        """Stop the server when the keeper is gone: nothing would clean up after a SIGKILL of us."""
        has_keeper = os.getppid() == self.keeper_pid
        if has_keeper or self.keeper_lost:
            return
        self.keeper_lost = True
        self.events.send("keeper_lost", at=time.time())
        self.stop(self.spec["term_timeout_s"])

    def reap(self) -> None:
        """Reap exited children, adopted ones too; without any child nothing is left below."""
        while (result := _reap_one()) is not None:
            if result.si_pid == self.pid:
                self.on_exit(result.si_code, result.si_status)
        if _childless():
            self.phase = "done"

    def on_exit(self, code: int, status: int) -> None:
        """Report the server's exit, after its last output is in the log, and stop its orphans."""
        self.pid = None
        self.pump(PIPE_BYTES)
        now = time.time()
        if code == os.CLD_EXITED:
            self.events.send("exit", code=status, signal=None, at=now)
        else:
            self.events.send("exit", code=None, signal=status, at=now)
        self.stop(self.spec["orphan_grace_s"])

    def on_output(self) -> None:
        """Move what the server printed into the log."""
        self.pump(READ_BYTES)

    def pump(self, limit: int) -> bool:
        """Move at most about `limit` bytes; False when the last writer has closed the pipe."""
        while limit > 0:
            try:
                data = os.read(self.output, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                if self.output in self.selector.get_map():
                    self.selector.unregister(self.output)
                return False
            limit -= len(data)
            self.log.write(data)
        return True

    def stop(self, term_timeout_s: float) -> None:
        """Send SIGTERM; SIGKILL follows at the deadline. A later call can only move it forward."""
        if self.phase in ("killing", "done"):
            return
        deadline = time.monotonic() + term_timeout_s
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
        self.phase = "stopping"
        # A stopped process (state T) handles SIGTERM only once it is continued.
        for number in (signal.SIGTERM, signal.SIGCONT):
            if self.pid is None:
                signal_below(number)
            else:
                self.signal_group(self.pid, number)

    def signal_group(self, leader: int, number: int) -> None:
        """Signal the server's group. Its leader is not reaped, so the id has not been recycled."""
        # Not permitted: every process of the group has changed its user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)

    def kill(self) -> None:
        """SIGKILL everything below, until it is gone or the kill deadline has passed."""
        if self.phase == "done":
            return
        if self.phase != "killing":
            self.phase = "killing"
            timeout_s = self.spec["kill_timeout_s"]
            self.deadline = time.monotonic() + timeout_s
        self.kill_round()

    def kill_round(self) -> None:
        """Send one round of SIGKILL. Children forked meanwhile become ours, for the next round."""
        if self.pid is not None:
            self.signal_group(self.pid, signal.SIGKILL)
        signal_below(signal.SIGKILL)
        self.reap()
        if self.deadline_passed():
            self.phase = "done"

    def finish(self) -> None:
        """Empty the pipe, report what resisted, and wait until the owner has read it."""
        deadline = time.monotonic() + DRAIN_S
        while self.pump(PIPE_BYTES) and time.monotonic() < deadline:
            with selectors.DefaultSelector() as output:
                output.register(self.output, selectors.EVENT_READ)
                remaining_s = deadline - time.monotonic()
                output.select(max(0.0, remaining_s))
        self.log.close_line()
        left = set(child_pids())
        for process in descendants(os.getpid()):
            left.add(process.pid)
        # An event has to fit into PIPE_BUF (4096 bytes), so that it is written whole.
        first = sorted(left)[:100]
        self.events.send("clean", left=first)
        self.close_socket()
        self.events.flush(FLUSH_S)


class Events:
    """JSON lines to the owner, in order, never blocking.

    In a pipe each is shorter than PIPE_BUF, so it is written whole or not at all. While there is no
    owner nothing is queued: what the next one must know is repeated to it.
    """

    def __init__(self, fd: int) -> None:
        self.queue: deque[bytes] = deque()
        self.lasting: dict[str, bytes] = {}
        """The newest event of each kind that a later owner must know."""
        self.attach(fd)

    def attach(self, fd: int) -> None:
        """Send to this descriptor from now on."""
        self.fd: int | None = fd
        self.last = ""
        os.set_blocking(fd, False)

    def detach(self) -> None:
        """Close the descriptor of an owner that is gone, and drop what it did not read."""
        if self.fd is not None:
            os.close(self.fd)
        self.fd = None
        self.queue.clear()

    def repeat(self) -> None:
        """Send a new owner the events that still count."""
        self.queue.extend(self.lasting.values())
        self.write()

    def send(self, event: str, **facts: object) -> None:
        """Queue one event and write what the pipe takes."""
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        if event in ("spawned", "socket_failed", "log_failed", "keeper_lost", "exit"):
            self.lasting[event] = line
        elif event == "log_recovered":
            self.lasting.pop("log_failed", None)
        if self.fd is None:
            return
        self.queue.append(line)
        self.last = event
        self.write()

    def send_log(self) -> None:
        """Report that the log grew, unless the owner has not yet read the last such report."""
        if self.queue or self.fd is None:
            return
        reported = self.last == "log" and self.unread()
        if not reported:
            self.send("log")

    def unread(self) -> bool:
        """Return whether the owner has not read everything."""
        assert self.fd is not None
        # A pipe counts what is in it, at either end; a socket counts what it has sent (SIOCOUTQ).
        is_socket = stat.S_ISSOCK(os.fstat(self.fd).st_mode)
        request = termios.TIOCOUTQ if is_socket else termios.FIONREAD
        count = fcntl.ioctl(self.fd, request, b"\0" * 4)
        return int.from_bytes(count, sys.byteorder) > 0

    def write(self) -> None:
        """Write as much as the pipe takes; drop everything when the reader is gone."""
        if self.fd is None:
            return
        try:
            while self.queue:
                line = self.queue[0]
                count = os.write(self.fd, line)
                if count < len(line):  # a socket takes a part of a long line
                    self.queue[0] = line[count:]
                    continue
                self.queue.popleft()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.queue.clear()

    def flush(self, timeout_s: float) -> None:
        """Wait for a slow owner; return immediately when it is gone."""
        if self.fd is None:
            return
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as reader:
            reader.register(self.fd, selectors.EVENT_WRITE)
            while self.queue:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return
                reader.select(remaining_s)
                self.write()


class SafeLog:
    """The server's log on a disk that may be full: an outage costs lines, never the server.

    While the disk refuses, output is dropped and counted, and a write is retried with back-off. The
    first write that works again is a line that says how much was lost. The owner gets one event for
    the failure and one for the recovery.
    """

    def __init__(self, path: str, rotate_bytes: int, keep: int, events: Events) -> None:
        self.path = path
        self.rotate_bytes = rotate_bytes
        self.keep = keep
        self.events = events
        self.log: Log | None = None
        self.error: OSError | None = None
        self.lost_bytes = 0
        self.failed_at = 0.0
        self.retry_s = LOG_RETRY_S
        self.retry_at: float | None = None
        """When to try again, on the monotonic clock; None while the log works."""

    def open(self) -> None:
        """Create the log; where the disk refuses, go without one for now.

        Raises:
            OSError: The path is wrong or not permitted. Waiting would not help.
        """
        try:
            self.log = Log(self.path, self.rotate_bytes, self.keep)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            self.on_failure(error)

    def write(self, data: bytes) -> None:
        """Append what the server printed, or drop and count it during an outage."""
        if self.log is None or self.error is not None:
            self.lost_bytes += len(data)
            return
        before = self.log.written
        try:
            self.log.write(data)
        except OSError as error:
            written = self.log.written - before
            self.lost_bytes += len(data) - written
            self.on_failure(error)
        else:
            self.events.send_log()

    def retry(self) -> None:
        """Try to write again when that is due."""
        if self.retry_at is None or time.monotonic() < self.retry_at:
            return
        try:
            if self.log is None:
                self.log = Log(self.path, self.rotate_bytes, self.keep)
            self.log.stale = True  # a file handle of a file server that was away is of no use
            line_end = b"" if self.log.at_line_start else b"\n"
            self.log.write(line_end + self.loss_note())
        except OSError as error:
            self.on_failure(error)
            return
        self.error = None
        self.retry_at = None
        self.events.send(
            "log_recovered",
            lost_bytes=self.lost_bytes,
            at=time.time(),
        )
        self.lost_bytes = 0
        self.events.send_log()

    def close_line(self) -> None:
        """Finish the last line, so that readers who wait for whole lines get it."""
        if self.retry_at is not None:
            self.retry_at = 0.0  # the last chance to say what was lost
            self.retry()
        if self.log is not None:
            with contextlib.suppress(OSError):
                self.log.end_line()

    def loss_note(self) -> bytes:
        """Return the line that stands in the log for what was lost."""
        reason = self.error.strerror if self.error is not None else ""
        return f"[raylaunch] {self.lost_bytes} bytes of output lost: {reason}\n".encode()

    def on_failure(self, error: OSError) -> None:
        """Schedule the next try, and report the first failure of an outage."""
        now = time.monotonic()
        # A nearly full disk accepts a line now and then: back-off keeps that from event storms.
        stable_s = now - self.failed_at
        if stable_s > LOG_STABLE_S:
            self.retry_s = LOG_RETRY_S
        else:
            self.retry_s = min(2 * self.retry_s, LOG_RETRY_MAX_S)
        self.failed_at = now
        self.retry_at = now + self.retry_s
        if self.error is None:
            self.events.send(
                "log_failed",
                errno=error.errno,
                error=str(error)[:1000],
                at=time.time(),
            )
        self.error = error


class Log:
    """An append-only file, rotated between lines: name.log -> name.log.1 -> ... -> name.log.<keep>.

    Folder 0700, file 0600: a log can hold prompts, addresses and paths.
    """

    def __init__(self, path: str, rotate_bytes: int, keep: int) -> None:
        self.path = path
        self.rotate_bytes = max(1, rotate_bytes)
        self.keep = max(1, keep)
        self.written = 0
        """Bytes since the start, over all files."""
        self.at_line_start = True
        self.stale = False
        """To be opened again: it was renamed, and the next one could not be created yet."""
        self.fd = -1
        mask = os.umask(0o077)
        try:
            # Not pathlib: importing it doubles the start-up time.
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        finally:
            os.umask(mask)
        self.open()

    def open(self) -> None:
        """Open the current file; our own tracebacks go there too."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd
        status = os.fstat(fd)
        self.size = status.st_size
        self.stale = False
        regular = stat.S_ISREG(status.st_mode)
        ours = status.st_uid == os.geteuid()
        if regular and ours:
            os.fchmod(fd, 0o600)
        os.dup2(fd, 2, inheritable=True)

    def write(self, data: bytes) -> None:
        """Append; when the file is full, rotate at the line end that fits best.

        Raises:
            OSError: The disk is full or gone; some of `data` may have been written.
        """
        if self.stale:
            with contextlib.suppress(OSError):
                self.open()
        while data:
            cut = self.cut(data)
            self.append(data[:cut])
            data = data[cut:]
            endless_line = self.size > 2 * self.rotate_bytes
            if data or endless_line:
                self.rotate()

    def cut(self, data: bytes) -> int:
        """Return how many bytes of `data` belong into the current file."""
        room = self.rotate_bytes - self.size
        if len(data) <= room:
            return len(data)
        last_line_end = data.rfind(b"\n", 0, max(0, room))
        if last_line_end >= 0:
            return last_line_end + 1
        # Nothing of `data` fits: a line that begins here belongs into the next file.
        if self.at_line_start and self.size:
            return 0
        first_line_end = data.find(b"\n")
        if first_line_end >= 0:
            return first_line_end + 1
        return len(data)

    def append(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            OSError: The disk is full or gone; some of `data` may have been written.
        """
        while data:
            count = os.write(self.fd, data)
            last = data[count - 1 : count]
            self.at_line_start = last == b"\n"
            self.size += count
            self.written += count
            data = data[count:]

    def rotate(self) -> None:
        """Shift the files by one and open a new one; where that fails, keep using the old one."""
        self.size = 0
        with contextlib.suppress(OSError):
            for number in range(self.keep, 0, -1):
                newer = f"{self.path}.{number - 1}" if number > 1 else self.path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, f"{self.path}.{number}")  # noqa: PTH105
            self.stale = True
            self.open()

    def end_line(self) -> None:
        """Finish an unfinished last line.

        Raises:
            OSError: The disk is full or gone.
        """
        if not self.at_line_start:
            self.append(b"\n")


def open_socket(path: str) -> socket.socket:
    """Listen on a unix socket in a folder that only this user may enter.

    Raises:
        GuardRunsError: A living guard listens there.
        OSError: The folder cannot be made, or is another user's.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
    status = os.stat(folder)  # noqa: PTH116
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"the folder belongs to user {status.st_uid}")
    if status.st_mode & 0o077:
        os.chmod(folder, 0o700)  # noqa: PTH101
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        with short_path(folder, name) as address:
            if os.path.lexists(path):
                refuse_living(path, address)
                os.unlink(path)  # noqa: PTH108
            listener.bind(address)
        listener.listen(VISITORS)
    except OSError:
        listener.close()
        raise
    return listener


def refuse_living(path: str, address: str) -> None:
    """Return if nothing listens on a socket that is left in the folder.

    Raises:
        GuardRunsError: Something does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog of a living listener raises BlockingIOError
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass
    raise GuardRunsError(errno.EEXIST, "another guard of this server still runs", path)


@contextlib.contextmanager
def short_path(folder: str, name: str) -> Iterator[str]:
    """Yield an address of a socket in a folder, however long the folder's path is."""
    path = os.path.join(folder, name)  # noqa: PTH118
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        yield path
        return
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return pid and user id of the other side of a unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("3i", credentials)
    return pid, uid


def prepare_child(parent: int) -> None:
    """Prepare the child between fork and exec: parent-death signal, default mask, OOM score."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the guard died before the line above
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    set_oom_score(SERVER_OOM_SCORE)


def set_niceness(wanted: int | None) -> int:
    """Set the niceness where permitted (None: keep it) and return the effective one."""
    if wanted is not None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, wanted)
    return os.getpriority(os.PRIO_PROCESS, 0)


def set_oom_score(*scores: int) -> None:
    """Set the first score that is permitted for this process."""
    for score in scores:
        with contextlib.suppress(OSError):
            with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
                file.write(str(score))
            return


def processes() -> list[Process]:
    """Return the process table, without zombies and without what /proc hides from this user."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208
    except OSError:  # no /proc is mounted here
        return []
    found = []
    for name in names:
        process = read_process(int(name)) if name.isdigit() else None
        if process is not None:
            found.append(process)
    return found


def read_process(pid: int) -> Process | None:
    """Read one process; None when it is gone, a zombie, or hidden (hidepid, non-dumpable)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            line = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command, in parentheses, may itself hold blanks and parentheses.
    _, _, rest = line.rpartition(b")")
    fields = rest.split()
    state = fields[0].decode()
    if state in "ZX":
        return None
    # proc(5), counted from `state`, which is the third field: ppid and starttime.
    ppid = int(fields[1])
    started = int(fields[19])
    return Process(pid, ppid, state, started)


def descendants(root: int) -> list[Process]:
    """Return all living processes below `root` that /proc shows.

    A zombie has no children, so leaving zombies out cuts no chain.
    """
    children_of: dict[int, list[Process]] = {}
    for process in processes():
        siblings = children_of.setdefault(process.ppid, [])
        siblings.append(process)
    found: list[Process] = []
    todo = [root]
    while todo:
        parent = todo.pop()
        children = children_of.get(parent, [])
        found += children
        todo += [child.pid for child in children]
    return found


def child_pids() -> list[int]:
    """Return our direct children as the kernel lists them, hidden ones too (proc(5): children).

    Only for a process with one thread. Empty on a kernel without CONFIG_PROC_CHILDREN.
    """
    try:
        with open("/proc/thread-self/children", "rb") as file:  # noqa: PTH123
            pids = file.read().split()
    except OSError:
        return []
    return [int(pid) for pid in pids]


def send_signal(process: Process, number: int) -> None:
    """Signal exactly this process; a process that has the same pid by now is left alone.

    Raises:
        PermissionError: The process belongs to another user.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # before Linux 5.3 (openEuler 20.03: 4.19), or no free file descriptor
        handle = -1
    try:
        now = read_process(process.pid)
        if now is None or now.started != process.started:
            return
        with contextlib.suppress(ProcessLookupError):
            if handle >= 0:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(process.pid, number)
    finally:
        if handle >= 0:
            os.close(handle)


def signal_below(number: int) -> None:
    """Signal every descendant that /proc shows, and every child that it hides.

    What a hidden child leaves behind becomes our child, so repeated rounds reach the whole tree.
    """
    visible = descendants(os.getpid())
    for process in visible:
        # Not permitted: it has changed its user. `clean` reports it as left.
        with contextlib.suppress(PermissionError):
            send_signal(process, number)
    known = {process.pid for process in visible}
    for pid in child_pids():
        if pid in known:
            continue
        # Our child and not reaped, so the pid has not been recycled.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.kill(pid, number)


def _reap_one() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def _reap_all() -> bool:
    """Reap; True when no child is left, hence nothing below us: orphans go to their subreaper."""
    while _reap_one() is not None:
        pass
    return _childless()


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _wait_for(pid: int) -> int:
    while True:
        exited, status = os.wait()
        if exited == pid:
            return status


def _read_line(fd: int) -> tuple[bytes, bytes]:
    """Return the first line and what came after it; an empty line at end of file."""
    data = b""
    while b"\n" not in data:
        more = os.read(fd, READ_BYTES)
        if not more:
            return b"", b""
        data += more
    line, _, rest = data.partition(b"\n")
    return line, rest


if __name__ == "__main__":
    sys.exit(main())
