"""The page of a real deployment in a real browser: a kill, from ready to ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator

import pytest
from browser import Page, find_browser, open_browser
from ray_clusters import COMMAND_DEADLINE_S, User

NAME = "test-page"
PROGRAM = find_browser()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.skipif(
        PROGRAM is None,
        reason="no Chromium: that the page follows a kill was not seen in a browser",
    ),
]
KEEP_TITLES = """
  window.titles = [document.title];
  new MutationObserver(() => window.titles.push(document.title))
    .observe(document.querySelector("title"), {childList: true});
"""
"""A phase may be over before the next question is asked."""

SHOWS_PID = """
  [...document.querySelectorAll("#topology p")]
    .some((line) => line.textContent.split(", ").includes("pid %d"))
"""


@contextlib.asynccontextmanager
async def serving(user: User) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """`raylaunch ui`: its link, and its process."""
    process = user.popen("-q", "ui", NAME)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(COMMAND_DEADLINE_S):
            link = await asyncio.to_thread(process.stdout.readline)
        assert link.startswith("http://127.0.0.1:"), link
        yield link.strip(), process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        process.stdout.close()


async def run(user: User, *words: str):
    done = await asyncio.to_thread(user.run, *words)
    assert done.code == 0, done.out + done.err
    return done


async def pid_of_server_1(user: User) -> int:
    status = (await run(user, "status", NAME, "-o", "json")).json()
    return status["servers"][1]["seen"]["pid"]


async def kill_server_1(user: User, page: Page) -> None:
    """Kill a server, and wait until the page shows the deployment ready again."""
    victim = await pid_of_server_1(user)
    await page.run(KEEP_TITLES)
    os.kill(victim, signal.SIGKILL)
    await page.wait_for(f"window.titles.length > 1 && document.title === '{NAME}: ready'")
    titles = await page.run("window.titles")
    # `restarting` and `checking` may each be over before the page is told.
    assert f"{NAME}: starting" in titles, titles
    fresh = await pid_of_server_1(user)
    assert fresh != victim
    await page.wait_for(SHOWS_PID % fresh)


async def test_the_page_follows_a_kill_from_ready_to_ready(user, standin, ports, short_folder):
    # The page must have the time to show that the deployment restarts.
    user.extra = {**standin, "STANDIN_START_S": "5"}
    await run(user, "start", "local-dual", "--name", NAME, *ports)
    async with (
        serving(user) as (link, served),
        open_browser(PROGRAM, short_folder / "profile") as browser,
        browser.open_page() as page,
    ):
        await page.open(link)
        await page.wait_for(f"document.title === '{NAME}: ready'")
        await page.wait_for("document.querySelectorAll('#ranks tbody tr').length === 2")
        await page.wait_for("document.querySelectorAll('#starts .timeline').length === 1")
        await page.wait_for("document.querySelectorAll('#log div').length > 0")
        await kill_server_1(user, page)
        await page.wait_for("document.querySelectorAll('#failures .timeline').length === 1")
        await page.wait_for("document.querySelector('#failures').textContent.includes('killed')")
        await page.wait_for("document.querySelectorAll('#starts .timeline').length === 2")
        await run(user, "stop", NAME)
        await page.wait_for("document.querySelector('#lost').textContent.includes('was stopped')")
        root = link.partition("?")[0]
        assert all(one.startswith((root, "data:")) for one in page.requests), page.requests
        assert page.problems == []
        async with asyncio.timeout(COMMAND_DEADLINE_S):
            assert await asyncio.to_thread(served.wait) == 0
