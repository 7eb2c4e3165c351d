"""The page in a real browser. Without Chromium these tests skip, and say what was not looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from browser import Page, find_browser, open_browser
from page_samples import GROUP, HOSTILE, FakeDeployment, make_status, story

from raylaunch.page.page_file import frozen_page
from raylaunch.supervise.state import Phase
from raylaunch.web import page_source
from raylaunch.web.page_server import PageServer
from raylaunch.web.page_source import PageSource

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason="no Chromium: that the page is drawn, follows a deployment and runs no foreign markup "
    "was not seen in a browser",
)
SHOWN_LOG = "[...document.querySelectorAll('#log div')].map((line) => line.textContent)"


@pytest.fixture
def deployment(monkeypatch) -> FakeDeployment:
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))
    return FakeDeployment(make_status(64), story())


@pytest.fixture
async def page(tmp_path) -> AsyncIterator[Page]:
    async with open_browser(PROGRAM, tmp_path / "profile") as page:
        yield page


async def test_the_page_follows_a_deployment_and_asks_nobody_else(page, deployment):
    server = PageServer(PageSource(deployment, {}, lambda: 0.0), "token")
    try:
        link = await server.open(0)
        await page.open(link)
        await page.wait_for("document.querySelectorAll('#ranks tbody tr').length === 64")
        await page.wait_for("document.querySelectorAll('#failures .bar').length === 6")
        assert await page.run("document.querySelectorAll('#starts .track.slowest').length") == 2
        assert await page.run("document.querySelectorAll('#topology .npus li').length") == 64 * 8
        deployment.change(make_status(64, phase=Phase.RESTARTING))
        await page.wait_for("document.title === 'a2-dual: restarting'")
        assert await page.run("document.querySelector('#announced').textContent") == (
            "a2-dual is restarting"
        )
        await page.wait_for("document.querySelectorAll('#log div').length >= 3")
        assert await page.run("document.querySelectorAll('#log img, #log script').length") == 0
        assert (await page.run(SHOWN_LOG))[0] == HOSTILE.replace("\x1b[31m", "").replace(
            "\x1b[0m", ""
        )
        deployment.change(stopped=True)
        await page.wait_for("!document.querySelector('#lost').hidden")
        root = link.partition("?")[0]
        assert all(one.startswith((root, "data:")) for one in page.requests), page.requests
        assert page.problems == []
    finally:
        await server.close()


async def test_a_report_shows_the_diagnosed_line_and_finds_lines(page, deployment, tmp_path):
    file = tmp_path / "report.html"
    source = PageSource(deployment, {}, lambda: 0.0)
    file.write_text(frozen_page(source.freeze(100)))
    await page.open(file.as_uri())
    await page.wait_for("document.querySelectorAll('#ranks tbody tr').length === 64")
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
    assert await page.run("document.title") == "a2-dual: ready"
    assert page.requests == [file.as_uri(), "data:,"] or page.requests == [file.as_uri()]
    assert page.problems == []


async def test_the_page_is_not_wider_than_a_phone(page, deployment, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(frozen_page(PageSource(deployment, {}, lambda: 0.0).freeze(100)))
    await page.call(
        "Emulation.setDeviceMetricsOverride",
        width=375,
        height=700,
        deviceScaleFactor=1,
        mobile=True,
    )
    await page.open(file.as_uri())
    await page.wait_for("document.querySelectorAll('#ranks tbody tr').length === 64")
    assert await page.run("document.documentElement.scrollWidth") <= 375
