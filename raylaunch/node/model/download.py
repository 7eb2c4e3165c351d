"""One download on this machine: the hub's own program below a guard, into one folder, and what it has written so far.

Guard and keeper end the program with everything below it when the owner goes away, as they do with a server. To go on
after that is the program's own art: it is started again with the same words.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.model.storage import free_bytes
from raylaunch.node.model.weight_files import expected_bytes
from raylaunch.node.process.log_files import tail
from raylaunch.node.process.process_markers import new_instance
from raylaunch.node.process.server_process import ServerProcess, ServerSpec, child_env
from raylaunch.plan.wanted_weights import HUBS, PROGRAMS, DownloadProgress, Hub

LOCK = ".raylaunch-download"
TAIL_LINES = 15
TERM_S = 10.0


class Download:
    """A program that fills a folder.

    Args:
        argv: The command, with the absolute path of its program.
        folder: Where it writes; made if it is not there.
        log: File for what it says.
        env: The node's environment: PATH, proxies, tokens.
        label: Marks its processes; no deployment can have this name.
        number: Tells it from others with the same label.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        log: Path,
        env: Mapping[str, str],
        *,
        label: str,
        number: int,
    ) -> None:
        marked = child_env(
            env, {}, deployment=label, instance=new_instance(), attempt=1, server=number
        )
        spec = ServerSpec(tuple(argv), marked, str(log), term_timeout_s=TERM_S, niceness=None)
        self._process = ServerProcess(spec, lambda _: None)
        self._folder, self._log = folder, log
        self._total = 0
        self._lock: int | None = None

    def start(self, needed_bytes: int = 0) -> None:
        """Make the folder, take its lock, and start. `needed_bytes` is what the weights will take in all, if known.

        Raises:
            NodeError: the folder cannot be made, has too little room, or somebody else downloads into it.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _refuse_small(self._folder, needed_bytes)
            self._lock = _lock(self._folder)
            self._process.start()
        except OSError as error:
            self._unlock()
            raise NodeError(
                f"the download into {self._folder} cannot be started", why=str(error)
            ) from error

    def wait(self, timeout_s: float) -> DownloadProgress:
        """Wait for the end, at most so long, and say how far it is."""
        ended = self._process.wait(timeout_s)
        if ended:
            self._unlock()
        state, said = self._process.state, tail(self._log, TAIL_LINES)
        self._total = self._total or expected_bytes(self._folder)
        return DownloadProgress(
            have_bytes=written_bytes(self._folder),
            total_bytes=self._total,
            line=next((text for line in reversed(said) if (text := _readable(line))), ""),
            running=not ended,
            exit_code=state.exit_code,
            exit_signal=state.exit_signal,
            error=state.error,
            log=str(self._log),
            tail=tuple(said),
        )

    def end(self) -> tuple[int, ...]:
        """End it with all its processes; returns the pids of those that resisted."""
        try:
            return tuple(process.pid for process in self._process.terminate())
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_programs(env: Mapping[str, str], python: str) -> dict[Hub, str]:
    """The hubs' programs on this node: first on PATH, else beside Ray's Python."""
    found = {}
    for hub in HUBS:
        beside = Path(python).parent / PROGRAMS[hub]
        path = shutil.which(PROGRAMS[hub], path=env.get("PATH", "")) or (
            str(beside) if os.access(beside, os.X_OK) else ""
        )
        if path:
            found[hub] = os.path.abspath(path)  # noqa: PTH100 (keep symlinks: a venv lives by them)
    return found


def written_bytes(folder: Path) -> int:
    """Bytes on the disk below `folder`, unfinished files of a download (in hidden folders) included."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            total += _allocated(Path(where) / name)
    return total


def _readable(line: str) -> str:
    """Without what would move the cursor of the terminal that shows it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\xa0-\uffff]", "", line).strip()


def _allocated(file: Path) -> int:
    try:
        status = file.stat()
    except OSError:  # renamed in between
        return 0
    return min(
        status.st_size, status.st_blocks * 512
    )  # a file that was made in full size ahead has no blocks yet


def _refuse_small(folder: Path, needed_bytes: int) -> None:
    missing, free = needed_bytes - written_bytes(folder), free_bytes(str(folder))
    if needed_bytes and missing > free:
        raise NodeError(
            f"{folder} has room for {free / 2**30:.1f} GiB, and {missing / 2**30:.1f} GiB are still to come",
            todo="make room there, or set model.path to a larger disk",
        )


def _lock(folder: Path) -> int | None:
    """Held for as long as the download runs, on any node that shares the folder. None where locks are not known."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise NodeError(
            f"somebody else is downloading into {folder}",
            why=f"another `raylaunch weights --download` holds {folder / LOCK}, here or on a node that shares it",
            todo="wait for it; `raylaunch weights NAME` shows how far it is",
        ) from error
    except OSError:  # a file server without locks
        os.close(handle)
        return None
    return handle
