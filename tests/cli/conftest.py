from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_api
import pytest
from typer.testing import CliRunner

import raylaunch
from raylaunch.cli.app import app

HERE = Path(__file__).parent

RUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
prepare = sys.argv.pop(1)
import raylaunch
class Late:
    def __getattr__(self, name):
        import fake_api
        exec(prepare, vars(fake_api))
        return getattr(fake_api, name)
raylaunch.api = Late()
from raylaunch.cli.app import main
try:
    main()
finally:
    import os
    if os.environ.get("MODULES_TO"):
        open(os.environ["MODULES_TO"], "w").write("\\n".join(sys.modules))
"""
"""Runs the program with the fake in place of the api. The fake itself is imported only when a verb asks for it."""


@pytest.fixture
def api(monkeypatch):
    """The fake in place of raylaunch.api, as new."""
    for name, value in {
        "asked": [],
        "findings": [],
        "script": fake_api.start_story(),
        "error": None,
        "left": (),
        "clean_report": fake_api.clean_report,
        "tuning_steps": [],
    }.items():
        monkeypatch.setattr(fake_api, name, value)
    monkeypatch.setitem(sys.modules, "raylaunch.api", fake_api)
    monkeypatch.setattr(raylaunch, "api", fake_api, raising=False)
    return fake_api


@pytest.fixture
def cli(api):
    """Run a command line in this process; gives the result with exit_code, stdout and stderr."""
    return lambda *words, **more: CliRunner().invoke(app, list(words), **more)


def command_line(*words: str, prepare: str = "") -> list[str]:
    return [sys.executable, "-c", RUN, str(HERE), prepare, *words]


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    return {**clean, "TERM": "xterm-256color", **more}


@pytest.fixture
def run():
    """Run a command line in a process of its own, its output piped."""

    def go(*words: str, prepare: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        line = command_line(*words, prepare=prepare)
        return subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment(**env), check=False)

    return go
