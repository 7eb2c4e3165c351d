"""The log follower without Ray: stages as they are written, and nothing stops it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from raylaunch.runtime.agent import log_follower
from raylaunch.runtime.agent.log_follower import LogFollower
from raylaunch.runtime.cluster.task_owner import TaskOwner

LOADS = "INFO 11-23 20:26:51 [x.py:1] Starting to load model tiny...\n"
UP = "INFO:     Application startup complete.\n"
HANG = "INFO 11-23 20:26:51 [x.py:1] No available shared memory broadcast block found in 60 s\n"
PATIENCE_S = 60


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@contextlib.asynccontextmanager
async def following(path: Path):
    """A follower in a task of its own; yields it, its news as a queue, and the failures."""
    news: asyncio.Queue = asyncio.Queue()
    failures = []
    follower = LogFollower(path, news.put_nowait)
    owner = TaskOwner(failures.append)
    owner.keep_running("log follower", follower.run)
    try:
        yield follower, news, failures
    finally:
        await owner.cancel_and_wait()


async def take(news: asyncio.Queue):
    async with asyncio.timeout(PATIENCE_S):
        return await news.get()


async def test_each_stage_is_reported_when_the_guard_announces_growth(tmp_path):
    path = tmp_path / "server-0.log"
    append(path, LOADS)
    async with following(path) as (follower, news, _):
        first = await take(news)
        append(path, UP)
        follower.grew()
        second = await take(news)
    assert (first.before.stage, first.after.stage) == ("spawned", "weights")
    assert (second.before.stage, second.after.stage) == ("weights", "API up")


async def test_hang_lines_are_counted_also_after_the_start(tmp_path):
    path = tmp_path / "server-0.log"
    append(path, UP + HANG + "one more line\n" + HANG)
    async with following(path) as (_, news, _failures):
        found = await take(news)
    assert (found.after.stage, found.hang_lines) == ("API up", 2)


async def test_a_line_that_the_parser_cannot_read_stops_nothing(tmp_path, monkeypatch):
    """The line is skipped, the failure is reported, and the lines around it count."""
    advance = log_follower.advance

    def fragile(progress, line):
        if "took 1.2.3 s" in line:
            raise ValueError("could not convert string to float: '1.2.3'")
        return advance(progress, line)

    monkeypatch.setattr(log_follower, "advance", fragile)
    path = tmp_path / "server-0.log"
    append(path, LOADS + "init engine (profile) took 1.2.3 s\n" + UP)
    async with following(path) as (_, news, failures):
        stages = [(await take(news)).after.stage, (await take(news)).after.stage]
    assert stages == ["weights", "API up"]
    assert [failure.name for failure in failures] == ["log follower"]


async def test_a_reader_gets_new_text_when_it_is_written(tmp_path):
    path = tmp_path / "server-0.log"
    append(path, "one\n")
    follower = LogFollower(path, lambda _: None)
    first = await follower.read(None, 10, 0.0)
    append(path, "two\n")
    second = await follower.read(first.cursor, None, PATIENCE_S)

    def write_third() -> None:
        append(path, "three\n")
        follower.grew()

    asyncio.get_running_loop().call_later(0.1, write_third)
    async with asyncio.timeout(PATIENCE_S / 2):
        third = await follower.read(second.cursor, None, PATIENCE_S)
    assert [chunk.text for chunk in (first, second, third)] == ["one\n", "two\n", "three\n"]


async def test_growth_between_the_read_and_the_wait_is_not_missed(tmp_path, monkeypatch):
    path = tmp_path / "server-0.log"
    append(path, "one\n")
    follower = LogFollower(path, lambda _: None)
    first = await follower.read(None, 10, 0.0)
    read_from = log_follower.log_files.read_from
    loop = asyncio.get_running_loop()
    reads = []

    def read_and_grow(*args):
        chunk = read_from(*args)
        if not reads:  # after this read, before the reader waits
            append(path, "two\n")
            loop.call_soon_threadsafe(follower.grew)
        reads.append(chunk)
        return chunk

    monkeypatch.setattr(log_follower.log_files, "read_from", read_and_grow)
    async with asyncio.timeout(PATIENCE_S / 2):
        chunk = await follower.read(first.cursor, None, PATIENCE_S)
    assert chunk.text == "two\n"


async def test_a_log_that_does_not_exist_yet_is_read_once_it_does(tmp_path):
    path = tmp_path / "server-0.log"
    async with following(path) as (follower, news, _):
        assert (await follower.read(None, 10, 0.0)).text == ""
        append(path, LOADS)
        follower.grew()
        assert (await take(news)).after.stage == "weights"
