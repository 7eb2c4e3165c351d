"""The log file of a controller or an agent: below the state folder of its node, rotated, private.

Ray keeps an actor's stdout in its session folder only as long as the session; this file stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from raylaunch.home import home_of

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20
KEPT_FILES = 2
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def actor_log_path(env: Mapping[str, str], deployment: str, role: str) -> Path:
    """Return the log file of an actor on this node; `role` is "controller", "agent-0", ..."""
    return home_of(env) / "actor-logs" / deployment / f"{role}.log"


def open_actor_log(path: Path, level: int = logging.INFO) -> None:
    """Write this process's raylaunch log to `path` as well.

    A folder that cannot be written costs the file, never the actor: Ray still keeps its stderr.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = _PrivateRotatingFile(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES)
    except OSError as error:
        log.warning("cannot write the log file %s: %s", path, error)
        return
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger("raylaunch")
    logger.addHandler(handler)
    logger.setLevel(level)


class _PrivateRotatingFile(RotatingFileHandler):
    """Creates each file with mode 0600: messages may quote lines of the servers' logs."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")
