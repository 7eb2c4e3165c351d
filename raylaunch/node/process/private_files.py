"""Folders and files that only their owner may read: logs, bundles and records (0700 and 0600)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from raylaunch.errors import NodeError

NAME_BYTES = 255
"""Longest file name on Linux (NAME_MAX, limits.h)."""
PATH_BYTES = 4095
"""Longest path on Linux (PATH_MAX, limits.h, without the final NUL)."""


def make_private_dir(path: Path) -> Path:
    """Create a folder and its missing parents with mode 0700, or tighten an existing one.

    An existing folder is tightened only when it belongs to this user and is not a shared one
    (sticky bit, as /tmp has it). Existing parents are never changed. Returns `path`.

    Raises:
        NodeError: The path is longer than the file system allows.
        OSError: It cannot be created.
    """
    missing = []
    try:
        for folder in (path, *path.parents):
            if folder.exists():
                break
            missing.append(folder)
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        length = len(os.fsencode(path))
        limits = f"{NAME_BYTES} bytes for a name and {PATH_BYTES} for a path"
        raise NodeError(
            f"the folder {_abridged(path)} cannot be created",
            why=f"the path is {length} bytes long, and Linux allows {limits}",
            todo="set RAYLAUNCH_LOG_DIR and RAYLAUNCH_HOME to shorter paths",
        ) from error
    tighten(path)
    return path


def tighten(path: Path) -> None:
    """Take group's and others' permissions from a file or folder of this user.

    Shared folders (sticky bit) and other users' files are left as they are.
    """
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    ours = status.st_uid == os.geteuid()
    shared = bool(mode & stat.S_ISVTX)
    if ours and not shared and mode & 0o077:
        path.chmod(mode & 0o700)


def _abridged(path: Path) -> str:
    text = str(path)
    if len(text) <= NAME_BYTES:
        return text
    return f"{text[:NAME_BYTES]}..."
