"""The table of `raylaunch weights`, its commands, its exit codes; a download in a pipe and on a terminal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raylaunch.cli.output import Output, Style
from raylaunch.cli.views.download_view import DownloadView
from raylaunch.errors import NodeError
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import DownloadProgress, Stock, Wanted, WeightsReport
from raylaunch.recipe.model import Sources

GIB = 2**30
SOURCES = Sources(modelscope="MiniMax/MiniMax-M2.5", huggingface="MiniMaxAI/MiniMax-M2.5")
WANTED = Wanted("model", "/models/m", SOURCES)
FILES = {"config.json": 1, "model-00001-of-00002.safetensors": 100 * GIB}
PART = Weights(
    "/models/m", True, files=FILES, missing=("model-00002-of-00002.safetensors",), expected_bytes=200 * GIB,
    filesystem="nfs4", place="nas:/m", free_bytes=900 * GIB,
)  # fmt: skip
LACKING = Stock(
    "192.0.2.10",
    "node1",
    "id1",
    WANTED,
    PART,
    {"huggingface": "/usr/bin/hf"},
    "/opt/venv/bin/python",
)
WHOLE = replace(LACKING, weights=replace(PART, missing=(), expected_bytes=100 * GIB))


def two(first: Stock, **changes) -> WeightsReport:
    second = replace(first, host="192.0.2.11", hostname="node2", node_id="id2", **changes)
    return WeightsReport("a2-dual", (WANTED,), (first, second))


def test_what_is_missing_and_the_commands_for_it(cli, api):
    api.weights_report = two(LACKING, weights=None, problem="no answer in 90 s")
    result = cli(
        "weights", "a2-dual", "--address", "192.0.2.10:6379", "--set", "model.path=/models/m"
    )
    assert result.exit_code == 4
    told = result.stdout
    assert (
        "192.0.2.10 (node1)  model  incomplete  100.0 GiB of 200.0 GiB  2      nfs4  900.0 GiB  /models/m"
        in told
    )
    assert "192.0.2.10 (node1): missing model-00002-of-00002.safetensors" in told
    assert "192.0.2.11 (node2): no answer: no answer in 90 s" in told
    assert "  modelscope download --model MiniMax/MiniMax-M2.5 --local_dir /models/m\n" in told
    assert "  hf download MiniMaxAI/MiniMax-M2.5 --local-dir /models/m\n" in told
    assert "pip install" not in told, "hf is there"
    assert "`raylaunch weights a2-dual --download`" in result.stderr
    asked = dict(api.asked)["weights"]
    assert (asked["address"], asked["set"], asked["download"]) == (
        "192.0.2.10:6379",
        ["model.path=/models/m"],
        False,
    )


def test_the_speed_of_a_network_disk_is_shown(cli, api):
    api.weights_report = two(
        replace(WHOLE, weights=replace(PART, missing=(), read_rate=512.0 * 2**20))
    )
    assert "nfs4 512.0 MiB/s  900.0 GiB" in cli("weights", "a2-dual").stdout


def test_a_node_without_a_program_is_told_what_to_install(cli, api):
    api.weights_report = two(replace(LACKING, programs={}))
    told = cli("weights", "a2-dual").stdout
    assert (
        "192.0.2.10 (node1) has no `modelscope` nor `hf`: `/opt/venv/bin/python -m pip install modelscope` or"
        in told
    )
    assert "-m pip install -U huggingface_hub`" in told


def test_complete_weights_and_nodes_that_share_them(cli, api):
    api.weights_report = two(WHOLE)
    result = cli("weights", "a2-dual")
    assert result.exit_code == 0
    assert "the same folder: 192.0.2.10 (node1), 192.0.2.11 (node2)" in result.stdout
    assert "download" not in result.stdout
    assert "complete on 2 node(s)" in result.stderr


def test_a_recipe_without_sources_says_so(cli, api):
    bare = replace(LACKING, wanted=Wanted("drafter", "/models/eagle"))
    api.weights_report = WeightsReport("a3-single", (bare.wanted,), (bare,))
    told = cli("weights", "a3-single").stdout
    assert "the recipe names no source (features.speculative.sources)" in told


def test_as_json(cli, api):
    api.weights_report = two(LACKING)
    told = json.loads(cli("weights", "a2-dual", "-o", "json").stdout)
    assert told["complete"] is False
    assert (
        told["commands"]["model"]["huggingface"]
        == "hf download MiniMaxAI/MiniMax-M2.5 --local-dir /models/m"
    )
    node = told["nodes"][0]
    assert (node["host"], node["state"], node["bytes"], node["files"]) == (
        "192.0.2.10",
        "incomplete",
        100 * GIB + 1,
        2,
    )
    assert node["missing"] == ["model-00002-of-00002.safetensors"]
    assert node["free_bytes"] == 900 * GIB


def test_a_download_in_a_pipe_is_a_line_now_and_then_on_stderr(cli, api):
    running = DownloadProgress(50 * GIB, 200 * GIB, "Fetching 3 files:  33%")
    done = DownloadProgress(200 * GIB, 200 * GIB, running=False, exit_code=0)
    api.weights_progress = [[(LACKING, running)], [(LACKING, running)], [(LACKING, done)]]
    api.weights_report = two(WHOLE)
    result = cli("weights", "a2-dual", "--download", "--from", "huggingface")
    assert result.exit_code == 0
    lines = [
        line for line in result.stderr.splitlines() if line.startswith("192.0.2.10 (node1) model: ")
    ]
    assert len(lines) == 2, "the second came within ten seconds"
    assert "50.0 GiB of 200.0 GiB (25%)" in lines[0]
    assert lines[0].endswith("Fetching 3 files:  33%")
    assert lines[1].endswith("200.0 GiB, done")
    assert dict(api.asked)["weights"]["hub"] == "huggingface"


def test_a_failed_download_has_its_own_exit_code(cli, api):
    api.error = NodeError("the download failed", evidence="ERROR: 404", todo="see the log")
    result = cli("weights", "a2-dual", "--download")
    assert result.exit_code == 11
    assert "ERROR: 404" in result.stderr


def test_an_unknown_hub_is_a_wrong_command_line(cli, api):
    assert cli("weights", "a2-dual", "--from", "somewhere").exit_code == 2
    assert api.asked == []


def test_on_a_terminal_the_line_is_drawn_again_with_speed_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(Output, "error_style", property(lambda _: Style(width=200)))
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("raylaunch.cli.views.download_view.time.monotonic", lambda: next(clock))
    shown = DownloadView(Output())
    shown.update([(LACKING, DownloadProgress(10 * GIB, 20 * GIB))])
    shown.update([(LACKING, DownloadProgress(15 * GIB, 20 * GIB))])
    told = capsys.readouterr().err
    assert told.count("\x1b[1A") == 1, "the second goes over the first"
    assert "15.0 GiB of 20.0 GiB (75%), 512.0 MiB/s, 10.0 s left" in told


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_hides_progress(capsys, quiet):
    DownloadView(Output(quiet=quiet)).update([(LACKING, DownloadProgress(1, 2))])
    assert bool(capsys.readouterr().err) != quiet
