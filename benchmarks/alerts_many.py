"""The metrics and the page of many servers, without those servers.

64 stand-ins and their agents fill two cores alone (load averages of 35 to 53 were measured): a
scrape and a page would wait for them, as they do not on hosts of their own. So the status is made
of values, and the real endpoint and the real page serve it from a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from alerts_views import ACCEPT
from report import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "monitoring"))
sys.path.insert(0, str(ROOT / "tests" / "page"))

from browser import find_browser, open_browser
from deployments import make_scrape
from page_samples import FakeDeployment, make_status, story

from raylaunch.monitoring.exposition import write_samples
from raylaunch.monitoring.scrape import collect
from raylaunch.runtime.controller.monitoring.metrics_server import MetricsServer
from raylaunch.web.page_server import PageServer
from raylaunch.web.page_source import PageSource

LOADS = 5
DRAWN = (
    "document.querySelectorAll('#ranks tbody tr').length === {ranks} "
    "&& document.querySelectorAll('#topology .card').length >= 2 && performance.now()"
)
PORT = 28900
PAUSE_S = 1.0
"""Between two scrapes: nothing of one is left for the next."""


def measure_many(folder: Path, servers: int, scrapes: int) -> dict[str, Any]:
    """Return the seconds of scrapes, and from the click on a link until the page is drawn."""
    os.environ["RAYLAUNCH_HOME"] = str(folder)
    with serving(servers) as (metrics, _):
        times = []
        for _ in range(scrapes):
            time.sleep(PAUSE_S)
            began = time.monotonic()
            answer = httpx.get(metrics, headers={"Accept": ACCEPT}, trust_env=False)
            times.append(time.monotonic() - began)
            assert answer.text.count("raylaunch_server_up{") == servers, answer.text[:500]
    return {"many": times, "pages": asyncio.run(_load_pages(servers))}


async def _load_pages(servers: int) -> list[float]:
    program = find_browser()
    assert program is not None
    found = []
    with tempfile.TemporaryDirectory(prefix="rl-page-", ignore_cleanup_errors=True) as folder:
        async with open_browser(program, Path(folder) / "profile") as browser:
            for _ in range(LOADS):
                # A link of a page that has read nothing yet.
                with serving(servers) as (_, link):
                    async with browser.open_page() as page:
                        await page.open(link)
                        found.append(await page.wait_for(DRAWN.format(ranks=servers)) / 1000)
                        assert page.problems == [], page.problems
    return found


@contextmanager
def serving(servers: int) -> Iterator[tuple[str, str]]:
    """Serve metrics and page of that many servers; yield both addresses."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, servers))
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, servers: int) -> None:
    asyncio.run(_serve_until_closed(pipe, servers))


async def _serve_until_closed(pipe: Connection, servers: int) -> None:
    scrape = make_scrape(servers)

    async def render(accept: str) -> tuple[bytes, str]:
        return await asyncio.to_thread(write_samples, collect(scrape), accept)

    endpoint = MetricsServer(render)
    await endpoint.open("127.0.0.1", PORT)
    source = PageSource(FakeDeployment(make_status(servers), story()), {}, lambda: 0.0)
    page = PageServer(source, "token", None)
    link = await page.open(0)
    serving_page = asyncio.create_task(page.closed())
    pipe.send((f"http://127.0.0.1:{endpoint.port}/metrics", link))
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    await closed.wait()
    serving_page.cancel()
    await page.close()
    endpoint.close()
