"""Reading weights ahead: which files are read, when it is skipped, and that it can be stopped."""

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


def warm(folder: Path, stop: threading.Event | None = None, rate: float | None = 1.0):
    """Read ahead from a disk that gives `rate` bytes per second, by default a very slow one."""
    return page_cache.warm(folder, stop or threading.Event(), measure=lambda *_: rate)


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
    """A folder on a filesystem whose files can leave the page cache: those of tmpfs cannot."""
    path = put(tmp_path, "probe", 1 << 20)
    # A page that the kernel still writes, or has only just written, stays.
    for _ in range(20):
        forget(path)
        if not is_cached(path, 0):
            break
    else:
        pytest.skip("the test folder lies on a filesystem that keeps its files in memory")
    path.unlink()
    return tmp_path


def test_the_question_whether_a_page_is_cached_does_not_read_it(disk_folder):
    path = put(disk_folder, "model.safetensors", PIECE)
    forget(path)
    assert not any(is_cached(path, PIECE // 2) for _ in range(1000))
    path.read_bytes()
    assert is_cached(path, PIECE // 2)


def test_a_file_of_another_user_is_asked_without_mincore(disk_folder, monkeypatch):
    path = put(disk_folder, "model.safetensors", PIECE)
    # mincore(2) would report this page as cached to a user who may not write the file.
    monkeypatch.setattr(page_cache, "_is_resident", lambda file, where: True)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    asked = []
    monkeypatch.setattr(os, "preadv", lambda *words: asked.append(words) or 0)
    assert not is_cached(path, 0)
    assert len(asked) == 1


def test_weights_are_read_once(disk_folder):
    files = [put(disk_folder, f"model-{number}.safetensors", 2 * PIECE + 5) for number in range(2)]
    for path in files:
        forget(path)
    warmed = warm(disk_folder)
    assert warmed.total == 2 * (2 * PIECE + 5)
    assert 0 < warmed.read <= warmed.total, "the kernel itself may read a little ahead"
    for path in files:
        assert all(is_cached(path, where) for where in range(0, 2 * PIECE, PIECE // 4))
    again = warm(disk_folder)
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
    warmed = warm(disk_folder)
    assert seen == ["tokenizer.json", "a.safetensors"]
    assert (warmed.read, warmed.total) == (PIECE, PIECE), "of weights"
    assert is_cached(disk_folder / "tokenizer.json", 0)
    assert not is_cached(disk_folder / "video.mp4", 3 * PIECE)


def test_no_file_stays_open(disk_folder):
    path = put(disk_folder, "model.safetensors", PIECE)
    warm(disk_folder)
    assert str(path) not in [file.path for file in psutil.Process().open_files()]


def test_it_stops_when_vllm_loads_the_weights_itself(disk_folder):
    path = put(disk_folder, "model.safetensors", 4 * PIECE)
    forget(path)
    stop = threading.Event()
    stop.set()
    assert warm(disk_folder, stop).read == 0
    assert not is_cached(path, 3 * PIECE)


def test_weights_larger_than_the_memory_are_left_alone(tmp_path):
    put(tmp_path, "model.safetensors", 1 << 20)
    warmed = page_cache.warm(tmp_path, threading.Event(), available=1 << 20)
    assert (warmed.read, warmed.total) == (0, 1 << 20)
    assert "do not fit" in str(warmed)


@pytest.fixture
def nothing_cached(monkeypatch):
    """Let every page look as if it were only on the disk."""
    monkeypatch.setattr(page_cache, "_is_cached", lambda file, where: False)


@pytest.mark.usefixtures("nothing_cached")
def test_weights_that_the_disk_gives_quickly_are_left_to_vllm(tmp_path, monkeypatch):
    put(tmp_path, "model.safetensors", 2 * PIECE)
    read = []
    monkeypatch.setattr(page_cache, "_read", lambda *args: read.append(args) or 0)
    warmed = warm(tmp_path, rate=1.9e9)
    assert (warmed.read, warmed.total) == (0, 2 * PIECE)
    assert str(warmed) == "skipped: the disk reads at 1.9 GB/s, 0.0 GB in 0.0 s"
    assert read == []


@pytest.mark.parametrize(
    ("gigabytes", "rate", "skipped"),
    [
        (1.2, 1.9e9, True),  # measured: a loss
        (1.2, 100e6, False),  # measured: a gain
        (230.0, 1.9e9, False),  # a fast disk, and two minutes of reading all the same
        (9.0, 1.9e9, True),
    ],
)
@pytest.mark.usefixtures("nothing_cached")
def test_disk_rate_and_size_decide_together(tmp_path, monkeypatch, gigabytes, rate, skipped):
    monkeypatch.setattr(page_cache, "_read_files", lambda small, weights, stop: 7)
    for number in range(2):
        with (tmp_path / f"{number}.safetensors").open("wb") as sparse:
            sparse.truncate(int(gigabytes * 1e9 / 2))
    warmed = page_cache.warm(
        tmp_path, threading.Event(), available=1 << 40, measure=lambda *_: rate
    )
    assert bool(warmed.refusal) == skipped
    assert warmed.read == (0 if skipped else 7)


def test_the_largest_file_that_is_not_cached_is_measured_with_a_small_sample(tmp_path, monkeypatch):
    for name, size in (("a", 3 * PIECE), ("b", PIECE), ("c", 2 * PIECE)):
        put(tmp_path, f"{name}.safetensors", size)

    def only_a_is_cached(file, where):
        return Path(f"/proc/self/fd/{file}").readlink().stem == "a"

    monkeypatch.setattr(page_cache, "_is_cached", only_a_is_cached)
    measured = []
    page_cache.warm(tmp_path, threading.Event(), measure=lambda *args: measured.append(args))
    assert measured == [(tmp_path / "c.safetensors", page_cache.SAMPLE_BYTES, page_cache.SAMPLE_S)]


def test_weights_in_the_page_cache_cost_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(page_cache, "_is_cached", lambda file, where: True)
    put(tmp_path, "model.safetensors", PIECE)
    measured = []
    warmed = page_cache.warm(
        tmp_path, threading.Event(), measure=lambda *args: measured.append(args)
    )
    assert measured == []
    assert (warmed.read, warmed.refusal) == (0, "")


@pytest.mark.usefixtures("nothing_cached")
def test_a_disk_that_cannot_be_measured_is_read(tmp_path):
    put(tmp_path, "model.safetensors", PIECE)

    def refuse(*_):
        raise OSError(5, "Input/output error")

    warmed = page_cache.warm(tmp_path, threading.Event(), measure=refuse)
    assert (warmed.read, warmed.refusal) == (PIECE, "")


@pytest.mark.usefixtures("nothing_cached")
def test_the_disk_itself_is_measured(tmp_path):
    put(tmp_path, "model.safetensors", PIECE)
    warmed = page_cache.warm(tmp_path, threading.Event())
    assert warmed.refusal.startswith("the disk reads at "), "a mebibyte takes no five seconds"


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
def test_a_folder_without_weights_is_left_alone(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert warm(tmp_path / folder) == page_cache.Warmed(0, 0, pytest.approx(0, abs=60))


def test_a_file_that_cannot_be_read_is_left_to_vllm(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")
    warm(tmp_path)


def test_the_readers_leave_the_cores_to_others(disk_folder, monkeypatch):
    put(disk_folder, "model.safetensors", PIECE)
    seen = []
    read = page_cache._read

    def watched(*words):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return read(*words)

    monkeypatch.setattr(page_cache, "_read", watched)
    warm(disk_folder)
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19, "only the readers"
