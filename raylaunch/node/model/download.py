"""One download on this machine: a hub's own program below a guard, which fills one folder.

Guard and keeper stop the program with everything below it when their owner exits, as they do with a
server. To resume after that is left to the program: it is started again with the same arguments.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.model.storage import free_bytes
from raylaunch.node.model.weight_files import expected_bytes
from raylaunch.node.probe import tool_text
from raylaunch.node.process.log_files import tail
from raylaunch.node.process.process_markers import new_instance
from raylaunch.node.process.server_env import child_env
from raylaunch.node.process.server_process import ServerProcess, ServerSpec
from raylaunch.plan.wanted_weights import HUBS, PROGRAMS, DownloadProgress, Hub

log = logging.getLogger(__name__)

LOCK = ".raylaunch-download"
TAIL_LINES = 15
TERM_S = 10.0


class Download:
    """A program that fills a folder.

    Args:
        argv: The command, with the absolute path of its program.
        folder: Where it writes; created if it does not exist.
        log: The file for its output.
        env: The node's environment: PATH, proxies, tokens.
        label: Marks its processes; no deployment can have this name.
        number: Distinguishes it from others with the same label.
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
            env,
            {},
            deployment=label,
            instance=new_instance(),
            attempt=1,
            server=number,
        )
        spec = ServerSpec(
            tuple(argv),
            marked,
            str(log),
            term_timeout_s=TERM_S,
            niceness=None,
        )
        self._process = ServerProcess(spec, lambda _: None)
        self._folder = folder
        self._log = log
        self._total_bytes = 0
        self._lock: int | None = None

    def start(self, needed_bytes: int = 0) -> None:
        """Create the folder, lock it and start the program.

        `needed_bytes` is the size of the whole model, 0 when it is not known.

        Raises:
            NodeError: The folder cannot be created, has too little space, or is locked by another
                download.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _require_space(self._folder, needed_bytes)
            self._lock = _lock(self._folder)
            self._process.start()
        except OSError as error:
            self._unlock()
            raise NodeError(
                f"the download into {self._folder} cannot be started", why=str(error)
            ) from error
        log.info("download into %s started, log %s", self._folder, self._log)

    def wait(self, timeout_s: float) -> DownloadProgress:
        """Wait at most `timeout_s` seconds for the exit, and return the progress."""
        exited = self._process.wait(timeout_s)
        if exited:
            self._unlock()
        state = self._process.state
        lines = [tool_text.clean(line) for line in tail(self._log, TAIL_LINES)]
        if not self._total_bytes:
            self._total_bytes = expected_bytes(self._folder)
        return DownloadProgress(
            have_bytes=written_bytes(self._folder),
            total_bytes=self._total_bytes,
            line=_last_text(lines),
            running=not exited,
            exit_code=state.exit_code,
            exit_signal=state.exit_signal,
            error=state.error,
            log=str(self._log),
            tail=tuple(lines),
        )

    def stop(self) -> tuple[int, ...]:
        """Stop the program with all its processes; returns the pids of those that survived."""
        try:
            return tuple(process.pid for process in self._process.terminate())
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_programs(env: Mapping[str, str], python: str) -> dict[Hub, str]:
    """Find the hubs' programs on this node: first on the PATH of `env`, else beside `python`."""
    found: dict[Hub, str] = {}
    for hub in HUBS:
        path = shutil.which(PROGRAMS[hub], path=env.get("PATH", ""))
        beside = Path(python).parent / PROGRAMS[hub]
        if path is None and os.access(beside, os.X_OK):
            path = str(beside)
        if path:
            # Not Path.resolve, which follows symlinks: a venv is found by them.
            found[hub] = os.path.abspath(path)  # noqa: PTH100
    return found


def written_bytes(folder: Path) -> int:
    """Return the bytes on the disk below `folder`.

    Unfinished files of a download, which are in hidden folders, count as well.
    """
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            total += _allocated_bytes(Path(where) / name)
    return total


def _last_text(lines: Sequence[str]) -> str:
    """Return the last line that shows something, as one line."""
    for line in reversed(lines):
        text = tool_text.one_line(line)
        if text:
            return text
    return ""


def _allocated_bytes(file: Path) -> int:
    try:
        status = file.stat()
    except OSError:  # renamed meanwhile
        return 0
    # A file that was created in its full size has no blocks yet.
    return min(status.st_size, status.st_blocks * 512)


def _require_space(folder: Path, needed_bytes: int) -> None:
    missing = needed_bytes - written_bytes(folder)
    free = free_bytes(str(folder))
    if not needed_bytes or missing <= free:
        return
    free_gib = free / 2**30
    missing_gib = missing / 2**30
    raise NodeError(
        f"{folder} has {free_gib:.1f} GiB of free space, "
        f"and {missing_gib:.1f} GiB are still to come",
        todo="make room there, or set model.path to a larger disk",
    )


def _lock(folder: Path) -> int | None:
    """Lock the folder against other downloads, on any node that shares it.

    The lock is held until the descriptor is closed. None where the file server has no locks.

    Raises:
        NodeError: Another download holds the lock.
        OSError: The lock file cannot be opened.
    """
    # O_NOFOLLOW: the folder may be writable for others, who could put a link there.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(folder / LOCK, flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise NodeError(
            f"another download into {folder} is running",
            why=f"another `raylaunch weights --download` holds {folder / LOCK}, "
            "here or on a node that shares it",
            todo="wait for it; `raylaunch weights NAME` shows its progress",
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked, a second download is not refused: %s", folder, error)
        os.close(handle)
        return None
    return handle
