"""Packs what the client of `--cluster` sends: the bootstrap, a request, raylaunch and files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from raylaunch.recipe.catalog import configs_dir
from raylaunch.runtime.ssh import ssh_bootstrap


def pack_message(request: Mapping[str, object], given: Mapping[str, Path]) -> bytes:
    """Return what goes through ssh's stdin.

    Args:
        request: See `ssh_bootstrap.main`; the size is added here.
        given: Files to send along, by their path below the folder on the head.
    """
    package = _zip(given)
    source = Path(ssh_bootstrap.__file__).read_bytes() + b"\nmain(sent)\n"
    line = json.dumps({**request, "size": len(package)}).encode()
    return b"%d\n" % len(source) + source + line + b"\n" + package


def code_files() -> dict[str, Path]:
    """Return the files of this raylaunch with its recipes, by their path in a folder for Python."""
    package = Path(__file__).resolve().parents[2]
    files = {}
    for path in _files(package):
        files[f"raylaunch/{path.relative_to(package)}"] = path
    for path in _files(configs_dir()):
        files[f"raylaunch/configs/{path.relative_to(configs_dir())}"] = path
    return files


def _zip(given: Mapping[str, Path]) -> bytes:
    """Pack this raylaunch with its recipes, and the files that are sent along."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in {**code_files(), **given}.items():
            archive.write(path, name)
    return packed.getvalue()


def _files(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if "__pycache__" not in path.parts]
