"""Writing rendered files: all or none, never half-written, never over a file that raylaunch did not render."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError

MARK = re.compile(r"^# *Deployment .+, recipe .+: ", re.MULTILINE)
"""The first comment of every rendered script."""

HEAD = 1000
"""Characters within which the mark must stand."""


def write_files(folder: Path, files: Mapping[str, str], *, force: bool = False) -> list[Path]:
    """Write `files` (name -> text) below `folder`; scripts become executable.

    Raises:
        NodeError: a file of that name was not rendered by raylaunch and `force` is off, or the folder refuses.
    """
    targets = {folder / name: text for name, text in files.items()}
    foreign = (
        [] if force else [path for path in targets if path.exists() and not _is_rendered(path)]
    )
    if foreign:
        raise NodeError(
            f"{folder} holds files that raylaunch did not render; nothing was written",
            evidence="\n".join(str(path) for path in foreign),
            todo="choose another --out, or give --force to overwrite them",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in targets.items():
            _replace(path, text)
    except OSError as error:
        raise NodeError(f"the files cannot be written to {folder}", why=str(error)) from error
    return list(targets)


def _is_rendered(path: Path) -> bool:
    try:
        head = path.read_text(encoding="utf-8")[:HEAD]
    except (OSError, UnicodeDecodeError):
        return False
    plan = path.suffix == ".json" and all(
        f'"{key}"' in head for key in ("schema", "deployment", "endpoint")
    )
    return plan or MARK.search(head) is not None


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o755 if text.startswith("#!") else 0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
