"""What lies at a model path on this machine: files, sizes, whether all shards are there and whole, on which filesystem.

Only names, sizes and headers are read, never tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from raylaunch.plan.facts import Weights

_INDEX_SUFFIX = ".index.json"
_MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers as well


def inspect_weights(path: str) -> Weights:
    """List the files of a model folder (and of its direct subfolders), and say what is missing or cut off.

    `missing` are shards that an index promises and that are not there (a link to nowhere counts as not there);
    `damaged` are shards shorter than their own header says, and JSON files that cannot be read. Blocks while a
    network filesystem does not answer, so call it with a deadline.

    Raises:
        OSError: The folder is there and cannot be listed.
    """
    folder = Path(path)
    if not folder.exists():
        return Weights(path, exists=False)
    files = dict(sorted(_list_files(folder)))
    config, broken_config = _read_json(folder, "config.json", files)
    promised, broken_indexes = _read_indexes(folder, files)
    model_type = config.get("model_type")
    return Weights(
        path,
        exists=True,
        model_type=model_type if isinstance(model_type, str) else None,
        files=files,
        missing=tuple(sorted(promised - files.keys())),
        damaged=(*broken_config, *broken_indexes, *_cut_shards(folder, files)),
        config=config,
        filesystem=filesystem_of(path),
    )


def filesystem_of(path: str) -> str | None:
    """The type of the filesystem that `path` lies on ("ext4", "nfs4", "overlay"); None when no mount is visible."""
    real = Path(os.path.realpath(path))
    mounts = [mount for mount in psutil.disk_partitions(all=True) if real.is_relative_to(mount.mountpoint)]
    # Of two mounts on the same point the later one covers the earlier: max() keeps the first, hence reversed.
    return max(reversed(mounts), key=lambda mount: len(mount.mountpoint)).fstype if mounts else None


def _list_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Names relative to the folder, with sizes; hidden entries (.cache, .git) belong to download tools.

    One level of subfolders is enough for every layout vLLM loads, and keeps a wrong path ("/") cheap.
    """
    if folder.is_file():
        yield folder.name, folder.stat().st_size
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from ((f"{entry.name}/{name}", size) for name, size in _sizes(Path(entry.path)))
    yield from _sizes(folder)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for entry in _visible(folder):
        if entry.is_file():  # follows links, so one that leads nowhere is no file
            yield entry.name, entry.stat().st_size


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _read_indexes(folder: Path, files: dict[str, int]) -> tuple[set[str], tuple[str, ...]]:
    """The shards that all indexes promise, and the indexes that cannot be read."""
    promised: set[str] = set()
    broken: tuple[str, ...] = ()
    for name in (name for name in files if name.endswith(_INDEX_SUFFIX)):
        index, failed = _read_json(folder, name, files)
        weight_map = index.get("weight_map")
        shards = weight_map.values() if isinstance(weight_map, dict) else ()
        promised |= {str(Path(name).parent / str(shard)) for shard in shards}
        broken += failed or (() if isinstance(weight_map, dict) else (name,))
    return promised, broken


def _read_json(folder: Path, name: str, files: dict[str, int]) -> tuple[dict[str, object], tuple[str, ...]]:
    """The object in a JSON file, and the file's name if it holds none; nothing of both when there is no such file."""
    if name not in files or folder.is_file():
        return {}, ()
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
        return {}, (name,)
    return (content, ()) if isinstance(content, dict) else ({}, (name,))


def _cut_shards(folder: Path, files: dict[str, int]) -> tuple[str, ...]:
    shards = (name for name in files if name.endswith(".safetensors"))
    return tuple(name for name in shards if _is_cut(folder if folder.is_file() else folder / name, files[name]))


def _is_cut(shard: Path, size: int) -> bool:
    """Whether a .safetensors file ends before its last tensor: 8 bytes of header length, the header, then tensors."""
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _MAX_HEADER))
    except OSError:
        return True
    if len(header) < length or size < 8:
        return True
    ends = re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]', header)
    return size < 8 + length + max(map(int, ends), default=0)
