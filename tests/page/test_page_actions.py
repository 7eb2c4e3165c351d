"""The actions of the page: who may ask for one, and which command it becomes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from page_client import enter, events_of, read_until, root_of
from page_samples import KEY, SECRET, FakeDeployment, make_status, story

from raylaunch.errors import BusyError, RecipeError, UnknownDeploymentError
from raylaunch.supervise.drills import ON_REQUEST
from raylaunch.web import page_feed, page_server, page_source
from raylaunch.web.page_actions import PROGRAM, ActionRequest, PageActions
from raylaunch.web.page_server import PageServer
from raylaunch.web.page_source import PageSource

TOKEN = "a-token-of-the-test"
ECHO = (sys.executable, "-c", f"import sys; print(*sys.argv[1:], '{SECRET}')")
RESTART = {"action": "restart", "confirm": "a2-dual"}


@pytest.fixture
def deployment(monkeypatch) -> FakeDeployment:
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))
    monkeypatch.setattr(page_feed, "PAUSE_S", 0.0)
    return FakeDeployment(make_status(), story())


@pytest.fixture
async def serve(deployment) -> AsyncIterator[Callable]:
    servers: list[PageServer] = []

    async def serve(actions: PageActions | None) -> str:
        source = PageSource(deployment, {KEY: SECRET}, lambda: 0.0)
        servers.append(PageServer(source, TOKEN, actions))
        return await servers[-1].open(0)

    yield serve
    for server in servers:
        await server.close()


def make_actions(program=ECHO, title: str = "a2-dual") -> PageActions:
    return PageActions(title, None, os.environ, program)


def origin_of(link: str) -> dict[str, str]:
    return {"Origin": root_of(link).removesuffix("/")}


async def await_exit(events) -> dict:
    """The run of an action that has exited."""
    while True:
        run = (await read_until(events, "actions"))["run"]
        if run is not None and run["exit_code"] is not None:
            return run


# -- who may ask -------------------------------------------------------------------------------


async def test_without_the_flag_an_action_is_refused(serve, browser):
    link = await serve(None)
    page = await enter(browser, link)
    async with browser.post(page + "action", json=RESTART, headers=origin_of(link)) as answer:
        assert answer.status == 403
        assert "--allow-actions" in await answer.text()


async def test_without_a_session_an_action_is_refused(serve, browser):
    link = await serve(make_actions())
    page = await enter(browser, link)
    for place in (page, f"{root_of(link)}p/guessed/", root_of(link)):
        async with (
            aiohttp.ClientSession() as other,
            other.post(place + "action", json=RESTART, headers=origin_of(link)) as answer,
        ):
            assert answer.status == 401


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://attacker.example", "https://127.0.0.1", "http://127.0.0.1:1", ""],
)
async def test_an_action_that_another_page_asks_for_is_refused(serve, browser, origin):
    """Another page of this machine is another origin: its port differs."""
    page = await enter(browser, await serve(make_actions()))
    headers = {} if origin is None else {"Origin": origin}
    async with browser.post(page + "action", json=RESTART, headers=headers) as answer:
        assert answer.status == 403


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"action":"restart","confirm":"a2-dual"}', "text/plain", 415),
        (b"action=restart&confirm=a2-dual", "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"action":"restart"}', "application/json", 400),
        (b'{"action":"restart","confirm":1}', "application/json", 400),
        (b'{"action":"restart","confirm":"a2-dual","more":"x"}', "application/json", 400),
        (b" " * 2000, "application/json", 413),
    ],
)
async def test_what_is_no_action_is_refused(serve, browser, body, kind, status):
    link = await serve(make_actions())
    page = await enter(browser, link)
    headers = {**origin_of(link), "Content-Type": kind}
    async with browser.post(page + "action", data=body, headers=headers) as answer:
        assert answer.status == status


async def test_an_action_can_only_be_posted(serve, browser):
    link = await serve(make_actions())
    page = await enter(browser, link)
    async with browser.get(page + "action", params=RESTART) as answer:
        assert answer.status == 405


@pytest.mark.parametrize("confirm", ["", "a2", "A2-DUAL", "a2-dual "])
async def test_an_action_that_is_not_confirmed_is_refused(serve, browser, confirm):
    link = await serve(make_actions())
    page = await enter(browser, link)
    asked = {**RESTART, "confirm": confirm}
    async with browser.post(page + "action", json=asked, headers=origin_of(link)) as answer:
        assert answer.status == 400
        assert "not confirmed" in (await answer.json())["what"]


# -- what it becomes ---------------------------------------------------------------------------


async def test_an_action_is_a_command_and_its_outcome_is_shown_without_secrets(serve, browser):
    link = await serve(make_actions())
    page = await enter(browser, link)
    async with browser.get(page + "stream") as answer:
        events = events_of(answer)
        # By now the secrets of the recipe are known.
        await read_until(events, "facts")
        async with browser.post(page + "action", json=RESTART, headers=origin_of(link)) as posted:
            assert posted.status == 202
        run = await await_exit(events)
    assert run["command"] == "raylaunch restart a2-dual"
    assert run["exit_code"] == 0
    assert run["output"] == "restart a2-dual ***\n"


async def test_a_page_without_actions_offers_none(serve, browser):
    page = await enter(browser, await serve(None))
    async with browser.get(page + "stream") as answer:
        names = []
        async for name, _ in events_of(answer):
            names.append(name)
            if name == "facts":
                break
    assert "actions" not in names


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"action": "restart", "group": "serve-0"}, "restart a2-dual/serve-0"),
        (
            {"action": "drill", "fault": "kill-engine"},
            "drill a2-dual --fault kill-engine --yes",
        ),
        ({"action": "stop"}, "stop a2-dual"),
    ],
)
async def test_each_action_has_its_words(asked, words):
    actions = make_actions()
    actions.start(ActionRequest(confirm="a2-dual", **asked), lambda: None)
    assert actions.running == f"raylaunch {words}"
    await actions.finish()
    assert f'"output":"{words} ' in actions.encode(())


@pytest.mark.parametrize(
    "asked",
    [
        {"action": "start"},
        {"action": "--help"},
        {"action": "drill"},
        {"action": "drill", "fault": "--cluster"},
        *({"action": "drill", "fault": fault} for fault in ON_REQUEST),
        {"action": "restart", "group": "--address"},
        {"action": "restart", "group": "serve-0/.."},
        {"action": "stop", "group": "serve-0"},
    ],
)
async def test_what_the_page_does_not_offer_is_no_command(asked):
    actions = make_actions()
    with pytest.raises(RecipeError):
        actions.start(ActionRequest(confirm="a2-dual", **asked), lambda: None)
    assert actions.running == ""


async def test_the_page_of_a_group_touches_that_group_alone():
    actions = make_actions(title="a2-dual/serve-1")
    assert actions.names == ("restart", "drill")
    for asked in ({"action": "stop"}, {"action": "restart", "group": "serve-0"}):
        with pytest.raises(RecipeError):
            actions.start(ActionRequest(confirm="a2-dual", **asked), lambda: None)
    actions.start(ActionRequest("restart", "a2-dual"), lambda: None)
    assert actions.running == "raylaunch restart a2-dual/serve-1"
    await actions.finish()


async def test_a_second_action_waits_for_the_first(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # A program that runs until the gate is opened.
    code = "import sys; print('runs', flush=True); open(sys.argv[1]).read(); sys.exit(7)"
    actions = make_actions((sys.executable, "-c", code, str(gate)))
    seen = asyncio.Event()
    actions.start(ActionRequest("restart", "a2-dual"), seen.set)
    with pytest.raises(BusyError, match="restart a2-dual"):
        actions.start(ActionRequest("stop", "a2-dual"), lambda: None)
    await asyncio.to_thread(gate.write_text, "")
    await actions.finish()
    assert seen.is_set()
    assert actions.running == ""
    assert '"exit_code":7,"output":"runs\\n"' in actions.encode(())


async def test_only_the_end_of_a_long_output_is_kept():
    code = "print('x' * 100_000 + 'last')"
    actions = make_actions((sys.executable, "-c", code))
    actions.start(ActionRequest("restart", "a2-dual"), lambda: None)
    await actions.finish()
    shown = actions.encode(())
    assert "xlast" in shown
    assert len(shown) < 10_000


async def test_a_program_that_cannot_be_run_is_an_outcome(tmp_path):
    actions = make_actions((str(tmp_path / "missing"),))
    actions.start(ActionRequest("restart", "a2-dual"), lambda: None)
    await actions.finish()
    assert "cannot be run" in actions.encode(())


async def test_the_program_is_this_raylaunch(tmp_path, monkeypatch):
    """Wherever the page was started: not what the working directory calls raylaunch."""
    (tmp_path / "raylaunch").mkdir()
    (tmp_path / "raylaunch" / "__main__.py").write_text("print('another one')")
    monkeypatch.chdir(tmp_path)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    actions = PageActions("a2-dual", None, env, (*PROGRAM, "--help"))
    actions.start(ActionRequest("restart", "a2-dual"), lambda: None)
    await actions.finish()
    assert "Ray cluster" in actions.encode(())


async def test_the_command_that_stops_the_deployment_ends_before_the_page(
    deployment, browser, tmp_path
):
    gate: Path = tmp_path / "gate"
    os.mkfifo(gate)
    code = "import sys; open(sys.argv[1]).read(); print('nothing left')"
    actions = make_actions((sys.executable, "-c", code, str(gate)))
    source = PageSource(deployment, {}, lambda: 0.0)
    links: asyncio.Queue[str] = asyncio.Queue()
    serving = asyncio.create_task(page_server.serve_page(source, 0, links.put_nowait, actions))
    link = await links.get()
    page = await enter(browser, link)
    async with browser.get(page + "stream") as answer:
        events = events_of(answer)
        asked = {"action": "stop", "confirm": "a2-dual"}
        async with browser.post(page + "action", json=asked, headers=origin_of(link)) as posted:
            assert posted.status == 202
        deployment.change(error=UnknownDeploymentError("there is none of that name"))
        await asyncio.to_thread(gate.write_text, "")
        run = await await_exit(events)
        assert run["output"] == "nothing left\n"
        assert await read_until(events, "stopped") == "a2-dual"
    await serving
