"""The page in a real browser. Without Chromium these tests skip, and say what was not looked at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from browser import Browser, Page, find_browser, open_browser
from page_samples import GROUP, HOSTILE, KEY, SECRET, FakeDeployment, make_status, story

from raylaunch.errors import UnknownDeploymentError
from raylaunch.page.page_file import frozen_page
from raylaunch.supervise.state import Phase
from raylaunch.web import page_source
from raylaunch.web.page_actions import PageActions
from raylaunch.web.page_server import PageServer
from raylaunch.web.page_source import PageSource

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.skipif(
        PROGRAM is None,
        reason="no Chromium: that the page is drawn, follows a deployment, runs no foreign markup "
        "and can be used with the keyboard was not seen in a browser",
    ),
    # One browser for all of them.
    pytest.mark.asyncio(loop_scope="module"),
]
SHOWN_LOG = "[...document.querySelectorAll('#log div')].map((line) => line.textContent)"
IS_DRAWN = "document.querySelectorAll('#ranks tbody tr').length === 64"
FOCUSED = """(() => {
  const one = document.activeElement;
  const name = one.id || one.getAttribute("href") || one.getAttribute("aria-label") || one.textContent;
  return `${one.tagName} ${name}`;
})()"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(tmp_path_factory) -> AsyncIterator[Browser]:
    async with open_browser(PROGRAM, tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium) -> AsyncIterator[Page]:
    async with chromium.open_page() as page:
        yield page


@pytest.fixture
def deployment(monkeypatch) -> FakeDeployment:
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))
    return FakeDeployment(make_status(64), story())


@pytest_asyncio.fixture(loop_scope="module")
async def serve(deployment) -> AsyncIterator[Callable]:
    """Serves the page of the deployment, and returns the link."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(actions: PageActions | None = None) -> str:
            source = PageSource(deployment, {KEY: SECRET}, lambda: 0.0)
            server = PageServer(source, "token", actions)
            stack.push_async_callback(server.close)
            link = await server.open(0)
            serving = asyncio.create_task(server.closed())
            stack.callback(serving.cancel)
            return link

        yield serve


@pytest.fixture
def report(deployment, tmp_path) -> str:
    """The address of a report on disk."""
    file = tmp_path / "report.html"
    source = PageSource(deployment, {KEY: SECRET}, lambda: 0.0)
    file.write_text(frozen_page(source.freeze(100)))
    return file.as_uri()


def without_colours(text: str) -> str:
    return text.replace("\x1b[31m", "").replace("\x1b[0m", "")


# -- live --------------------------------------------------------------------------------------


async def test_the_page_follows_a_deployment_and_asks_nobody_else(page, serve, deployment):
    link = await serve()
    await page.open(link)
    await page.wait_for(IS_DRAWN)
    await page.wait_for("document.querySelectorAll('#failures .bar').length === 6")
    assert await page.run("document.querySelectorAll('#starts .track.slowest').length") == 2
    assert await page.run("document.querySelectorAll('#topology .npus li').length") == 64 * 8
    deployment.change(make_status(64, phase=Phase.RESTARTING))
    await page.wait_for("document.title === 'a2-dual: restarting'")
    announced = await page.run("document.querySelector('#announced').textContent")
    assert announced == "a2-dual is restarting"
    assert await page.run("document.querySelector('#actions').hidden"), "the page only reads"
    deployment.change(error=UnknownDeploymentError("it was stopped"))
    await page.wait_for("!document.querySelector('#lost').hidden")
    root = link.partition("?")[0]
    assert page.requests
    assert all(one.startswith((root, "data:")) for one in page.requests), page.requests
    assert page.problems == []


async def test_a_log_with_escape_sequences_and_markup_does_no_harm(page, serve, deployment):
    await page.open(await serve())
    await page.wait_for("document.querySelectorAll('#log div').length >= 3")
    shown = await page.run(SHOWN_LOG)
    assert shown[:2] == [without_colours(HOSTILE), "the key is ***"]
    assert await page.run("document.querySelectorAll('#log img, #log script').length") == 0
    assert await page.run("document.title") == "a2-dual: ready"
    assert page.problems == []


@pytest.mark.parametrize("query", ["", "?token=wrong"])
async def test_a_wrong_token_shows_nothing(page, serve, query):
    link = await serve()
    await page.open(link.partition("?")[0] + query)
    await page.wait_for("document.body && document.body.textContent.includes('works once')")
    assert page.statuses == [401]
    assert "a2-dual" not in await page.run("document.documentElement.outerHTML")


# -- without a mouse ---------------------------------------------------------------------------


async def test_everything_can_be_reached_and_seen_with_the_keyboard(page, serve):
    await page.open(await serve(PageActions("a2-dual", None, os.environ)))
    await page.wait_for(IS_DRAWN)
    await page.wait_for("!document.querySelector('#action-stop').hidden")
    reached: list[str] = []
    wanted = 24 + await page.run(
        "document.querySelectorAll('main [tabindex=\"0\"], summary').length"
    )
    for _ in range(wanted):
        await page.press("Tab")
        reached.append(await page.run(FOCUSED))
        if reached[-1] == "BUTTON action-stop":
            break
        assert await page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[0] == "A #main", "the first stop skips the links of the sections"
    assert "A #failures" in reached
    for name in ("SELECT log-server", "INPUT log-search", "BUTTON log-next", "DIV log"):
        assert name in reached
    assert [one for one in reached if one.startswith("SUMMARY")]
    assert reached[-1] == "BUTTON action-stop"


async def test_everything_that_can_be_used_has_a_name(page, serve):
    await page.open(await serve(PageActions("a2-dual", None, os.environ)))
    await page.wait_for(IS_DRAWN)
    await page.wait_for("!document.querySelector('#action-stop').hidden")
    await page.call("Accessibility.enable")
    nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    usable = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "region", "table"}
    found = [node for node in nodes if node.get("role", {}).get("value") in usable]
    assert len(found) > 20
    assert [node for node in found if not node.get("name", {}).get("value")] == []


async def test_an_action_is_confirmed_with_the_keyboard_alone(page, serve):
    echo = (sys.executable, "-c", "import sys; print('did', *sys.argv[1:])")
    await page.open(await serve(PageActions("a2-dual", None, os.environ, echo)))
    await page.wait_for("document.querySelectorAll('#action-fault option').length === 8")
    await page.wait_for("document.querySelectorAll('#action-group option').length === 2")
    await page.run("document.querySelector('#action-stop').focus()")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#confirm').open")
    await page.press("Escape")
    await page.wait_for("!document.querySelector('#confirm').open")
    assert await page.run(FOCUSED) == "BUTTON action-stop"
    await page.press("Enter")
    await page.wait_for("document.querySelector('#confirm').open")
    await page.type("a2-dua")
    assert await page.run("document.querySelector('#confirm-yes').disabled")
    await page.type("l")
    assert not await page.run("document.querySelector('#confirm-yes').disabled")
    await page.press("Enter")
    # Its output may come in pieces; it is whole when the command has exited.
    await page.wait_for("document.querySelector('#actions .state.good') !== null")
    output = await page.run("document.querySelector('#actions pre').textContent")
    assert output == "did stop a2-dual\n"
    assert not await page.run("document.querySelector('#confirm').open")
    assert page.problems == []


# -- frozen ------------------------------------------------------------------------------------


async def test_a_report_is_read_from_disk_and_requests_nothing(page, report):
    await page.open(report)
    await page.wait_for(IS_DRAWN)
    assert await page.run("document.title") == "a2-dual: ready"
    assert await page.run("document.querySelectorAll('#starts .bar').length") > 4
    assert SECRET not in await page.run("document.documentElement.outerHTML")
    assert set(page.requests) <= {report, "data:,"}
    assert page.problems == []


async def test_a_report_shows_the_diagnosed_line_and_finds_lines(page, report):
    await page.open(report)
    await page.wait_for(IS_DRAWN)
    await page.run(
        f"const one = document.querySelector('#log-server'); one.value = '{GROUP}/1';"
        "one.dispatchEvent(new Event('change'))"
    )
    assert await page.run("document.querySelectorAll('#log .diagnosed').length") == 1
    await page.run(
        "const field = document.querySelector('#log-search'); field.value = 'OUT OF';"
        "field.dispatchEvent(new Event('input'))"
    )
    assert await page.run("document.querySelector('#log mark').textContent") == "out of"
    assert page.problems == []


async def test_the_page_is_not_wider_than_a_phone(page, report):
    await page.resize(375, 700, phone=True)
    await page.open(report)
    await page.wait_for(IS_DRAWN)
    assert await page.run("document.documentElement.scrollWidth") <= 375
