"""The storage below a folder, and its speed. No file server is needed: mount tables are texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raylaunch.node.model.storage import free_bytes, measure_read, mount_of, place_of
from raylaunch.node.model.weight_files import inspect_weights

ROOT = "21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
NFS = (
    ROOT + "30 21 0:44 / /mnt/sfs_turbo rw,relatime shared:7 - nfs4 192.0.2.5:/export rw,vers=4.1\n"
)
BELOW = ROOT + "30 21 0:44 / /srv/models rw - nfs 192.0.2.5:/export/models rw\n"
BOUND = ROOT + "30 21 0:44 /models /home/cache rw - nfs4 192.0.2.5:/export rw\n"
OTHER = ROOT + "30 21 0:44 / /mnt/sfs_turbo rw - nfs4 192.0.2.6:/export rw\n"
SPACE = ROOT + "30 21 0:44 / /mnt/my\\040disk rw - cifs //nas/my\\040share rw\n"
LUSTRE = ROOT + "30 21 0:44 / /lustre rw - lustre 192.0.2.5@tcp:/fs1 rw\n"
TAG = ROOT + "30 21 0:44 / {} rw - virtiofs models rw\n"


@pytest.mark.parametrize(
    ("table", "path", "filesystem", "place"),
    [
        (NFS, "/mnt/sfs_turbo/models/m", "nfs4", "192.0.2.5:/export/models/m"),
        (BELOW, "/srv/models/m/", "nfs", "192.0.2.5:/export/models/m"),
        (BOUND, "/home/cache/m", "nfs4", "192.0.2.5:/export/models/m"),
        (OTHER, "/mnt/sfs_turbo/models/m", "nfs4", "192.0.2.6:/export/models/m"),
        (SPACE, "/mnt/my disk/m", "cifs", "//nas/my share/m"),
        (LUSTRE, "/lustre/m", "lustre", "192.0.2.5@tcp:/fs1/m"),
    ],
)
def test_a_file_servers_folder_has_one_place_however_it_is_mounted(table, path, filesystem, place):
    """Directly, below a subfolder, and as a container's bind mount: three tables, one place."""
    assert mount_of(path, table).filesystem == filesystem
    assert place_of(path, table) == place


def test_a_local_folder_is_this_machines_own(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert place_of(str(tmp_path / "one"), ROOT).startswith(boot)
    assert place_of(str(tmp_path / "link")) == place_of(str(tmp_path / "one"))
    assert place_of(str(tmp_path / "one" / "later")) != place_of(str(tmp_path / "one"))
    assert place_of(str(tmp_path / "one" / "later")) == place_of(
        str(tmp_path / "link" / "later")
    ), "not made yet"


def test_a_tag_that_every_virtual_machine_has_is_no_place(tmp_path):
    assert "models" not in place_of(str(tmp_path), TAG.format(tmp_path))


def test_the_later_of_two_mounts_on_one_point_counts():
    table = NFS + "31 30 0:45 / /mnt/sfs_turbo rw - tmpfs tmpfs rw\n"
    assert mount_of("/mnt/sfs_turbo/x", table).filesystem == "tmpfs"


def test_a_malformed_line_of_a_mount_table_is_skipped():
    table = f"garbage\n30 21 0:44 /\n{NFS}31 30 0:45 / /mnt/sfs_turbo rw - \n"
    assert mount_of("/mnt/sfs_turbo/x", table).filesystem == "nfs4"


def test_free_space_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above(tmp_path):
    there, later = free_bytes(str(tmp_path)), free_bytes(str(tmp_path / "a" / "b"))
    assert there > 0
    assert later > 0


def test_reading_is_bounded_by_bytes(tmp_path, monkeypatch):
    file = tmp_path / "shard"
    file.write_bytes(bytes(40 << 20))
    read = []
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: read.append(real(fd, buffers, at)) or read[-1]
    )
    assert measure_read(file, limit_bytes=10 << 20, limit_s=60) > 0
    assert sum(read) == 10 << 20
    read.clear()
    assert measure_read(file, limit_bytes=100 << 20, limit_s=60) > 0
    assert sum(read) == 40 << 20, "the whole file, when it is smaller"


def test_reading_is_bounded_by_time(tmp_path, monkeypatch):
    file = tmp_path / "shard"
    file.write_bytes(bytes(40 << 20))
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr("raylaunch.node.model.storage.time.monotonic", lambda: float(next(clock)))
    rate = measure_read(file, limit_bytes=1 << 30, limit_s=2)
    assert rate is not None
    assert rate < 40 << 20, "not all of it was read"


def test_reading_drops_the_cached_pages_first_and_reads_another_part_each_time(
    tmp_path, monkeypatch
):
    file = tmp_path / "shard"
    file.write_bytes(bytes(64 << 20))
    calls = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, at, count, advice: calls.append((advice, at, count))
    )
    for _ in range(8):
        measure_read(file, limit_bytes=1 << 20)
    dropped = [(at, count) for advice, at, count in calls if advice == os.POSIX_FADV_DONTNEED]
    assert len(dropped) == 8
    assert {count for _, count in dropped} == {1 << 20}
    assert len({at for at, _ in dropped}) > 1


def test_an_empty_file_has_no_speed(tmp_path):
    (tmp_path / "shard").touch()
    assert measure_read(tmp_path / "shard") is None


@pytest.mark.parametrize(
    ("filesystem", "measured"), [("nfs4", True), ("fuse.juicefs", True), ("ext4", False)]
)
def test_only_a_network_filesystem_is_read(tmp_path, monkeypatch, filesystem, measured):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1 << 20))
    mount = mount_of(str(tmp_path), f"21 1 8:1 / / rw - {filesystem} source rw\n")
    monkeypatch.setattr("raylaunch.node.model.weight_files.mount_of", lambda path: mount)
    rate = inspect_weights(str(tmp_path)).read_rate
    assert (rate is not None) == measured
