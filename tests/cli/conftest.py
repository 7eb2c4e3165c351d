from __future__ import annotations

import subprocess
import sys

import fake_api
import pytest
from cli_process import command_line, environment
from typer.testing import CliRunner

import raylaunch
from raylaunch.cli.app import app


@pytest.fixture
def api(monkeypatch):
    """The fake in place of raylaunch.api, as new."""
    for name, value in {
        "asked": [],
        "findings": [],
        "script": fake_api.start_story(),
        "error": None,
        "left": (),
        "silent": (),
        "adopted": False,
        "clean_report": fake_api.clean_report,
        "tuning_steps": [],
        "weights_report": fake_api.weights_report,
        "weights_progress": [],
    }.items():
        monkeypatch.setattr(fake_api, name, value)
    monkeypatch.setitem(sys.modules, "raylaunch.api", fake_api)
    monkeypatch.setattr(raylaunch, "api", fake_api, raising=False)
    return fake_api


@pytest.fixture
def cli(api):
    """Run a command line in this process; gives the result with exit_code, stdout and stderr."""
    return lambda *words, **more: CliRunner().invoke(app, list(words), **more)


@pytest.fixture
def run():
    """Run a command line in a process of its own, its output piped."""

    def go(*words: str, prepare: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        line = command_line(*words, prepare=prepare)
        return subprocess.run(
            line, capture_output=True, text=True, timeout=60, env=environment(**env), check=False
        )

    return go
