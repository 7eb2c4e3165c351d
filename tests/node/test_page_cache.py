"""Reading ahead: what is read, what is left alone, and that it can be stopped."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest

from raylaunch.node.model import page_cache

PIECE = page_cache.PIECE_BYTES


def put(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(1 << 20) * (size >> 20) + b"x" * (size % (1 << 20)))
    return path


def forget(path: Path) -> None:
    """Have the kernel drop what it has cached of the file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def is_cached(path: Path, where: int) -> bool:
    file = os.open(path, os.O_RDONLY)
    try:
        return page_cache._is_cached(file, where)
    finally:
        os.close(file)


@pytest.fixture
def disk_folder(tmp_path):
    """A folder on a filesystem whose files can leave the page cache, which those of tmpfs cannot."""
    path = put(tmp_path, "probe", 1 << 20)
    forget(path)
    if is_cached(path, 0):
        pytest.skip("the test folder lies on a filesystem that keeps its files in memory")
    path.unlink()
    return tmp_path


def test_weights_are_read_once(disk_folder):
    files = [put(disk_folder, f"model-{number}.safetensors", 2 * PIECE + 5) for number in range(2)]
    for path in files:
        forget(path)
    warmed = page_cache.warm(disk_folder, threading.Event())
    assert warmed.total == 2 * (2 * PIECE + 5)
    assert 0 < warmed.read <= warmed.total, "the kernel itself may read a little ahead"
    for path in files:
        assert all(is_cached(path, where) for where in range(0, 2 * PIECE, PIECE // 4))
    again = page_cache.warm(disk_folder, threading.Event())
    assert (again.total, again.read) == (warmed.total, 0)
    assert "0.0 of 0.0 GB of weights read in" in str(again)


def test_what_vllm_reads_first_is_read_first(disk_folder, monkeypatch):
    for name, size in (
        ("a.safetensors", PIECE),
        ("tokenizer.json", PIECE),
        ("video.mp4", 4 * PIECE),
    ):
        forget(put(disk_folder, name, size))
    monkeypatch.setattr(page_cache, "SMALL_BYTES", 2 * PIECE)
    monkeypatch.setattr(page_cache, "READERS", 1)
    seen = []
    read = page_cache._read

    def watched(file, start, buffer):
        seen.append(Path(f"/proc/self/fd/{file}").readlink().name)
        return read(file, start, buffer)

    monkeypatch.setattr(page_cache, "_read", watched)
    warmed = page_cache.warm(disk_folder, threading.Event())
    assert seen == ["tokenizer.json", "a.safetensors"]
    assert (warmed.read, warmed.total) == (PIECE, PIECE), "of weights"
    assert is_cached(disk_folder / "tokenizer.json", 0)
    assert not is_cached(disk_folder / "video.mp4", 3 * PIECE)


def test_no_file_stays_open(disk_folder):
    path = put(disk_folder, "model.safetensors", PIECE)
    page_cache.warm(disk_folder, threading.Event())
    assert str(path) not in [file.path for file in psutil.Process().open_files()]


def test_it_stops_when_told(disk_folder):
    path = put(disk_folder, "model.safetensors", 4 * PIECE)
    forget(path)
    stop = threading.Event()
    stop.set()
    assert page_cache.warm(disk_folder, stop).read == 0
    assert not is_cached(path, 3 * PIECE)


def test_weights_larger_than_the_memory_are_left_alone(tmp_path):
    put(tmp_path, "model.safetensors", 1 << 20)
    warmed = page_cache.warm(tmp_path, threading.Event(), available=1 << 20)
    assert (warmed.read, warmed.total) == (0, 1 << 20)
    assert "do not fit" in str(warmed)


def test_one_format_in_the_order_of_vllm(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "a.bin", "config.json"):
        put(tmp_path, name, 10)
    assert [path.name for path, _ in page_cache.weight_files(tmp_path)] == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_what_the_index_does_not_name_is_not_read(tmp_path):
    for name in ("consolidated.safetensors", "model-1.safetensors"):
        put(tmp_path, name, 10)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.weight": "model-1.safetensors"}}')
    assert [path.name for path, _ in page_cache.weight_files(tmp_path)] == ["model-1.safetensors"]
    index.write_text("half an ind")
    assert len(page_cache.weight_files(tmp_path)) == 2, "a broken index is vLLM's to refuse"


@pytest.mark.parametrize("folder", ["no-such-folder", "empty"])
def test_no_weights_no_work(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert page_cache.warm(tmp_path / folder, threading.Event()) == page_cache.Warmed(
        0, 0, pytest.approx(0, abs=60)
    )


def test_a_file_that_cannot_be_read_is_left_to_vllm(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")
    page_cache.warm(tmp_path, threading.Event())


def test_the_readers_leave_the_cores_to_others(disk_folder, monkeypatch):
    put(disk_folder, "model.safetensors", PIECE)
    seen = []
    read = page_cache._read

    def watched(*words):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return read(*words)

    monkeypatch.setattr(page_cache, "_read", watched)
    page_cache.warm(disk_folder, threading.Event())
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19, "only the readers"
