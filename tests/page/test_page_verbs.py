"""The verbs `report` and `ui`."""

from __future__ import annotations

import stat
import sys

import pytest
from page_samples import KEY, SECRET, FakeDeployment, make_status, story
from typer.testing import CliRunner

from raylaunch.api import page_verbs
from raylaunch.cli.app import app
from raylaunch.cli.commands.deployments.ui import link_notes
from raylaunch.web import page_server, page_source


@pytest.fixture
def deployment(monkeypatch) -> FakeDeployment:
    fake = FakeDeployment(make_status(), story())
    monkeypatch.setattr(page_verbs, "attach", lambda name, address: fake)
    monkeypatch.setattr(page_source, "kept_runs", lambda name: ([], []))
    return fake


def run(*words: str, **env: str):
    return CliRunner().invoke(app, list(words), env=env)


def test_a_report_is_a_file_of_this_user_alone(deployment, tmp_path):
    file = tmp_path / "report.html"
    done = run("report", "a2-dual", "-o", str(file), **{KEY: SECRET})
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    page = file.read_text()
    assert page.startswith("<!doctype html>")
    assert SECRET not in page
    assert "OTHER_KEY" in done.stderr
    assert KEY not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_report_can_be_piped(deployment):
    done = run("-q", "report", "a2-dual", "--lines", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.endswith("</html>\n")
    assert "the key is" not in done.stdout, "one line of the log was asked for, the last"


def test_the_piped_page_is_that_of_the_file(deployment, tmp_path):
    """The terminal's rules for foreign text change nothing in it: its hashes would not fit."""
    file = tmp_path / "report.html"
    assert run("report", "a2-dual", "-o", str(file)).exit_code == 0
    assert run("report", "a2-dual").stdout == file.read_text()


@pytest.mark.parametrize("place", ["missing/report.html", ".", "/dev/null"])
def test_a_place_that_cannot_be_written_is_an_error(deployment, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    done = run("report", "a2-dual", "-o", place)
    assert done.exit_code == 11
    assert "cannot write" in done.stderr


def test_a_link_is_followed_and_stays_a_link(deployment, tmp_path):
    real = tmp_path / "real.html"
    real.write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to(real)
    assert run("report", "a2-dual", "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert real.read_text().startswith("<!doctype html>")


def test_ui_prints_its_link_and_what_to_know_about_it(deployment, monkeypatch):
    async def serve(source, port, on_link, actions):
        assert (source.title, port, actions) == ("a2-dual", 8090, None)
        on_link("http://127.0.0.1:8090/?token=abc")

    monkeypatch.setattr(page_server, "serve_page", serve)
    done = run("ui", "a2-dual", "--port", "8090")
    assert done.exit_code == 0, done.output
    assert done.stdout == "http://127.0.0.1:8090/?token=abc\n"
    assert "works once" in done.stderr


def test_ui_allows_actions_only_when_it_is_asked_to(deployment, monkeypatch):
    allowed: list[tuple[str, ...]] = []

    async def serve(source, port, on_link, actions):
        allowed.append(actions.names)

    monkeypatch.setattr(page_server, "serve_page", serve)
    done = run("ui", "a2-dual", "--allow-actions")
    assert done.exit_code == 0, done.output
    assert allowed == [("restart", "drill", "stop")]
    assert "a2-dual was stopped" in done.stderr


def test_on_a_head_the_note_says_how_to_reach_the_page():
    here, there = link_notes("http://127.0.0.1:8090/?token=abc", "a2.yaml")
    assert "works once" in here
    assert "ssh -N -L 8090:127.0.0.1:8090" in there


def test_help_loads_neither_the_page_nor_its_server():
    import subprocess

    code = (
        "import sys, raylaunch.cli.app\n"
        "print(*{'aiohttp', 'raylaunch.page', 'raylaunch.web'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
