"""Writes rendered files: all or none, never half-written, never over a foreign file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError

MARK = re.compile(r"^# *Deployment .+, recipe .+: ", re.MULTILINE)
"""The first comment of every rendered script."""

MONITORING_MARK = "Written by `raylaunch monitoring`"
"""At the beginning of every file for Prometheus, Alertmanager and Grafana."""

HEAD = 1000
"""Number of characters from the beginning of a file within which the mark is searched."""

PLAN_KEYS = ("schema", "deployment", "endpoint")
"""Keys at the beginning of a rendered plan.json."""


def write_files(folder: Path, files: Mapping[str, str], *, force: bool = False) -> list[Path]:
    """Write `files` (name -> text) below `folder`; scripts become executable.

    Raises:
        NodeError: a file of that name was not rendered by raylaunch and `force` is off, or the
            folder cannot be written.
    """
    targets = {folder / name: text for name, text in files.items()}
    try:
        if not force:
            _refuse_foreign(folder, list(targets))
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in targets.items():
            _replace(path, text)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise NodeError(f"cannot write the files to {folder}", why=str(error)) from error
    return list(targets)


def _refuse_foreign(folder: Path, targets: list[Path]) -> None:
    foreign = [path for path in targets if path.exists() and not _is_rendered(path)]
    if foreign:
        raise NodeError(
            f"{folder} holds files that raylaunch did not render; nothing was written",
            evidence="\n".join(str(path) for path in foreign),
            todo="choose another --out, or give --force to overwrite them",
        )


def _is_rendered(path: Path) -> bool:
    try:
        # Opened only if it is a regular file: a FIFO would block.
        if not path.is_file():
            return False
        with path.open(encoding="utf-8") as stream:
            head = stream.read(HEAD)
    except (OSError, UnicodeDecodeError):
        return False
    if MONITORING_MARK in head:
        return True
    if path.suffix == ".json":
        return all(f'"{key}"' in head for key in PLAN_KEYS)
    return MARK.search(head) is not None


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    mode = 0o755 if text.startswith("#!") else 0o644
    try:
        draft.write_text(text, encoding="utf-8")
        draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read: all of it, or nothing.

    Raises:
        NodeError: it cannot be written.
    """
    try:
        # A link is followed: the draft replaces the file that it leads to.
        real = path.resolve()
        if real.exists() and not real.is_file():
            raise OSError("it is not a file")
        draft = real.with_name(f".{real.name}.{os.getpid()}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            draft.replace(real)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise NodeError(f"cannot write {path}", why=str(error)) from error
