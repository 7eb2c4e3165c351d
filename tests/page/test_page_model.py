"""The model of the page, and the file that it is frozen into."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from page_samples import (
    BEGAN,
    DIAGNOSED,
    GROUP,
    HOSTILE,
    KEY,
    SECRET,
    FakeDeployment,
    make_plan,
    make_status,
    story,
    with_server,
)

from raylaunch.bench.result import Run
from raylaunch.errors import UnknownDeploymentError
from raylaunch.page.live_part import view_live
from raylaunch.page.page_file import SCRIPTS, frozen_page, live_page, live_policy
from raylaunch.page.page_model import encode, view_benchmarks, view_history, view_plan
from raylaunch.supervise.state import Exit, HttpSeen, Phase
from raylaunch.web import page_source
from raylaunch.web.page_source import PageSource

ASSETS = files("raylaunch.page").joinpath("assets")
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
    r"|createContextualFragment|srcdoc|setAttribute\(\"(?:on|href|src|style)|\.href|\.src\b|import\("
)


@pytest.fixture
def no_benchmarks(monkeypatch):
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))


def make_source(deployment: FakeDeployment | None = None, **environ: str) -> PageSource:
    return PageSource(deployment or FakeDeployment(make_status(), story()), environ, lambda: 0.0)


# -- what is live ------------------------------------------------------------------------------


def test_hosts_have_their_servers_and_the_worst_state_of_them():
    status = with_server(make_status(), 1, exit=Exit(BEGAN, signal=9))
    first, second = view_live(status).hosts
    assert (first.ip, first.state, first.servers[0].stage) == ("192.0.2.10", "good", "API up")
    assert (second.state, second.servers[0].stage) == ("bad", "exited: signal 9")
    assert second.servers[0].devices == tuple(range(8))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "good"),
        ({"agent_lost": "node died"}, "bad"),
        ({"log_error": "No space left on device"}, "warn"),
        ({"http": HttpSeen(503, failing_since=BEGAN)}, "warn"),
        ({"hang_lines": 2}, "warn"),
    ],
)
def test_a_server_has_a_state(changes, state):
    server = view_live(with_server(make_status(), 0, **changes)).hosts[0].servers[0]
    assert server.state == state
    assert bool(server.notes) == (state == "warn")


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_a_state(phase):
    live = view_live(replace(make_status(), phase=phase))
    assert live.state in ("good", "busy", "warn", "bad", "off")


def test_a_silent_rank_is_bad():
    status = make_status()
    ranks = (replace(status.servers[0].seen.ranks[0], canary_failing_since=BEGAN),)
    (rank,) = view_live(with_server(status, 0, ranks=ranks)).ranks
    assert (rank.state, rank.note) == ("bad", "fails its health-check completion")


def test_a_fallback_that_serves_is_named():
    status = replace(make_status(), fallback="a2-single", phase=Phase.DEGRADED)
    assert (view_live(status).fallback, view_live(make_status()).fallback) == ("a2-single", "")
    assert "live.fallback" in ASSETS.joinpath("overview.js").read_text(encoding="utf-8")


def test_sixty_four_servers_fit_into_one_message():
    text = encode(view_live(make_status(64)))
    assert len(json.loads(text)["hosts"]) == 64
    assert len(text) < 100_000


# -- what is kept ------------------------------------------------------------------------------


def test_the_plan_has_no_value_that_looks_like_a_secret():
    plan = make_plan()
    assert plan.servers[0].env["HF_TOKEN"].value == "hf-abcdefgh"
    assert "hf-abcdefgh" not in json.dumps(view_plan(plan, {}).plan)


def test_json_is_ascii_on_one_line():
    events = [replace(story()[0], text="漢\u2028\n\ud800")]
    text = encode(view_history(make_status(), events))
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["events"][0]["text"].startswith("漢")


def test_benchmarks_are_drawn_by_load_the_newest_first():
    def run(at: float, scenario: str, concurrency: int) -> Run:
        result = {"mean_ttft_ms": 10.0 * concurrency, "mean_tpot_ms": 5.0, "output_throughput": 9.0}
        return Run(
            *(f"{at}", "a2-dual", "a2-dual", scenario, "", {"input": scenario}, 0, concurrency),
            *(at, 1.0, 1, "192.0.2.10", 0, (), {}, {}, result),
        )

    runs = [run(1, "short", 1), run(2, "short", 4), run(3, "long", 1)]
    long, short = view_benchmarks(runs)
    assert "long" in long.title
    assert short.panels[0].newest == ((1.0, 10.0), (4.0, 40.0))
    assert view_benchmarks([]) == ()


# -- what a source reads -----------------------------------------------------------------------


def test_a_poll_returns_what_has_changed(no_benchmarks):
    deployment = FakeDeployment(make_status(), story())
    source = make_source(deployment)
    first = source.poll()
    assert first.history is not None
    assert json.loads(first.facts)["diagnoses"][0]["id"] == "hbm-oom"
    deployment.change()
    second = source.poll()
    assert (second.history, second.facts) == (None, None)
    deployment.kept = [*deployment.kept, replace(story()[-1], number=99, kind="note", text="new")]
    deployment.change(make_status(phase=Phase.RESTARTING))
    third = source.poll()
    assert json.loads(third.history)["events"][-1]["text"] == "new"
    assert third.facts is not None
    assert json.loads(third.live)["phase"] == "restarting"


def test_a_healthy_deployment_is_not_diagnosed_again_and_again(no_benchmarks):
    events = [event for event in story() if event.at < BEGAN + 50]
    deployment = FakeDeployment(make_status(), events)
    assert json.loads(make_source(deployment).poll().facts)["diagnoses"] == []
    assert deployment.asked == []


def test_what_cannot_be_read_is_named(no_benchmarks):
    deployment = FakeDeployment(make_status(), story())
    frozen = json.loads(make_source(deployment).freeze(10))
    assert frozen["facts"]["unread"] == []
    status = make_status()

    class Broken(FakeDeployment):
        def _refuse(self, *_: object):
            raise UnknownDeploymentError("it was stopped")

        describe = diagnosis = logs = _refuse

    frozen = json.loads(make_source(Broken(status, [])).freeze(10))
    assert [one.partition(":")[0] for one in frozen["facts"]["unread"]] == [
        f"log of {GROUP}/0",
        f"log of {GROUP}/1",
        f"plan of {GROUP}",
        f"diagnosis of {GROUP}",
    ]


# -- the file ----------------------------------------------------------------------------------


def frozen_data(page: str) -> dict:
    (block,) = re.findall(r'<script type="application/json" id="frozen">(.*?)</script>', page)
    return json.loads(block)


def test_a_report_holds_everything_and_no_secret(no_benchmarks):
    source = make_source(**{KEY: SECRET})
    page = frozen_page(source.freeze(100))
    data = frozen_data(page)
    assert data["live"]["deployment"] == "a2-dual"
    assert [start["attempt"] for start in data["history"]["starts"]] == [1, 2]
    assert data["facts"]["diagnoses"][0]["line"] == DIAGNOSED
    assert data["facts"]["plans"][0]["plan"]["served_name"]
    assert data["logs"][1]["lines"][1] == "the key is ***"
    assert SECRET not in page
    assert source.unsearched == ("OTHER_KEY",)


def test_markup_and_escape_sequences_in_a_log_stay_text(no_benchmarks):
    page = frozen_page(make_source().freeze(100))
    assert "\x1b" not in page
    shown = frozen_data(page)["logs"][0]["lines"][0]
    assert shown == HOSTILE.replace("\x1b[31m", "").replace("\x1b[0m", "")
    # One data block and one script, and nothing that the log brought along.
    assert len(re.findall(r"<script", page)) == 2
    assert "<img" not in page


def test_the_page_is_ascii(no_benchmarks):
    """A stream with another encoding must not change the script: its hash would not fit."""
    assert live_page().isascii()
    assert frozen_page(make_source().freeze(100)).isascii()


def test_a_report_without_logs_has_none(no_benchmarks):
    assert frozen_data(frozen_page(make_source().freeze(0)))["logs"] == []


def test_nothing_is_loaded_from_elsewhere():
    for page in (live_page(), frozen_page("{}")):
        assert not re.findall(r'(?:src|href)="(?!#|data:,)', page)
        assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_policy_permits_the_script_and_the_style_of_the_page_alone():
    page = live_page()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    for text in (script, style):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in live_policy()
        assert f"'sha256-{digest}'" in frozen_page("{}")
    assert "unsafe" not in live_policy()
    assert live_policy().startswith("default-src 'none'")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses_no_markup_and_follows_no_address_of_others(name):
    text = ASSETS.joinpath(name).read_text(encoding="utf-8")
    found = [line for line in text.splitlines() if SINKS.search(line)]
    assert found == []


def test_every_script_is_part_of_the_page():
    names = {entry.name for entry in ASSETS.iterdir() if entry.name.endswith(".js")}
    assert names == set(SCRIPTS)


def test_the_page_can_be_used_with_a_keyboard_and_a_screen_reader():
    page = ASSETS.joinpath("page.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([\w-]+)" aria-labelledby="([\w-]+)"', page)
    assert sections
    for name, title in sections:
        assert f'<h2 id="{title}">' in page
        assert f'<a href="#{name}"' in page
    assert '<html lang="en">' in page
    assert 'class="skip"' in page
    controls = re.findall(r"<(?:input|select)[^>]*>", page)
    labels = " ".join(re.findall(r"<label[^>]*>.*?</label>", page, re.DOTALL))
    assert all(control in labels for control in controls)


def test_the_page_is_dark_and_light():
    style = ASSETS.joinpath("page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = set(re.findall(r"(--\w[\w-]*):", light))
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used <= names
    without_series = {name for name in names if not re.fullmatch(r"--c\d", name)}
    assert set(re.findall(r"(--\w[\w-]*):", dark)) == without_series
