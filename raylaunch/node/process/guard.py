"""The guard: owns one server's process tree and its log, and takes both down when its owner goes away.

Run by path with `python -I -S`, from the standard library alone, so that it starts in a few milliseconds and
works wherever raylaunch was unpacked. Nothing here may import raylaunch.

Two processes. The *keeper* is the owner's direct child and only waits; the *guard* is the keeper's child and does
the work. Ray SIGKILLs the direct children of a worker that exits (measured, Ray 2.60: a child in a session of its
own is gone, its children live on): that hits the keeper, and the guard ends the tree in order. If instead the guard
is SIGKILLed, what it had adopted falls to the keeper, which ends it.

stdin:  one JSON line, the spec (`raylaunch.node.process.server_process.ServerSpec`); then JSON lines {"do": "stop",
        "term_timeout_s": 10} or {"do": "kill"}. End of file means the owner is gone: the same as stop.
stdout: JSON lines: spawned | failed, log (the log grew), log_failed, exit, and last clean with the pids that resisted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import termios
import time
from collections import deque
from typing import Any, NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PIPE_BYTES = 1 << 20
GUARD_OOM_SCORE = -500
SERVER_OOM_SCORE = 0
"""Ray gives its workers 1000 (first to be killed), and children inherit it."""
FLUSH_S = 60.0
DRAIN_S = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """A line of the process table. `started` (clock ticks since boot) tells a recycled pid from the first owner."""

    pid: int
    ppid: int
    state: str
    started: int


def main() -> int:
    """Become keeper and guard; the exit code is the guard's."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    return keep(pid) if pid else guard()


def keep(guard_pid: int) -> int:
    """Wait for the guard; when it dies before its work is done, SIGKILL what it leaves behind."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # the owner must see the guard's end of the pipes close
        os.dup2(null, fd)
    status = _wait_for(guard_pid)
    deadline = time.monotonic() + 10
    while status != 0 and not _reap_all() and time.monotonic() < deadline:
        for process in descendants(os.getpid()):
            send_signal(process, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], 0.2)
    return 0 if status == 0 else 1


def guard() -> int:
    """Read the spec, run the server, return when everything below is gone."""
    os.setsid()
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    line, rest = _read_line(0)
    if not line:
        return 0  # the owner went away before it said what to run
    Guard(json.loads(line), rest).run()
    return 0


class Guard:
    """The event loop: control pipe, log pipe, signals, deadlines."""

    def __init__(self, spec: dict[str, Any], rest: bytes) -> None:
        self.spec = spec
        self.control = rest
        self.events = Events(1)
        self.pid: int | None = None
        """The server while it has not been reaped."""
        self.phase = "running"
        self.deadline: float | None = None
        self.selector = selectors.DefaultSelector()
        self.wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # Handlers, not SIG_IGN: exec resets handlers, so the server starts with default dispositions.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def run(self) -> None:
        """Spawn the server and stay until nothing is left below."""
        try:
            self.log = Log(self.spec["log"], self.spec["rotate_bytes"], self.spec["keep"])
            self.spawn()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.events.send("failed", errno=getattr(error, "errno", None), error=str(error)[:1000])
            self.events.send("clean", left=[])
            self.events.flush(FLUSH_S)
            return
        self.selector.register(0, selectors.EVENT_READ, self.on_control)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self.on_signal)
        self.selector.register(self.output, selectors.EVENT_READ, self.on_output)
        self.on_commands()
        while self.phase != "done":
            self.step()
        self.finish()

    def spawn(self) -> None:
        """Start the server in its own process group, output into our pipe."""
        self.output, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.output, False)
        with contextlib.suppress(OSError):  # more than /proc/sys/fs/pipe-max-size: keep the default
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        niceness = set_niceness(self.spec["niceness"])
        set_oom_score(GUARD_OOM_SCORE, SERVER_OOM_SCORE)
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
        self.events.send("spawned", pid=child.pid, guard=parent, niceness=niceness, at=time.time())

    def step(self) -> None:
        """Wait for the next event or deadline and handle it."""
        timeout = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        if self.phase == "killing":
            timeout = min(timeout or 0.0, 0.2)  # a child forked while we walked: look again
        for key, _ in self.selector.select(timeout):
            key.data()
        self.watch_events()
        if self.phase == "killing":
            self.end_rest()
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.kill()

    def watch_events(self) -> None:
        """Wait for the owner to read only while something is queued."""
        if self.events.queue and 1 not in self.selector.get_map():
            self.selector.register(1, selectors.EVENT_WRITE, self.events.write)
        elif not self.events.queue and 1 in self.selector.get_map():
            self.selector.unregister(1)

    def on_control(self) -> None:
        """Read commands; end of file is the owner's death."""
        data = os.read(0, 65536)
        if not data:
            self.selector.unregister(0)
            self.stop(self.spec["term_timeout_s"])
        self.control += data
        self.on_commands()

    def on_commands(self) -> None:
        """Obey the complete lines received so far."""
        *lines, self.control = self.control.split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "kill":
                self.kill()
            elif command["do"] == "stop":
                self.stop(command.get("term_timeout_s", self.spec["term_timeout_s"]))

    def on_signal(self) -> None:
        """SIGTERM is stop, SIGINT and SIGHUP belong to somebody's terminal, SIGCHLD: reap."""
        if signal.SIGTERM in os.read(self.wakeup, 4096):
            self.stop(self.spec["term_timeout_s"])
        self.reap()

    def reap(self) -> None:
        """Take the ended children, adopted ones too; without any child there is nothing left below."""
        while (ended := _reap_one()) is not None:
            if ended.si_pid == self.pid:
                self.on_exit(ended.si_code, ended.si_status)
        if _childless():
            self.phase = "done"

    def on_exit(self, code: int, status: int) -> None:
        """Report the server's end, after what it had printed is in the log, and end its orphans."""
        self.pid = None
        self.pump(PIPE_BYTES)
        by_signal = code != os.CLD_EXITED
        self.events.send(
            "exit",
            code=None if by_signal else status,
            signal=status if by_signal else None,
            at=time.time(),
        )
        self.stop(self.spec["orphan_grace_s"])

    def on_output(self) -> None:
        """Move what the server printed into the log."""
        self.pump(65536)

    def pump(self, limit: int) -> bool:
        """Move at most about `limit` bytes; False when the last writer has closed the pipe."""
        while limit > 0:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return True
            if not data:
                if self.output in self.selector.get_map():
                    self.selector.unregister(self.output)
                return False
            limit -= len(data)
            self.write_log(data)
        return True

    def write_log(self, data: bytes) -> None:
        """A full disk must not block or end the server: the lines are lost and the owner is told once."""
        try:
            self.log.write(data)
        except OSError as error:
            if not self.log.failed:
                self.events.send("log_failed", error=str(error)[:1000])
            self.log.failed = True
        else:
            self.events.send_log()

    def stop(self, term_timeout_s: float) -> None:
        """SIGTERM; SIGKILL when the deadline has passed. A later call can only bring the deadline forward."""
        if self.phase in ("killing", "done"):
            return
        deadline = time.monotonic() + term_timeout_s
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
        self.phase = "stopping"
        for number in (
            signal.SIGTERM,
            signal.SIGCONT,
        ):  # a stopped process takes SIGTERM only once continued
            if self.pid is None:
                _signal_below(number)
            else:  # not reaped yet, so the group is still its own
                with contextlib.suppress(PermissionError):
                    os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL everything below, until it is gone or the kill deadline has passed."""
        if self.phase == "done":
            return
        if self.phase != "killing":
            self.phase = "killing"
            self.deadline = time.monotonic() + self.spec["kill_timeout_s"]
        self.end_rest()

    def end_rest(self) -> None:
        """One round of SIGKILL. Children forked meanwhile are found in the next one: they fall to us."""
        _signal_below(signal.SIGKILL)
        self.reap()
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.phase = "done"

    def finish(self) -> None:
        """Empty the pipe, report what resisted, and let the owner read it."""
        deadline = time.monotonic() + DRAIN_S
        while self.pump(PIPE_BYTES) and time.monotonic() < deadline:
            with selectors.DefaultSelector() as wait:
                wait.register(self.output, selectors.EVENT_READ)
                wait.select(max(0.0, deadline - time.monotonic()))
        self.log.end_line()
        self.events.send("clean", left=[process.pid for process in descendants(os.getpid())][:100])
        self.events.flush(FLUSH_S)


class Events:
    """JSON lines to the owner, in order, never blocking. Each is shorter than PIPE_BUF, so written whole or not."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queue: deque[bytes] = deque()
        self.last = ""
        os.set_blocking(fd, False)

    def send(self, event: str, **facts: object) -> None:
        """Queue one event and write what the pipe takes."""
        self.queue.append(json.dumps({"event": event, **facts}).encode() + b"\n")
        self.last = event
        self.write()

    def send_log(self) -> None:
        """Say that the log grew, unless the owner has not yet read that we said so last."""
        if not self.queue and not (self.last == "log" and self.unread()):
            self.send("log")

    def unread(self) -> bool:
        """Whether the owner has not read everything."""
        return int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, b"\0" * 4), sys.byteorder) > 0

    def write(self) -> None:
        """Write as much as the pipe takes; drop everything when nobody can read it any more."""
        try:
            while self.queue:
                os.write(self.fd, self.queue[0])
                self.queue.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.queue.clear()

    def flush(self, timeout_s: float) -> None:
        """Wait for a slow owner; a dead one ends the wait at once."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as wait:
            wait.register(self.fd, selectors.EVENT_WRITE)
            while self.queue and time.monotonic() < deadline:
                wait.select(deadline - time.monotonic())
                self.write()


class Log:
    """An append-only file, rotated between lines: name.log -> name.log.1 -> ... -> name.log.<keep>."""

    def __init__(self, path: str, rotate_bytes: int, keep: int) -> None:
        self.path = path
        self.rotate_bytes = max(1, rotate_bytes)
        self.keep = max(1, keep)
        self.failed = False
        self.at_line_start = True
        self.fd = -1
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  pathlib doubles the start-up time
        self.open()

    def open(self) -> None:
        """Open the current file; our own tracebacks go there too."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd
        self.size = os.fstat(fd).st_size
        os.dup2(fd, 2, inheritable=True)

    def write(self, data: bytes) -> None:
        """Append; when the file is full, rotate at the line end that fits best."""
        while data:
            cut = self.cut(data)
            head, data = data[:cut], data[cut:]
            self.append(head)
            if data or self.size > 2 * self.rotate_bytes:  # the second: an endless line
                self.rotate()

    def cut(self, data: bytes) -> int:
        """How many bytes of `data` belong into the current file."""
        room = self.rotate_bytes - self.size
        if len(data) <= room:
            return len(data)
        end = data.rfind(b"\n", 0, max(0, room)) + 1
        if end or (self.at_line_start and self.size):
            return end
        return data.find(b"\n") + 1 or len(data)

    def append(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            OSError: The disk is full or gone; some of `data` may have been written.
        """
        while data:
            written = os.write(self.fd, data)
            self.at_line_start = data[written - 1 : written] == b"\n"
            self.size += written
            data = data[written:]

    def rotate(self) -> None:
        """Shift the files by one and begin a new one; where that fails, go on in the old one for another round."""
        self.size = 0
        names = [self.path, *(f"{self.path}.{number}" for number in range(1, self.keep + 1))]
        with contextlib.suppress(OSError):
            for older, newer in reversed(list(itertools.pairwise(names))):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(older, newer)  # noqa: PTH105
            self.open()

    def end_line(self) -> None:
        """Finish the last line, so that readers who wait for whole lines get it."""
        if not self.at_line_start:
            with contextlib.suppress(OSError):
                self.append(b"\n")


def prepare_child(parent: int) -> None:
    """Between fork and exec: die with the guard, ordinary signals, ordinary chance with the OOM killer."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    set_oom_score(SERVER_OOM_SCORE)


def set_niceness(wanted: int | None) -> int:
    """Take the wanted niceness where permitted (None: leave it) and return the one that holds."""
    if wanted is not None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, wanted)
    return os.getpriority(os.PRIO_PROCESS, 0)


def set_oom_score(*scores: int) -> None:
    """Set the first score that is permitted for this process."""
    for score in scores:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write(str(score))
            file.flush()
            return


def processes() -> list[Process]:
    """The process table, without zombies."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return [process for process in found if process is not None]


def read_process(pid: int) -> Process | None:
    """One process, or None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state = fields[0].decode()
    return None if state in "ZX" else Process(pid, int(fields[1]), state, int(fields[19]))


def descendants(root: int) -> list[Process]:
    """All living processes below `root`. A zombie has no children, so leaving them out cuts no chain."""
    below: dict[int, list[Process]] = {}
    for process in processes():
        below.setdefault(process.ppid, []).append(process)
    found, todo = [], [root]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += [child.pid for child in children]
    return found


def send_signal(process: Process, number: int) -> None:
    """Signal exactly this process: a pid that was recycled since is left alone."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError as error:  # before Linux 5.3 (openEuler 20.03: 4.19) there are no pidfds
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        handle = -1
    try:
        now = read_process(process.pid)
        if now is not None and now.started == process.started:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number) if handle >= 0 else os.kill(
                    process.pid, number
                )
    finally:
        if handle >= 0:
            os.close(handle)


def _signal_below(number: int) -> None:
    for process in descendants(os.getpid()):
        with contextlib.suppress(PermissionError):  # it changed its user: reported as left
            send_signal(process, number)


def _reap_one() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def _reap_all() -> bool:
    """Reap; True when no child is left, hence nothing below us: orphans fall to their subreaper."""
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
        ended, status = os.wait()
        if ended == pid:
            return status


def _read_line(fd: int) -> tuple[bytes, bytes]:
    """The first line and what came after it; an empty line at end of file."""
    data = b""
    while b"\n" not in data:
        more = os.read(fd, 1 << 16)
        if not more:
            return b"", b""
        data += more
    line, _, rest = data.partition(b"\n")
    return line, rest


if __name__ == "__main__":
    sys.exit(main())
