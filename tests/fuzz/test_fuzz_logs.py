"""Arbitrary bytes through the log's writer and readers: no exception, nothing lost."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch.node.process import log_files
from raylaunch.node.process.guard import Log
from raylaunch.node.process.log_files import Chunk, Cursor, read_from, tail, tail_cursor

fuzz = settings.get_profile("fuzz")

KEEP = 200
"""More rotations than the data below can cause; each rotation costs a rename per file kept."""
LINE_ENDS = [b"\n", b"\r", b"\r\n", b"\xe2\x82", b"\xff", b"\0", "ü€😀".encode()]
pieces = st.lists(st.one_of(st.binary(max_size=100), st.sampled_from(LINE_ENDS)), max_size=20)
sizes = st.integers(1, 400)
rotations = st.integers(30, 400)


@dataclass(frozen=True)
class Follower:
    """Text so far, and the position in the log."""

    text: str = ""
    cursor: Cursor | None = None

    def read(self, path: Path, limit: int) -> tuple["Follower", Chunk]:
        chunk = read_from(path, self.cursor, limit)
        return Follower(self.text + chunk.text, chunk.cursor), chunk


@pytest.fixture(scope="module", autouse=True)
def short_blocks():
    """Small blocks, so that small logs have many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "BLOCK_BYTES", 64)
        yield


@fuzz
@given(pieces, rotations, sizes)
def test_follower_gets_everything_over_rotations(data, rotate_bytes, limit):
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "server.log"
        log = Log(str(path), rotate_bytes, KEEP)
        follower = Follower()
        for piece in data:
            log.write(piece)
            follower, chunk = follower.read(path, limit)
            assert not chunk.gap
        log.end_line()
        os.close(log.fd)
        more = True
        while more:
            follower, chunk = follower.read(path, limit)
            more = chunk.more
            assert not chunk.gap
        written = b"".join(data)
        files = files_of(path)
        assert b"".join(files) in (written, written + b"\n")
        # An endless line is cut anywhere, so characters are whole within one file only.
        assert follower.text == "".join(file.decode(errors="replace") for file in files)


@fuzz
@given(pieces, rotations, st.integers(-2, 50), sizes)
def test_tail_ends_with_the_last_line(data, rotate_bytes, lines, max_bytes):
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "server.log"
        log = Log(str(path), rotate_bytes, KEEP)
        for piece in [*data, b"\nlast"]:
            log.write(piece)
        os.close(log.fd)
        shown = tail(path, lines, max_bytes)
        assert len(shown) <= max(0, lines)
        assert shown[-1:] == (["last"] if lines > 0 else [])
        assert not any("\n" in line or "\r" in line for line in shown)


@fuzz
@given(st.binary(max_size=2000), st.integers(0, 60), sizes)
def test_following_from_the_last_lines_gives_exactly_them(data, lines, limit):
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "server.log"
        path.write_bytes(data + b"\n")
        follower = Follower(cursor=tail_cursor(path, lines))
        more = True
        while more:
            follower, chunk = follower.read(path, limit)
            more = chunk.more
        every = (data + b"\n").decode(errors="replace").split("\n")[:-1]
        kept = every[len(every) - min(lines, len(every)) :]
        assert follower.text == "".join(f"{line}\n" for line in kept)


@fuzz
@given(
    st.binary(max_size=500),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 62),
    st.integers(0, (1 << 32) - 1),
)
def test_cursor_of_another_file_gives_the_whole_log_and_a_gap(data, inode, offset, head):
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "server.log"
        path.write_bytes(data + b"\n")
        chunk = read_from(path, Cursor(inode, offset, head), 1 << 16)
        if path.stat().st_ino != inode:
            assert chunk.gap
            assert chunk.text == (data + b"\n").decode(errors="replace")


def files_of(path: Path) -> list[bytes]:
    """The contents of a rotated log, oldest first."""
    rotated = []
    number = 1
    while (name := path.with_name(f"{path.name}.{number}")).exists():
        rotated.append(name.read_bytes())
        number += 1
    return [*reversed(rotated), path.read_bytes()]
