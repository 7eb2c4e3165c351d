"""The program as a process: what it imports, where it writes, colours, Ctrl-C, bugs, help."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import command_line, environment
from typer.main import get_command

from raylaunch import errors
from raylaunch.cli.app import app
from raylaunch.interrupts import StartUndone
from raylaunch.recipe.catalog import recipe_names

HEAVY = {"ray", "vllm", "torch", "httpx", "rich", "prometheus_client", "psutil", "asyncio"}


def verbs():
    return get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture
def modules_of(run, tmp_path):
    """Names of the modules that are loaded once a command line has run."""

    def go(*words: str) -> set[str]:
        done = run(*words, MODULES_TO=str(tmp_path / "modules"))
        assert done.returncode == 0, done.stderr
        return set((tmp_path / "modules").read_text().splitlines())

    return go


@pytest.mark.parametrize(
    "words", [("--help",), ("list",), ("show", "a2-dual"), ("plan", "a2-dual"), ("start", "--help")]
)
def test_what_needs_no_cluster_loads_nothing_heavy(modules_of, words):
    assert not modules_of(*words) & HEAVY


def test_the_verbs_of_python_load_no_alerts_and_no_benchmarks():
    code = "import sys, raylaunch.api; print(*sys.modules)"
    process = [sys.executable, "-c", code]
    done = subprocess.run(process, env=environment(), capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "raylaunch.api" in loaded
    assert not [
        name for name in loaded if name.startswith(("raylaunch.bench.", "raylaunch.monitoring."))
    ]


def test_help_loads_no_recipe_and_no_yaml(modules_of):
    loaded = modules_of("--help")
    assert "typer" in loaded
    assert not loaded & {"pydantic", "yaml", "raylaunch.recipe.load", "json", "logging"}


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_help_teaches_by_example(cli, verb):
    text = cli(verb, "--help").stdout
    examples = text.partition("Examples:\n")[2]
    assert f"    raylaunch {verb}" in examples or f"raylaunch -q {verb}" in examples


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_the_list_of_verbs_is_readable(cli, verb):
    line = next(line for line in cli("--help").stdout.splitlines() if line.startswith(f"  {verb} "))
    assert not line.endswith("..."), "the first sentence of the help is too long for the list"


def test_versions(cli):
    assert cli("--version").stdout.startswith("raylaunch 0.")
    assert json.loads(cli("version", "-o", "json").stdout)["ray"].startswith("2.")


@pytest.mark.parametrize(
    "words",
    [("frobnicate",), ("plan",), ("plan", "a2-dual", "--nope"), ("status", "x", "-o", "xml")],
)
def test_a_wrong_command_line_is_code_2(run, words):
    done = run(*words)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert done.stdout == ""


def test_an_error_is_a_block_on_stderr(run):
    done = run("plan", "a2-dul")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith(
        "error: there is no recipe named 'a2-dul'\n  why   did you mean 'a2-dual'?"
    )
    assert "\n  next  use one of them" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_as_json(run):
    done = run("plan", "a2-dul", "-o", "json")
    told = json.loads(done.stderr)
    assert told["error"] == "RecipeError"
    assert told["exit_code"] == done.returncode == 3
    assert told["what"] == "there is no recipe named 'a2-dul'"


def test_verbose_shows_the_traceback_too(run):
    for words in (("-v", "plan", "a2-dul"), ("plan", "a2-dul", "-v")):
        done = run(*words)
        assert done.returncode == 3
        assert "Traceback" in done.stderr
        assert "error: there is no recipe" in done.stderr


def test_a_bug_is_called_a_bug(run):
    done = run("start", "a2-dual", prepare="error = ZeroDivisionError('oops')")
    assert done.returncode == 1
    assert "this is a bug in raylaunch: ZeroDivisionError: oops" in done.stderr
    assert "Traceback" in done.stderr


def test_ctrl_c_during_start_says_that_it_goes_on():
    line = command_line(
        "start", "a2-dual", "--name", "prod", prepare="script = start_story()[:2]; hang = True"
    )
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert "checking" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: prod keeps starting without this command" in told
    assert "raylaunch status prod" in told
    assert "raylaunch stop prod" in told
    assert "Traceback" not in told


def test_ctrl_c_before_the_cluster_answered_does_not_promise(cli, api):
    api.script.clear()
    api.error = KeyboardInterrupt()
    result = cli("start", "a2-dual")
    assert result.exit_code == 130
    assert "may be starting" in result.stderr


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ((), "prod was not started; its embedded Ray cluster was stopped again"),
        (("pid 12 raylet",), "1 processes of its embedded Ray cluster resist: pid 12 raylet"),
    ],
)
def test_ctrl_c_before_there_is_a_controller_says_what_became_of_the_cluster(cli, api, left, told):
    api.script.clear()
    api.error = StartUndone(left)
    result = cli("start", "local-dual", "--name", "prod")
    assert result.exit_code == 130
    assert told in result.stderr
    assert "may be starting" not in result.stderr
    assert ("raylaunch stop prod" in result.stderr) is bool(left)


def test_a_reader_that_goes_away_is_no_bug():
    line = command_line("show", "a2-dual")
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "bug" not in process.stderr.read()


def on_terminal(*words: str, prepare: str = "", **env: str) -> tuple[int, str]:
    """Run on a pseudo-terminal; return the exit code and everything it wrote."""
    ours, theirs = pty.openpty()
    line = command_line(*words, prepare=prepare)
    with subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(COLUMNS="100", **env)
    ) as process:
        os.close(theirs)
        written = bytearray()
        try:
            while chunk := os.read(ours, 65536):
                written += chunk
        except OSError:  # EIO: the last writer is gone
            pass
        finally:
            os.close(ours)
    return process.returncode, written.decode()


def test_start_on_a_terminal_shows_a_live_table():
    code, text = on_terminal("start", "a2-dual", prepare="script = start_story()")
    assert code == 0
    assert "SERVER" in text
    assert "STAGE" in text
    assert "\x1b[2K" in text, "the table is redrawn in place"
    assert "[ 12.3s]" not in text
    assert "is \x1b[32mready\x1b[0m after 41.2 s" in text


def test_colours_on_a_terminal_unless_told_otherwise():
    assert "\x1b[" in on_terminal("plan", "a2-dual")[1]
    assert "\x1b[" not in on_terminal("plan", "a2-dual", NO_COLOR="1")[1]
    assert "\x1b[" not in on_terminal("plan", "a2-dual", TERM="dumb")[1]


def test_no_color_reaches_the_live_table():
    _, text = on_terminal("start", "a2-dual", prepare="script = start_story()", NO_COLOR="1")
    assert "\x1b[1m" not in text
    assert "\x1b[3" not in text


def test_a_terminal_wraps_and_cuts_nothing(run):
    whole = run("list").stdout
    wrapped = on_terminal("list", NO_COLOR="1")[1].replace("\r\n", "\n")
    assert max(map(len, whole.splitlines())) > 100 >= max(map(len, wrapped.splitlines()))
    assert sorted(wrapped.split()) == sorted(whole.split())


def test_pipes_are_plain_and_whole(run):
    assert "\x1b" not in run("plan", "a2-dual").stdout
    assert "\x1b[" in run("plan", "a2-dual", FORCE_COLOR="1").stdout
    assert "\x1b[" not in run("plan", "a2-dual", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_the_shell_completes_recipe_names(run):
    done = run(
        _RAYLAUNCH_COMPLETE="complete_bash", COMP_WORDS="raylaunch plan a3-l", COMP_CWORD="2"
    )
    assert done.stdout.split() == [name for name in recipe_names() if name.startswith("a3-l")]


def test_every_error_has_a_code_of_its_own():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RaylaunchError)
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, 130} & set(codes), "taken by success, a wrong command line and Ctrl-C"


def test_the_reference_is_current():
    tool = Path(__file__).parents[2] / "tools" / "cli_reference.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_names_every_verb_option_and_exit_code():
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for name, verb in verbs().items():
        section = text.partition(f"\n## raylaunch {name}\n")[2].partition("\n## ")[0]
        options = [opt for param in verb.params for opt in param.opts if opt.startswith("--")]
        assert options, name
        assert [
            opt for opt in options if f"`{opt}" not in section and f", {opt}" not in section
        ] == []
    for kind in (errors.RecipeError, errors.PlanError, errors.NodeError):
        assert f"| {kind.exit_code} | {kind.__name__} |" in text


RAYS_LIBRARY = """
import atexit, ctypes, sys, types
import raylaunch.cli.app as app
sys.modules["ray._raylet"] = types.ModuleType("ray._raylet")
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)
atexit.register(lambda: print("left the cluster"))
app.program()
"""
"""A library whose destructors crash, as Ray's did at the exit of a start that succeeded."""


@pytest.mark.parametrize(("words", "code"), [(("list",), 0), (("plan", "no-such-recipe"), 3)])
def test_the_exit_code_is_the_commands_also_when_rays_library_crashes_at_exit(words, code):
    process = [sys.executable, "-c", RAYS_LIBRARY, *words]
    done = subprocess.run(process, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("left the cluster\n")
    assert ("local-dual" in done.stdout) == (code == 0), "what was written arrives"
