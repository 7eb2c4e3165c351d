"""What lies at a model path on this machine: files, sizes, whether all shards are there and whole, on which filesystem.

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
_MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers as well
_SAMPLE = 4096  # bytes


def inspect_weights(path: str) -> Weights:
    """List the files of a model folder (and of its direct subfolders), and say what is missing or cut off.

    `missing` are shards that an index promises and that are not there (a link to nowhere counts as not there);
    `damaged` are shards shorter than their own header says, and JSON files that cannot be read. On a network filesystem
    the largest shard is read for up to two seconds. Blocks while such a filesystem does not answer, so call it with a
    deadline.

    Raises:
        OSError: The folder is there and cannot be listed.
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
    return _read_folder(folder, bare) if bare.exists else bare


def expected_bytes(folder: Path) -> int:
    """Bytes of the tensors that the folder's indexes promise; 0 while there is none."""
    return _read_indexes(folder, dict(_list_files(folder))).total_bytes


def _read_folder(folder: Path, bare: Weights) -> Weights:
    files = dict(sorted(_list_files(folder)))
    config, broken_config = _read_json(folder, "config.json", files)
    indexes = _read_indexes(folder, files)
    model_type = config.get("model_type")
    return replace(
        bare,
        model_type=model_type if isinstance(model_type, str) else None,
        files=files,
        missing=tuple(sorted(indexes.promised - files.keys())),
        damaged=(*broken_config, *indexes.broken, *_cut_shards(folder, files)),
        config=config,
        expected_bytes=indexes.total_bytes,
        fingerprint=_fingerprint(folder, files),
        read_rate=_read_rate(folder, files) if is_network(bare.filesystem) else None,
    )


def _list_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Names relative to the folder, with sizes; hidden entries (.cache, .git) belong to download tools.

    A subfolder that this user may not list (lost+found) counts as empty: what an index promises there is missing.
    One level of subfolders is enough for every layout vLLM loads, and keeps a wrong path ("/") cheap.
    """
    if folder.is_file():
        yield folder.name, folder.stat().st_size
        return
    for entry in _visible(folder):
        if entry.is_dir():
            with contextlib.suppress(PermissionError):
                yield from [
                    (f"{entry.name}/{name}", size) for name, size in _sizes(Path(entry.path))
                ]
    yield from _sizes(folder)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for entry in _visible(folder):
        if entry.is_file():  # follows links, so one that leads nowhere is no file
            yield entry.name, entry.stat().st_size


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


@dataclass(frozen=True)
class _Indexes:
    """All indexes of a folder: the shards they promise, their tensors' bytes, and those that cannot be read."""

    promised: frozenset[str] = frozenset()
    total_bytes: int = 0
    broken: tuple[str, ...] = ()


def _read_indexes(folder: Path, files: dict[str, int]) -> _Indexes:
    found = _Indexes()
    for name in (name for name in files if name.endswith(_INDEX_SUFFIX)):
        index, failed = _read_json(folder, name, files)
        weight_map, metadata = index.get("weight_map"), index.get("metadata")
        shards = weight_map.values() if isinstance(weight_map, dict) else ()
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
        found = _Indexes(
            found.promised.union(str(Path(name).parent / str(shard)) for shard in shards),
            found.total_bytes + (int(size) if isinstance(size, int | float) else 0),
            found.broken + (failed or (() if isinstance(weight_map, dict) else (name,))),
        )
    return found


def _fingerprint(folder: Path, files: dict[str, int]) -> str:
    """A hash over config.json and the middle page of each weight file.

    Two models of one family (MiniMax-M2.5 and M2.7) have the same names and sizes, and a page in common only by chance.
    """
    digest = hashlib.sha256()
    for name, size in files.items():
        if name.endswith(WEIGHT_SUFFIXES):
            digest.update(name.encode() + _read_at(_file(folder, name), size // 2, _SAMPLE))
        elif name == "config.json":
            digest.update(_read_at(_file(folder, name), 0, size))
    return digest.hexdigest()


def _read_at(file: Path, offset: int, count: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(count)
    except OSError:  # damaged; said elsewhere
        return b""


def _read_rate(folder: Path, files: dict[str, int]) -> float | None:
    shards = {name: size for name, size in files.items() if name.endswith(WEIGHT_SUFFIXES)}
    if not shards:
        return None
    try:
        return measure_read(_file(folder, max(shards, key=lambda name: shards[name])))
    except OSError:
        return None


def _file(folder: Path, name: str) -> Path:
    """`folder` may itself be the one file of the model."""
    return folder if folder.is_file() else folder / name


def _read_json(
    folder: Path, name: str, files: dict[str, int]
) -> tuple[dict[str, object], tuple[str, ...]]:
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
    return tuple(name for name in shards if _is_cut(_file(folder, name), files[name]))


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
