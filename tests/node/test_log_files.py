"""Log layout, tail and following across rotation; the writer is the guard's own Log."""

import os
import random
import stat
import tracemalloc

import pytest

from raylaunch.errors import NodeError
from raylaunch.node.process import log_files
from raylaunch.node.process.guard import Log
from raylaunch.node.process.log_files import (
    attempt_dir,
    log_root,
    planned_log,
    prune_attempts,
    read_from,
    server_log,
    set_aside_old_log,
    tail,
    tail_cursor,
)
from raylaunch.node.process.private_files import make_private_dir, tighten


def follow(path, cursor, **kwargs):
    """Everything there is to read now."""
    pieces, more, gap = [], True, False
    while more:
        chunk = read_from(path, cursor, **kwargs)
        pieces.append(chunk.text)
        cursor, more, gap = chunk.cursor, chunk.more, gap or chunk.gap
    return "".join(pieces), cursor, gap


def test_layout(tmp_path):
    assert str(log_root({"RAYLAUNCH_LOG_DIR": "/var/log/x", "HOME": "/h"})) == "/var/log/x"
    assert str(log_root({"HOME": "/h"})) == "/h/.cache/raylaunch/logs"
    path = server_log(tmp_path, "a2-dual", 3, 1)
    assert path == tmp_path / "a2-dual" / "attempt-3" / "server-1.log"
    assert planned_log(tmp_path, "a2-dual/attempt-{attempt}/server-1.log", 3) == path


def test_tail_of_nothing(tmp_path):
    assert tail(tmp_path / "none.log", 5) == []
    (tmp_path / "empty.log").touch()
    assert tail(tmp_path / "empty.log", 5) == []


def test_tail_goes_over_rotated_files(tmp_path):
    path = tmp_path / "server.log"
    log = Log(str(path), rotate_bytes=100, keep=3)
    for n in range(40):
        log.write(b"line %02d\n" % n)
    assert path.with_name("server.log.1").exists()
    for wanted in (0, 1, 5, 20):
        assert tail(path, wanted) == [f"line {n:02d}" for n in range(40 - wanted, 40)]
    kept = tail(path, 1000)
    assert kept == [f"line {n:02d}" for n in range(40 - len(kept), 40)]
    assert len(kept) > 30


def test_tail_shows_the_unfinished_line_and_the_last_state_of_a_progress_bar(tmp_path):
    path = tmp_path / "server.log"
    path.write_bytes(b"first\r\n 0%\r 50%\r100%\nKilled")
    assert tail(path, 2) == ["100%", "Killed"]
    assert tail(path, 9) == ["first", "100%", "Killed"]


def test_tail_is_bounded(tmp_path):
    path = tmp_path / "server.log"
    path.write_bytes(b"x" * 1_000_000 + b"\nlast\n")
    shown = tail(path, 2, max_bytes=1000)
    assert shown[-1] == "last"
    assert sum(map(len, shown)) < 200_000


def test_tail_replaces_what_is_not_utf8(tmp_path):
    path = tmp_path / "server.log"
    path.write_bytes(b"a\xffb\n")
    assert tail(path, 1) == ["a\ufffdb"]


def test_follower_sees_every_line_once(tmp_path):
    """Random writes, random reads, rotation between and during them."""
    pick = random.Random(11)
    path = tmp_path / "server.log"
    log = Log(str(path), rotate_bytes=400, keep=50)
    cursor, seen, written = None, "", ""
    for n in range(1500):
        line = f"{n} {'ü' * pick.randrange(20)}\n"
        written += line
        log.write(line.encode())
        if pick.random() < 0.3:
            chunk = read_from(path, cursor, limit=pick.randrange(1, 200))
            assert not chunk.gap
            seen, cursor = seen + chunk.text, chunk.cursor
    seen += follow(path, cursor)[0]
    assert seen == written


def test_follower_waits_for_whole_lines_but_sees_progress_move(tmp_path):
    path = tmp_path / "server.log"
    log = Log(str(path), rotate_bytes=1000, keep=1)
    log.write(b"one\ntw")
    text, cursor, _ = follow(path, None)
    assert text == "one\n"
    assert follow(path, cursor)[0] == ""
    log.write(b"o\nshards: 50%\rshards: 10")
    text, cursor, _ = follow(path, cursor)
    assert text == "two\nshards: 50%\r"
    log.write(b"0%\n")
    assert follow(path, cursor)[0] == "shards: 100%\n"


def test_follower_before_the_first_line(tmp_path):
    path = tmp_path / "server.log"
    assert read_from(path, None).cursor is None
    Log(str(path), 100, 1).write(b"hello\n")
    assert read_from(path, None).text == "hello\n"


def test_follower_at_the_end_of_a_file_that_is_rotated(tmp_path):
    path = tmp_path / "server.log"
    log = Log(str(path), 1000, 2)
    log.write(b"one\n")
    _, cursor, _ = follow(path, None)
    log.rotate()
    assert follow(path, cursor)[0] == ""
    log.write(b"two\n")
    text, cursor, gap = follow(path, cursor)
    assert (text, gap) == ("two\n", False)
    log.rotate()
    log.write(b"three\n")
    assert follow(path, cursor)[0] == "three\n"


def test_follower_in_the_middle_of_a_rotation(tmp_path):
    """The files move one after the other, so for a moment one name is missing."""
    path = tmp_path / "server.log"
    path.with_name("server.log.2").write_text("one\n")
    path.write_text("two\n")
    assert follow(path, None)[0] == "one\ntwo\n"
    path.rename(path.with_name("server.log.1"))
    assert follow(path, None)[0] == "one\ntwo\n"


def test_follower_that_was_overtaken_gets_a_gap(tmp_path):
    path = tmp_path / "server.log"
    log = Log(str(path), 1000, 1)
    log.write(b"one\n")
    _, cursor, _ = follow(path, None)
    for line in (b"two\n", b"three\n", b"four\n"):
        log.rotate()
        log.write(line)
    text, _, gap = follow(path, cursor)
    assert (text, gap) == ("three\nfour\n", True)


def test_recycled_inode_is_not_mistaken(tmp_path):
    """The new file has the old one's inode (many file systems reuse it directly) and is longer."""
    path = tmp_path / "server.log"
    path.write_text("one\n")
    _, cursor, _ = follow(path, None)
    with path.open("r+") as file:
        file.write("TWO\nTHREE\n")
    assert path.stat().st_ino == cursor.inode
    text, _, gap = follow(path, cursor)
    assert (text, gap) == ("TWO\nTHREE\n", True)


def test_long_lines_come_in_pieces_of_whole_characters(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("€" * 1000 + "\n")
    text, _, _ = follow(path, None, limit=100)
    assert text == "€" * 1000 + "\n"
    assert len(read_from(path, None, limit=100).text.encode()) <= 100


def test_follow_from_the_last_lines(tmp_path):
    path = tmp_path / "server.log"
    log = Log(str(path), rotate_bytes=30, keep=9)
    for n in range(10):
        log.write(b"line %d\n" % n)
    cursor = tail_cursor(path, 6)
    text, cursor, _ = follow(path, cursor)
    assert text.splitlines() == [f"line {n}" for n in range(4, 10)]
    log.write(b"more\n")
    assert follow(path, cursor)[0] == "more\n"
    assert follow(path, tail_cursor(path, 0))[0] == ""


def test_log_of_an_older_deployment_is_set_aside(tmp_path):
    path = server_log(tmp_path, "d", 1, 0)
    set_aside_old_log(path)
    path.write_text("old\n")
    path.with_name("server-0.log.1").write_text("older\n")
    neighbour = path.with_name("server-1.log")
    neighbour.write_text("running\n")
    set_aside_old_log(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "server-0.previous.log",
        "server-1.log",
    ]
    assert tail(path, 9) == []


def test_old_log_with_a_name_of_glob_characters_is_set_aside(tmp_path):
    path = tmp_path / "weights [1] of *.log"
    path.with_name(f"{path.name}.1").write_text("older\n")
    other = tmp_path / "weights 1 of all.log.1"
    other.write_text("kept\n")
    set_aside_old_log(path)
    assert list(tmp_path.iterdir()) == [other]


def test_log_folders_are_private_and_older_ones_are_tightened(tmp_path):
    root = tmp_path / "logs"
    path = server_log(root, "d", 1, 0)
    set_aside_old_log(path)
    assert {mode_of(folder) for folder in (root, *path.parents[:2])} == {0o700}
    path.write_text("old\n")
    for each in (path, *path.parents[:3]):
        each.chmod(0o755)
    set_aside_old_log(path)
    assert mode_of(path.parent / "server-0.previous.log") & 0o077 == 0
    assert [mode_of(folder) for folder in path.parents[:2]] == [0o700, 0o700]
    assert mode_of(root) == 0o755, "may be any folder that a person named"


def test_shared_and_foreign_folders_keep_their_mode(tmp_path, monkeypatch):
    shared = tmp_path / "like-tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    assert make_private_dir(shared) == shared
    assert mode_of(shared) == 0o1777
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: foreign.stat().st_uid + 1)
    tighten(foreign)
    assert mode_of(foreign) == 0o755


def test_long_deployment_names_are_shortened_the_same_way_each_time(tmp_path):
    long = "ü" * 300
    path = server_log(tmp_path, long, 1, 0)
    assert planned_log(tmp_path, f"{long}/attempt-{{attempt}}/server-0.log", 1) == path
    set_aside_old_log(path)
    path.write_text("x\n")
    assert prune_attempts(path.parent.parent, keep=0, current=2) == [path.parent]
    other = server_log(tmp_path, f"{long}!", 1, 0)
    assert other != path, "names that differ late stay different"
    for each in (path, other):
        assert all(len(os.fsencode(part)) <= 255 for part in each.parts)
    assert server_log(tmp_path, "x" * 255, 1, 0).parts[-3] == "x" * 255


@pytest.mark.parametrize("root", ["n" * 256, "/".join(["long"] * 1000)])
def test_path_that_is_too_long_is_refused_with_the_way_out(tmp_path, root):
    with pytest.raises(NodeError, match="cannot be created") as raised:
        set_aside_old_log(server_log(tmp_path / root, "d", 1, 0))
    assert "RAYLAUNCH_LOG_DIR" in raised.value.todo
    assert len(raised.value.what) < 400


@pytest.mark.parametrize("kind", ["one 48 MB line", "sparse 1 GB", "20 MB random", "empty lines"])
def test_reading_takes_bounded_memory_whatever_the_log_holds(tmp_path, kind):
    path = tmp_path / "server.log"
    with path.open("wb") as file:
        if kind == "one 48 MB line":
            for _ in range(48):
                file.write(b"x" * (1 << 20))
        elif kind == "sparse 1 GB":
            file.truncate(1 << 30)
            file.seek(0, os.SEEK_END)
        elif kind == "20 MB random":
            file.write(random.Random(3).randbytes(20 << 20))
        else:
            file.write(b"\n" * (4 << 20))
        file.write(b"\nlast\n")
    tracemalloc.start()
    try:
        shown = tail(path, 50)
        assert shown[-1] == "last"
        cursor = tail_cursor(path, 1 << 40)
        for _ in range(64):
            cursor = read_from(path, cursor).cursor
        cursor = None
        for _ in range(64):
            cursor = read_from(path, cursor).cursor
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_tail_returns_while_a_server_prints_without_end(tmp_path, monkeypatch):
    path = tmp_path / "server.log"
    path.write_bytes(b"line\n" * 10)
    real = log_files.read_from

    def read_and_print(*given, **named):
        with path.open("ab") as file:
            file.write(b"more\n" * 20_000)
        return real(*given, **named)

    monkeypatch.setattr(log_files, "read_from", read_and_print)
    assert len(tail(path, 5, max_bytes=1000)) == 5


def test_prune_keeps_the_newest_and_the_current(tmp_path):
    for number, age in ((1, 10), (2, 40), (3, 30), (4, 20)):
        folder = attempt_dir(tmp_path, "d", number)
        folder.mkdir(parents=True)
        (folder / "server-0.log").write_text("x")
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "d" / "notes").mkdir()
    removed = prune_attempts(tmp_path / "d", keep=1, current=3)
    assert sorted(path.name for path in removed) == ["attempt-2", "attempt-4"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "attempt-1",
        "attempt-3",
        "notes",
    ]
    assert prune_attempts(tmp_path / "unknown", keep=1, current=1) == []


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)
