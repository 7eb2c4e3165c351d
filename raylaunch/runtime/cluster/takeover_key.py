"""The key that agents hand the secrets out for, in a file that only its user can read.

Ray restarts a controller with nothing but its creation arguments. The key is not among them: Ray's
GCS sends those to every driver that looks the actor up by name (`GetNamedActorInfo`, Ray 2.60). The
controller is pinned to the head node, so the next one finds the file of the last.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from raylaunch.node.process.log_files import short_name
from raylaunch.node.process.private_files import make_private_dir

log = logging.getLogger(__name__)

FOLDER = "takeover"
KEY_BYTES = 32


def file_of(home: Path, deployment: str, instance: str) -> Path:
    """Return the file of one start of a deployment."""
    return home / FOLDER / short_name(f"{deployment}-{instance}.key")


def create_key(path: Path) -> str:
    """Return a new key after writing it to `path`, mode 0600.

    Raises:
        NodeError: the path is longer than the file system allows.
        OSError: it cannot be written.
    """
    key = secrets.token_hex(KEY_BYTES)
    make_private_dir(path.parent)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key)
    return key


def read_key(path: Path) -> str:
    """Return the key of the last controller; "" when there is none that can be read."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        log.warning("cannot read the takeover key %s: %s", path, error)
        return ""


def remove_key(path: Path) -> None:
    """Remove the key of a deployment that is stopped."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove the takeover key %s: %s", path, error)
