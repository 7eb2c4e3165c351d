"""The faults of the chaos benchmark: kills, disks that fail, a wall clock that steps."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from raylaunch.node.process.guard_socket import find_guards
from raylaunch.supervise.deployment_status import Status

REFILL_S = 0.005
SOURCE = Path(__file__).with_name("chaos_shim.c")
_CONTROL = struct.Struct("qq")
"""Seconds on the wall clock, microseconds for each write: `struct control` of chaos_shim.c."""


class UnexpectedError(Exception):
    """The product did something else than it promises."""


class Shim:
    """A library that the processes of one deployment preload: their wall clock, their disk.

    Ray's daemons preload it too. Ray waits for absolute times of the wall clock in places, which
    the kernel compares with the real one; a real step has the same effect once.
    """

    def __init__(self, folder: Path) -> None:
        self._library = folder / "chaos_shim.so"
        self._control = folder / "chaos_shim.control"
        self._control.write_bytes(_CONTROL.pack(0, 0))

    def build(self) -> bool:
        """Compile it; return whether a compiler did."""
        compiler = shutil.which("cc")
        if compiler is None:
            return False
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", self._library, SOURCE, "-ldl"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    @property
    def env(self) -> dict[str, str]:
        """The variables that preload it."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_SHIM": str(self._control)}

    @contextlib.contextmanager
    def set(self, *, step_s: int = 0, delay_us: int = 0) -> Iterator[None]:
        """Step the wall clock, or slow each write to a file, while the block runs."""
        self._write(step_s, delay_us)
        try:
            yield
        finally:
            self._write(0, 0)

    def _write(self, step_s: int, delay_us: int) -> None:
        with self._control.open("r+b") as file, mmap.mmap(file.fileno(), _CONTROL.size) as shared:
            _CONTROL.pack_into(shared, 0, step_s, delay_us)


def require_preloaded(actors: tuple[psutil.Process, Sequence[psutil.Process]]) -> None:
    """Refuse a round whose fault would not reach every actor.

    Raises:
        UnexpectedError: the controller or an agent has not loaded the library.
    """
    controller, agents = actors
    for process in (controller, *agents):
        if "chaos_shim.so" not in Path(f"/proc/{process.pid}/maps").read_text():
            raise UnexpectedError(f"pid {process.pid} has not loaded {SOURCE.stem}.so")


def kill(name: str, process: psutil.Process) -> str:
    """SIGKILL a process; it may have exited by itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return f"SIGKILL to {name} (pid {process.pid})"


def target(role: str, server: psutil.Process, home: Path) -> psutil.Process:
    """Return a process of a server's tree, or its agent: keeper, guard, server, engine, agent.

    `home` is the state folder of the deployment's user, where its guards listen.
    """
    if role == "agent":
        return _agent(server, home)
    if role == "server":
        return server
    if role == "engine":
        for child in server.children(recursive=True):
            if child.cmdline()[0].startswith("VLLM::EngineCore"):
                return child
        raise UnexpectedError("the server has no engine")
    guard = _parent(server)
    if role == "guard":
        return guard
    if role == "keeper":
        return _parent(guard)
    raise ValueError(f"no process of a server has the role {role}")


def _agent(server: psutil.Process, home: Path) -> psutil.Process:
    """Return the agent of a server: it is no ancestor, so the guard is asked for its owner."""
    for guard in find_guards(home):
        if guard.server_pid == server.pid and guard.owner is not None:
            return psutil.Process(guard.owner)
    raise UnexpectedError(f"no guard of the server (pid {server.pid}) has an owner")


def server_process(status: Status, index: int) -> psutil.Process:
    pid = status.servers[index].seen.pid
    if pid is None:
        raise UnexpectedError(f"server {index} is ready without a pid")
    return psutil.Process(pid)


def _parent(process: psutil.Process) -> psutil.Process:
    found = process.parent()
    if found is None:
        raise UnexpectedError(f"pid {process.pid} has no parent")
    return found


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Keep the file system of `folder` full: a new attempt prunes old logs, which frees space."""
    filler = folder / "filler"
    stopping = threading.Event()

    def keep_full() -> None:
        with filler.open("wb", buffering=0) as file:
            while not stopping.is_set():
                try:
                    file.write(b"\0" * 65536)
                except OSError:
                    stopping.wait(REFILL_S)

    thread = threading.Thread(target=keep_full, daemon=True)
    thread.start()
    while shutil.disk_usage(folder).free:
        time.sleep(REFILL_S)
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Cover `folder` with a file system that cannot be written, not even by root."""
    folder.mkdir(parents=True, exist_ok=True)
    with mounted(folder, "ro,size=1m"):
        yield


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs on `folder`. Lazily unmounted: servers may hold files on it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    """Return whether this user may mount a tmpfs below `folder`."""
    if os.geteuid() != 0:
        return False
    try:
        with mounted(folder / "try", "size=1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
