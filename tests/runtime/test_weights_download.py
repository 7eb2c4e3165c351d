"""`raylaunch weights` as a program: on this machine without a cluster, and on two Ray nodes that share a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray_clusters import RayNodes, User, await_true, clean_env

from raylaunch.node.process.process_markers import find_marked

HUB = Path(__file__).resolve().parents[1] / "standin" / "hub"
NO_PROGRAMS = f"/usr/bin{os.pathsep}/bin"


def hub_env(record: Path) -> dict[str, str]:
    record.mkdir(exist_ok=True)
    path = f"{HUB}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "STANDIN_HUB": str(record), "STANDIN_PYTHON": sys.executable}


def calls(record: Path) -> list[dict]:
    file = record / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def starts(record: Path) -> list[dict]:
    return [call for call in calls(record) if "start" in call]


def held(record: Path) -> list[psutil.Process]:
    return [
        psutil.Process(pid)
        for pid in json.loads(
            await_true((record / "held").exists, "it holds") and (record / "held").read_text()
        )
    ]


def interrupt(
    user: User, record: Path, words: tuple[str, ...], number: signal.Signals
) -> tuple[int, str]:
    """Start a download, send a signal in the middle of it, and prove that nothing is left of it."""
    (record / "hold").touch()
    command = user.popen(*words, "--download")
    try:
        processes = held(record)
    finally:
        command.send_signal(number)
        output = command.communicate(timeout=120)[0]
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left, output
    (record / "hold").unlink()
    return command.returncode, output


@pytest.fixture
def record(user, short_folder):
    user.extra = hub_env(short_folder / "record")
    return short_folder / "record"


def words_for(model: Path, *more: str) -> tuple[str, ...]:
    return ("weights", "a2-dual", "--address", "local", "--set", f"model.path={model}", *more)


def test_a_download_that_was_interrupted_is_resumed(user, record, short_folder):
    model = short_folder / "models" / "m"
    before = user.run(*words_for(model))
    assert before.code == 4, before.out + before.err
    assert f"modelscope download --model MiniMax/MiniMax-M2.5 --local_dir {model}" in before.out
    assert f"hf download MiniMaxAI/MiniMax-M2.5 --local-dir {model}" in before.out
    assert not model.exists(), "looking changes nothing"

    code, _ = interrupt(user, record, words_for(model), signal.SIGINT)
    assert code == 130
    between = user.run(*words_for(model, "-o", "json"))
    assert between.code == 4
    (node,) = between.json()["nodes"]
    assert node["state"] == "incomplete"
    assert node["missing"] == [
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert node["expected_bytes"] == 3 << 20

    done = user.run(*words_for(model, "--download"))
    assert done.code == 0, done.out + done.err
    assert "complete" in done.out
    begins = [
        call["begins_at"]
        for call in calls(record)
        if call.get("shard") == "model-00002-of-00003.safetensors"
    ]
    assert begins[0] == 0
    assert begins[1] > 500_000
    again = user.run(*words_for(model, "--download", "-o", "json"))
    assert again.json()["complete"] is True
    assert len(starts(record)) == 2, "what is whole is not asked for again"
    assert user.run("check", *words_for(model)[1:]).out.count("[weights-incomplete]") == 0


def test_the_other_hub_on_demand_and_killing_the_command_ends_it(user, record, short_folder):
    words = words_for(short_folder / "m", "--from", "huggingface")
    code, _ = interrupt(user, record, words, signal.SIGKILL)
    assert code == -signal.SIGKILL
    (start,) = starts(record)
    assert start["tool"] == "hf"


def test_a_download_that_fails_shows_what_the_program_said(user, record, short_folder):
    (record / "fail").touch()
    failed = user.run(*words_for(short_folder / "m", "--download"))
    assert failed.code == 11, failed.out + failed.err
    assert "connection reset by the hub" in failed.err
    assert "resumes the download" in failed.err


def test_without_a_program_it_says_what_to_install(user, short_folder):
    """The recipe names only ModelScope, and `hf` beside Python does not help."""
    user.extra = {"PATH": NO_PROGRAMS}
    words = (
        "weights",
        "qwen3-235b-a2-dual",
        "--address",
        "local",
        "--set",
        f"model.path={short_folder / 'm'}",
    )
    only = ("--set", "model.sources={modelscope: Qwen/Qwen3-235B-A22B, huggingface: null}")
    told = user.run(*words, *only)
    assert told.code == 4
    assert "has no `modelscope`" in told.out
    assert "-m pip install modelscope" in told.out
    refused = user.run(*words, *only, "--download")
    assert refused.code == 11
    assert "-m pip install modelscope" in refused.err
    unknown = user.run(*words, *only, "--download", "--from", "huggingface")
    assert unknown.code == 3
    assert "names no source on huggingface" in unknown.err


def test_a_path_that_is_not_absolute_is_refused(user):
    refused = user.run("weights", "a2-dual", "--address", "local", "--set", "model.path=models/m")
    assert refused.code == 3
    assert "is not an absolute path" in refused.err


def test_the_tiny_model_of_local_dual_is_made_on_demand(user):
    before = user.run("weights", "local-dual")
    assert before.code == 0, before.out + before.err
    assert "missing" in before.out
    made = user.run("weights", "local-dual", "--download", "-o", "json")
    assert made.code == 0, made.out + made.err
    (node,) = made.json()["nodes"]
    assert node["state"] == "complete"
    assert node["path"] == str(user.home / "models" / "tiny-qwen3")


@pytest.fixture(scope="module")
def hub_nodes():
    """Two Ray nodes on this machine that have the stand-in hub on their PATH."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    env = clean_env(folder / "home", RAY_AUTH_MODE="disabled", **hub_env(folder / "record"))
    nodes = RayNodes(folder / "ray", folder / "record", env)
    try:
        nodes.start([8, 8])
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_nodes_that_share_a_folder_download_once_and_ctrl_c_ends_it_there(
    user, hub_nodes, short_folder
):
    user.extra = {"RAY_AUTH_MODE": "disabled", "PATH": NO_PROGRAMS}
    record, model = hub_nodes.record, short_folder / "m"
    words = ("weights", "a2-dual", "--address", hub_nodes.address, "--set", f"model.path={model}")
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        ended, said = interrupt(user, record, words, number)
        assert ended == code, said
        (record / "held").unlink()
        await_true(
            lambda: not [one for one in find_marked() if one.deployment.startswith("weights of")],
            "all ended",
        )
        shutil.rmtree(model)

    done = user.run(*words, "--download", "-o", "json")
    assert done.code == 0, done.out + done.err
    one, two = done.json()["nodes"]
    assert one["state"] == two["state"] == "complete"
    assert one["place"] == two["place"]
    assert len(starts(record)) == 3, "one by one of the nodes, each time"
