"""What a start on this machine waits for, while there is no deployment yet that could be asked.

One file per deployment: $RAYLAUNCH_HOME/deployments/NAME.waiting, mode 0600. The process that waits
holds a lock on it (flock), which the kernel releases with the process: a file without a lock is
that of a process that was killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Self

from raylaunch.deployment.names import is_name
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.deployment_summary import ON_THE_WAY

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
START_HOST = "start that host, and Ray on it"
"""What to do, for a message that has the text of a note."""


class WaitingNote:
    """The note of one start, which is removed when the block is left.

    Args:
        home: raylaunch's folder.
        deployment: Its name.
    """

    def __init__(self, home: Path, deployment: str) -> None:
        self._path = _file(home, deployment)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self._path, error)
        os.close(self._descriptor)

    def show(self, text: str) -> None:
        """Replace the text. A failure is logged, not raised: the start matters more."""
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode()[:MAX_BYTES], 0)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error)

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Shared: a reader, which asks for the exclusive one, has it for a moment only.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def read_waiting(home: Path, deployment: str) -> str:
    """Return what the start of a deployment on this machine waits for; "" if there is none."""
    path = _file(home, deployment)
    try:
        # A FIFO would block.
        if not is_name(deployment) or not path.is_file():
            return ""
        with path.open("rb") as stream:
            if _can_lock(stream.fileno()):
                return ""
            return stream.read(MAX_BYTES).decode(errors="replace")
    except OSError as error:
        log.warning("cannot read %s: %s", path, error)
        return ""


def add_awaited(status: Status, home: Path) -> Status:
    """Return the status with what a start on this machine waits for.

    After a power cut Ray restarts a controller that knows of no host before it has searched.
    """
    text = read_waiting(home, status.deployment) if status.phase in ON_THE_WAY else ""
    if not text:
        return status
    return replace(status, waiting_for=(*status.waiting_for, text.removeprefix("waiting for ")))


def read_all_waiting(home: Path) -> dict[str, str]:
    """Return what the starts on this machine wait for, by name of the deployment."""
    try:
        names = sorted(path.stem for path in (home / "deployments").glob("*.waiting"))
    except OSError as error:
        log.warning("cannot read %s: %s", home / "deployments", error)
        return {}
    found = {name: read_waiting(home, name) for name in names}
    return {name: text for name, text in found.items() if text}


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file(home: Path, deployment: str) -> Path:
    return home / "deployments" / f"{deployment}.waiting"
