"""The page on loopback: who may read it, what is sent, and a deployment that goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from page_client import DEADLINE_S, enter, events_of, read_until, root_of
from page_samples import DIAGNOSED, GROUP, HOSTILE, KEY, SECRET, FakeDeployment, make_status, story

from raylaunch.errors import ClusterError, NodeError, UnknownDeploymentError
from raylaunch.page.page_file import live_policy
from raylaunch.supervise.state import Phase
from raylaunch.web import page_feed, page_server, page_source
from raylaunch.web.page_server import MAX_STREAMS, PageServer
from raylaunch.web.page_source import PageSource

TOKEN = "a-token-of-the-test"


@pytest.fixture
def deployment(monkeypatch) -> FakeDeployment:
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))
    monkeypatch.setattr(page_feed, "PAUSE_S", 0.0)
    monkeypatch.setattr(page_feed, "RETRY_S", 0.0)
    return FakeDeployment(make_status(), story())


@pytest.fixture
async def link(deployment) -> AsyncIterator[str]:
    source = PageSource(deployment, {KEY: SECRET}, lambda: 0.0)
    server = PageServer(source, TOKEN)
    try:
        yield await server.open(0)
    finally:
        await server.close()


# -- who may read ------------------------------------------------------------------------------


async def test_the_link_leads_to_the_page(link, browser):
    assert link.startswith("http://127.0.0.1:")
    page = await enter(browser, link)
    assert "token" not in page
    async with browser.get(page) as again:
        assert again.status == 200
        assert "Topology" in await again.text()


async def test_the_link_works_once(link, browser):
    await enter(browser, link)
    async with aiohttp.ClientSession() as other, other.get(link) as answer:
        assert answer.status == 401
        assert "raylaunch ui" in await answer.text()


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", f"?token={TOKEN}x", "?token=ü"])
async def test_a_wrong_token_gets_401_and_does_not_use_up_the_right_one(link, browser, query):
    async with browser.get(root_of(link) + query) as answer:
        assert answer.status == 401
    await enter(browser, link)


@pytest.mark.parametrize("place", ["", "stream", "log", "elsewhere"])
async def test_without_the_cookie_the_address_of_the_page_is_worth_nothing(link, browser, place):
    page = await enter(browser, link)
    async with aiohttp.ClientSession() as other, other.get(page + place) as answer:
        assert answer.status == 401
        assert "Topology" not in await answer.text()


async def test_a_cookie_of_another_session_is_worth_nothing(link, browser):
    await enter(browser, link)
    for address in (f"{root_of(link)}p/guessed/", f"{root_of(link)}elsewhere"):
        async with browser.get(address) as answer:
            assert answer.status == 401


async def test_the_cookie_is_sent_to_the_page_alone(link, browser):
    async with browser.get(link, allow_redirects=False) as answer:
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"]
    assert f"Path={answer.headers['Location']}" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


async def test_a_name_that_a_site_points_to_loopback_is_refused(link, browser):
    for host in ("attacker.example", "127.0.0.1.attacker.example:80", "[::"):
        async with browser.get(link, headers={"Host": host}) as answer:
            assert answer.status in (400, 403)
    await enter(browser, link)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_changed(link, browser, method):
    page = await enter(browser, link)
    async with browser.request(method, page) as answer:
        assert answer.status == 405


async def test_every_answer_has_the_policy_and_is_not_kept(link, browser):
    page = await enter(browser, link)
    for address in (page, page + "stream", root_of(link), page + "elsewhere"):
        async with browser.get(address) as answer:
            assert answer.headers["Content-Security-Policy"] == live_policy()
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"


# -- what is sent ------------------------------------------------------------------------------


async def test_a_browser_gets_all_parts_and_then_what_changes(link, browser, deployment):
    page = await enter(browser, link)
    async with browser.get(page + "stream") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        events = events_of(answer)
        live = await read_until(events, "live")
        assert live["phase"] == "ready"
        history = await read_until(events, "history")
        assert [failure["outcome"] for failure in history["failures"]] == ["recovered"]
        facts = await read_until(events, "facts")
        assert facts["diagnoses"][0]["line"] == DIAGNOSED
        deployment.change(make_status(phase=Phase.RESTARTING))
        while live["phase"] != "restarting":
            live = await read_until(events, "live")


async def test_a_second_browser_gets_what_is_known(link, browser):
    page = await enter(browser, link)
    async with browser.get(page + "stream") as first, browser.get(page + "stream") as second:
        for answer in (first, second):
            assert (await read_until(events_of(answer), "history"))["starts"]


async def test_a_controller_that_does_not_answer_is_said_and_found_again(link, browser, deployment):
    page = await enter(browser, link)
    async with browser.get(page + "stream") as answer:
        events = events_of(answer)
        await read_until(events, "live")
        deployment.change(error=ClusterError("the cluster does not answer"))
        lost = await read_until(events, "lost")
        assert "does not answer" in lost["what"]
        deployment.change()
        while lost is not None:
            lost = await read_until(events, "lost")
        assert (await read_until(events, "live"))["deployment"] == "a2-dual"


async def test_nothing_is_read_while_no_browser_follows(link, browser, deployment):
    page = await enter(browser, link)
    deployment.wait_change = None  # a call would fail the feed
    async with browser.get(page) as answer:
        assert answer.status == 200


async def test_a_log_is_followed_without_markup_escape_sequences_and_secrets(
    link, browser, deployment
):
    page = await enter(browser, link)
    where = {"group": GROUP, "server": "1", "lines": "2"}
    deployment.log = [HOSTILE, f"the key is {SECRET}"]
    async with browser.get(page + "log", params=where) as answer:
        first, second = await read_until(events_of(answer), "lines")
    assert "\x1b" not in first
    assert "</script>" in first  # as text: the page makes text nodes of it
    assert second == "the key is ***"


@pytest.mark.parametrize(
    "query",
    [
        {"server": "-1"},
        {"server": "x"},
        {"server": "1e3"},
        {"lines": "999999999999"},
        {"lines": "5001"},
        {"server": "²"},
    ],
)
async def test_a_number_that_is_none_is_refused(link, browser, query):
    page = await enter(browser, link)
    async with browser.get(page + "log", params={"group": GROUP, **query}) as answer:
        assert answer.status == 400


async def test_an_unknown_group_is_said(link, browser):
    page = await enter(browser, link)
    async with browser.get(page + "log", params={"group": "serve-9"}) as answer:
        assert "no group" in await read_until(events_of(answer), "lost")


async def test_a_stream_too_many_is_refused_and_one_that_is_closed_makes_room(
    link, browser, monkeypatch
):
    monkeypatch.setattr(page_server, "MAX_STREAMS", 2)
    page = await enter(browser, link)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            answer = await stack.enter_async_context(browser.get(page + "stream"))
            await read_until(events_of(answer), "live")
        async with browser.get(page + "stream") as refused:
            assert refused.status == 503
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with browser.get(page + "stream") as answer:
                if answer.status == 200:
                    break


async def test_many_parts_are_sent_as_their_newest(link, browser, deployment):
    """A browser that did not read meanwhile gets the last state, not each one."""
    page = await enter(browser, link)
    async with browser.get(page + "stream") as answer:
        events = events_of(answer)
        await read_until(events, "live")
        for restarts in range(200):
            deployment.change(replace(make_status(), restarts=restarts))
        seen = 0
        live: dict = {}
        while live.get("restarts") != 199:
            live = await read_until(events, "live")
            seen += 1
        assert seen < 200


async def test_a_port_in_use_is_an_error_that_says_so(link, deployment):
    port = int(root_of(link).rpartition(":")[2].strip("/"))
    other = PageServer(PageSource(deployment, {}, lambda: 0.0), TOKEN)
    try:
        with pytest.raises(NodeError, match=f"port {port}"):
            await other.open(port)
    finally:
        await other.close()


@pytest.mark.parametrize("how", ["phase", "no controller"])
async def test_a_deployment_that_is_stopped_ends_the_page(deployment, browser, how):
    links: asyncio.Queue[str] = asyncio.Queue()
    source = PageSource(deployment, {}, lambda: 0.0)
    serving = asyncio.create_task(page_server.serve_page(source, 0, links.put_nowait))
    page = await enter(browser, await links.get())
    async with browser.get(page + "stream") as answer:
        events = events_of(answer)
        await read_until(events, "live")
        if how == "phase":
            deployment.change(make_status(phase=Phase.STOPPED))
        else:
            deployment.change(error=UnknownDeploymentError("there is none of that name"))
        assert await read_until(events, "stopped") == "a2-dual"
        assert [rest async for rest in events] == []
    async with asyncio.timeout(DEADLINE_S):
        await serving


async def test_the_page_is_served_until_the_command_is_cancelled(deployment):
    links: list[str] = []
    opened = asyncio.Event()

    def show(link: str) -> None:
        links.append(link)
        opened.set()

    source = PageSource(deployment, {}, lambda: 0.0)
    serving = asyncio.create_task(page_server.serve_page(source, 0, show))
    async with asyncio.timeout(DEADLINE_S):
        await opened.wait()
    async with aiohttp.ClientSession() as session:
        async with session.get(root_of(links[0])) as answer:
            assert answer.status == 401
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(root_of(links[0]))


def test_there_is_a_thread_for_every_stream():
    assert PageServer(None, TOKEN)._threads._max_workers > MAX_STREAMS
