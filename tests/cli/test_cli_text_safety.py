"""Foreign text on a terminal: escape sequences and control characters do not get through."""

from __future__ import annotations

import json
import logging

import pytest

from raylaunch.cli.driver_log import log_to_stderr
from raylaunch.cli.output import COLOUR_ON, Output, Style, printable, table, to_json
from raylaunch.errors import LaunchError
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.diagnosis.root_cause import Diagnosis

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
"""Writes the clipboard of terminals that allow it."""
HOSTILE = [
    CLIPBOARD,
    "\x1b]0;title\x1b\\",
    "\x1b[2J",
    "\x1b[31;8m",
    "\x9b31m",
    "\x1bc",
    "\x1b]52;no end",
    "a\rb",
    "\x07\x08\x7f",
]


def controls_in(text: str) -> set[str]:
    return {one for one in text if (one < " " and one not in "\t\n") or "\x7f" <= one <= "\x9f"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_is_left(text):
    assert controls_in(printable(f"before {text} after")) == set()
    assert printable(f"before {text} after").startswith("before ")
    assert printable(f"before {text} after").endswith(" after")


def test_tab_newline_and_letters_of_every_script_are_kept():
    assert printable("a\tb\n你好 ünï 🙂") == "a\tb\n你好 ünï 🙂"


def test_a_sequence_is_removed_whole():
    assert printable(f"x{CLIPBOARD}y \x1b[1;31mred\x1b[0m") == "xy red"


@pytest.mark.parametrize("write", ["line", "lines", "note", "to_stderr", "error"])
@pytest.mark.parametrize("text", HOSTILE)
def test_every_function_that_writes_removes_them(capsys, write, text):
    given = {
        "lines": [text],
        "to_stderr": [text],
        "error": LaunchError(text, why=text, evidence=text),
    }
    getattr(Output(), write)(given.get(write, text))
    written = capsys.readouterr()
    assert controls_in(written.out + written.err) == set()


def test_redrawn_lines_hold_only_the_cursor_movements_of_raylaunch(capsys):
    Output().redraw([f"one {CLIPBOARD}", "two\x1b[2J"], above=2)
    written = capsys.readouterr().err
    assert written == "\x1b[2A\r\x1b[Kone \n\r\x1b[Ktwo\n"


def test_colours_are_those_of_raylaunch_only():
    style = Style(colour=True)
    assert style.finish(style.paint("\x1b[5mgood", "good")) == "\x1b[32mgood\x1b[0m"
    assert Style().finish(f"{COLOUR_ON['bad']}x") == "x", "a mark means nothing without colour"


def test_columns_are_measured_without_them():
    plain = list(table([("ab", "x"), ("c", "y")], Style()))
    assert list(table([("a\x1b[31mb", "x"), ("c", "y")], Style())) == plain


def test_json_escapes_what_a_terminal_obeys():
    value = {"text": "".join(HOSTILE) + COLOUR_ON["bad"]}
    written = to_json(value)
    assert controls_in(written) == set()
    assert json.loads(written) == value


def test_what_is_no_text_is_written_all_the_same(capsys):
    Output().line("path \udcff")
    assert capsys.readouterr().out == "path \\udcff\n"


def test_log_lines_of_a_server(cli, api, monkeypatch):
    monkeypatch.setattr(api.Deployment, "logs", lambda *_, **__: f"model said {CLIPBOARD}hello\n")
    monkeypatch.setattr(api.Deployment, "follow_logs", lambda *_, **__: iter(HOSTILE))
    result = cli("logs", "a2-dual", "-f")
    assert result.stdout.startswith("model said hello\n")
    assert controls_in(result.stdout) == set()


def test_events_and_status(cli, api, monkeypatch):
    event = Event(1, api.CREATED, 1, "exit", f"signal{CLIPBOARD} 9", server=1)
    monkeypatch.setattr(api.Deployment, "events", lambda *_, **__: [event])
    assert cli("events", "a2-dual").stdout.endswith("server 1: signal 9\n")
    status = api.look(3, api.Phase.FAILED, error=LaunchError("".join(HOSTILE)).as_dict())
    api.script[:] = [status]
    assert controls_in(cli("status", "a2-dual").stdout) == set()


def test_diagnose(cli, api, monkeypatch):
    line = f"RuntimeError: {CLIPBOARD}out of memory"
    found = Diagnosis("oom", "deterministic", 0, line, 1, "cause", "remedy", "vLLM")
    monkeypatch.setattr(api, "diagnose", lambda *_, **__: found)
    assert "RuntimeError: out of memory" in cli("diagnose", "a2-dual").stdout
    assert json.loads(cli("diagnose", "a2-dual", "-o", "json").stdout)["line"] == line


def test_the_name_of_a_recipe_file(cli, tmp_path):
    recipe = tmp_path / "evil\x1b]0;title\x07.yaml"
    recipe.write_text("extends: a2-dual\n")
    result = cli("plan", str(recipe), "--name", "prod")
    assert result.exit_code == 0, result.output
    assert "recipe evil" in result.stdout
    assert controls_in(result.output) == set()
    assert controls_in(cli("show", str(recipe)).output) == set()


def test_the_live_table(capsys):
    from raylaunch.cli.views.live_view import Picture

    picture = Picture(Style(colour=True))
    picture.lines = lambda: iter([f"server 0 {CLIPBOARD}weights"])
    assert picture.__rich__().plain == "server 0 weights"


def test_log_records(capsys):
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = []
    try:
        log_to_stderr(1)
        logging.getLogger("raylaunch.test").info("the node said %s", CLIPBOARD)
        logging.getLogger("raylaunch.test").debug("a detail")
    finally:
        root.handlers[:] = before
        logging.getLogger("raylaunch").setLevel(logging.NOTSET)
    written = capsys.readouterr().err
    assert "INFO raylaunch.test: the node said" in written
    assert "a detail" not in written, "with -vv only"
    assert controls_in(written) == set()
