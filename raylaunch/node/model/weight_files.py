"""Inspects a model folder of this machine: files, sizes, missing or truncated shards, filesystem.

Only names, sizes, headers and one page of each shard are read, never whole tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raylaunch.node.model.storage import free_bytes, measure_read, mount_of, place_of
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import WEIGHT_SUFFIXES, is_network

_INDEX_SUFFIX = ".index.json"
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers as well."""
_SAMPLE_BYTES = 4096
_LENGTH_BYTES = 8
"""A .safetensors file begins with the length of its header."""
_DATA_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,20})\s*\]')


def inspect_weights(path: str) -> Weights:
    """List the files of a model folder and its direct subfolders, and what is missing or damaged.

    `missing` are shards that an index names and that do not exist; a link without a target does not
    exist. `damaged` are shards shorter than their own header says, and JSON files that cannot be
    read. On a network filesystem the largest shard is read for up to two seconds. The call blocks
    while such a filesystem does not answer, so give it a deadline.

    Raises:
        OSError: The folder exists and cannot be listed.
    """
    folder = Path(path)
    mount = mount_of(path)
    bare = Weights(
        path,
        exists=folder.exists(),
        filesystem=mount.filesystem if mount else None,
        free_bytes=free_bytes(path),
        place=place_of(path),
    )
    if not bare.exists:
        return bare
    return _read_folder(folder, bare)


def expected_bytes(folder: Path) -> int:
    """Return the bytes of the tensors that the folder's indexes name; 0 while there is no index."""
    files = dict(_list_files(folder))
    return _read_indexes(folder, files).total_bytes


def _read_folder(folder: Path, bare: Weights) -> Weights:
    # Sorted, so that the fingerprint does not depend on the order of the directory.
    files = dict(sorted(_list_files(folder)))
    config, broken_config = _read_json(folder, "config.json", files)
    indexes = _read_indexes(folder, files)
    model_type = config.get("model_type")
    read_rate = None
    if is_network(bare.filesystem):
        read_rate = _read_rate(folder, files)
    return replace(
        bare,
        model_type=model_type if isinstance(model_type, str) else None,
        files=files,
        missing=tuple(sorted(indexes.promised - files.keys())),
        damaged=(*broken_config, *indexes.broken, *_truncated_shards(folder, files)),
        config=config,
        expected_bytes=indexes.total_bytes,
        fingerprint=_fingerprint(folder, files),
        read_rate=read_rate,
    )


def _list_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the names relative to the folder, with sizes in bytes.

    Hidden entries (.cache, .git) belong to download tools. A subfolder that this user may not list
    (lost+found) counts as empty: what an index names there is missing. One level of subfolders is
    enough for every layout that vLLM loads, and keeps a wrong path ("/") cheap.
    """
    if folder.is_file():
        yield folder.name, folder.stat().st_size
        return
    for entry in _visible(folder):
        if not entry.is_dir():
            continue
        with contextlib.suppress(PermissionError):
            for name, size in _sizes(Path(entry.path)):
                yield f"{entry.name}/{name}", size
    yield from _sizes(folder)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for entry in _visible(folder):
        # is_file follows links, so a link without a target is no file.
        if entry.is_file():
            yield entry.name, entry.stat().st_size


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


@dataclass(frozen=True)
class _Indexes:
    """All indexes of a folder: the shards that they name, their tensors' bytes, the broken ones."""

    promised: frozenset[str] = frozenset()
    total_bytes: int = 0
    broken: tuple[str, ...] = ()


def _read_indexes(folder: Path, files: dict[str, int]) -> _Indexes:
    promised: set[str] = set()
    total_bytes = 0
    broken: list[str] = []
    for name in files:
        if not name.endswith(_INDEX_SUFFIX):
            continue
        index, unreadable = _read_json(folder, name, files)
        weight_map = index.get("weight_map")
        if isinstance(weight_map, dict):
            # The shards are named relative to the folder of their index.
            beside = Path(name).parent
            for shard in weight_map.values():
                promised.add(str(beside / str(shard)))
        if unreadable or not isinstance(weight_map, dict):
            broken.append(name)
        total_bytes += _total_size(index)
    return _Indexes(frozenset(promised), total_bytes, tuple(broken))


def _total_size(index: dict[str, object]) -> int:
    """Return the `total_size` in the metadata of an index, in bytes; 0 without a usable one."""
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(size, int | float):
        return 0
    # JSON as Python reads it has NaN and Infinity, which are no sizes.
    with contextlib.suppress(ValueError, OverflowError):
        return int(size)
    return 0


def _fingerprint(folder: Path, files: dict[str, int]) -> str:
    """Hash config.json and the middle page of each weight file.

    Two models of one family (MiniMax-M2.5 and M2.7) have the same names and sizes, and share a page
    only by chance.
    """
    digest = hashlib.sha256()
    for name, size in files.items():
        file = _file(folder, name)
        if name.endswith(WEIGHT_SUFFIXES):
            digest.update(name.encode(errors="surrogateescape"))
            digest.update(_read_at(file, size // 2, _SAMPLE_BYTES))
        elif name == "config.json":
            digest.update(_read_at(file, 0, size))
    return digest.hexdigest()


def _read_at(file: Path, offset: int, count: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(count)
    except OSError:  # reported as damaged
        return b""


def _read_rate(folder: Path, files: dict[str, int]) -> float | None:
    """Measure the largest shard, in bytes per second; None without a readable shard."""
    shards = [name for name in files if name.endswith(WEIGHT_SUFFIXES)]
    if not shards:
        return None
    largest = max(shards, key=lambda name: files[name])
    try:
        return measure_read(_file(folder, largest))
    except OSError:
        return None


def _file(folder: Path, name: str) -> Path:
    """Return the path of a file; `folder` may itself be the one file of the model."""
    if folder.is_file():
        return folder
    return folder / name


def _read_json(
    folder: Path,
    name: str,
    files: dict[str, int],
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Read the object in a JSON file, and the name of the file if it holds none.

    Both are empty when there is no such file.
    """
    if name not in files or folder.is_file():
        return {}, ()
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}, (name,)
    if not isinstance(content, dict):
        return {}, (name,)
    return content, ()


def _truncated_shards(folder: Path, files: dict[str, int]) -> tuple[str, ...]:
    truncated = []
    for name, size in files.items():
        is_shard = name.endswith(".safetensors")
        if is_shard and _is_truncated(_file(folder, name), size):
            truncated.append(name)
    return tuple(truncated)


def _is_truncated(shard: Path, size: int) -> bool:
    """Return whether a .safetensors file ends before its last tensor.

    The format: 8 bytes with the length of the header, the header, then the tensors.
    """
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = file.read(min(length, _MAX_HEADER_BYTES))
    except OSError:
        return True
    if size < _LENGTH_BYTES or len(header) < length:
        return True
    ends = [int(end) for end in _DATA_END.findall(header)]
    return size < _LENGTH_BYTES + length + max(ends, default=0)
