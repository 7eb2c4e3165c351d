"""What a user types is validated where it enters: names, addresses, the primary, times, paths."""

from __future__ import annotations

import json
import os

import pytest

import raylaunch
from raylaunch import api
from raylaunch.errors import ClusterError, NodeError, RecipeError, UnknownDeploymentError

FIELDS = ("id", "kind", "root", "line", "line_number", "cause", "remedy", "source")
BAD_NAMES = ["", "a" * 61, "a" * 5000, "../x", "a/b", "-x", ".x", "a b", "ä", "²", "a\nb", "a\0b"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path / "home"))
    # A documentation address: a test that asked it would take long.
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:1")
    return tmp_path / "home"


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
def test_what_cannot_be_a_name_is_refused_before_anything_is_asked(name):
    for call in (raylaunch.plan, raylaunch.deploy, raylaunch.preflight):
        with pytest.raises(RecipeError, match="cannot be the name"):
            call("a2-dual", deployment=name)
    with pytest.raises(RecipeError, match="cannot be the name"):
        raylaunch.clean(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_deployment_of_an_impossible_name_is_unknown(name):
    with pytest.raises(UnknownDeploymentError):
        raylaunch.attach(name)


def test_a_long_name_is_cut_in_the_message():
    with pytest.raises(RecipeError) as caught:
        raylaunch.plan("a2-dual", deployment="a" * 5000)
    assert len(str(caught.value)) < 500


def test_the_name_of_a_recipe_file_that_is_no_name_needs_another(tmp_path):
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("extends: a2-dual\n")
    with pytest.raises(RecipeError, match="--name"):
        raylaunch.plan(str(recipe))
    assert raylaunch.plan(str(recipe), deployment="mine").deployment == "mine"


@pytest.mark.parametrize("name", ["../../etc/x", "a" * 61, "a b"])
def test_a_cluster_name_becomes_a_path_and_is_refused_as_well(name):
    with pytest.raises(RecipeError, match="cannot be the name of a cluster"):
        raylaunch.cluster_file("a3-single", head="192.0.2.1", ssh_user="u", cluster_name=name)


@pytest.mark.parametrize(
    "primary", ["node1", "300.1.1.1", "192.0.2.010", "", "192.0.2.1 ", "x" * 999]
)
def test_a_primary_that_is_no_address_is_refused(primary):
    for call in (raylaunch.plan, raylaunch.deploy):
        with pytest.raises(RecipeError, match="is not an IP address"):
            call("a2-dual", primary=primary)


@pytest.mark.parametrize(
    "address",
    [
        *("node1", "node1:", ":6379", "node1:0", "node1:65536", "node1:\uff16", "node1:²"),
        *("a b:1", "a..b:1", f"{'a' * 64}:1", "ray://x", "http://x:1", "x\0:1", "[::1:6379", "é:1"),
    ],
)
def test_a_malformed_address_is_refused_with_its_source(address, monkeypatch):
    for call in (
        lambda: raylaunch.attach("prod", address),
        lambda: raylaunch.deployments(address),
        lambda: raylaunch.deploy("a2-dual", address=address),
        lambda: raylaunch.clean(address=address),
        lambda: raylaunch.preflight("a2-dual", address=address),
        lambda: raylaunch.weights("a2-dual", address=address),
    ):
        with pytest.raises(ClusterError, match="--address"):
            call()
    if "\0" not in address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match="RAY_ADDRESS"):
            raylaunch.attach("prod")


@pytest.mark.parametrize("target", ["a" * 300, "/" + "a" * 300, "a\0b", "nobody/here"])
def test_diagnose_of_what_cannot_be_there(target):
    with pytest.raises(UnknownDeploymentError):
        api.diagnose(target)


def test_diagnose_of_a_pipe_or_a_device_does_not_wait(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (str(pipe), "/dev/zero", "/dev/null"):
        with pytest.raises(NodeError, match="neither a log nor a bundle"):
            api.diagnose(target)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "5", "{}", '{"id": 1}', "\xff", "[" * 100_000),
        '{"collateral": 5}',
        json.dumps({**dict.fromkeys(FIELDS, 1), "collateral": []}),
    ],
)
def test_a_damaged_bundle_is_named(tmp_path, text):
    (tmp_path / "diagnosis.json").write_text(text, encoding="latin-1")
    with pytest.raises(NodeError, match=r"diagnosis\.json is damaged"):
        api.diagnose(str(tmp_path))


def test_a_file_whose_read_would_block_is_read_without_waiting():
    assert api.diagnose("/proc/kmsg") is None


def test_a_bundle_whose_file_is_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "diagnosis.json")
    with pytest.raises(NodeError, match="damaged"):
        api.diagnose(str(tmp_path))


def test_the_line_number_in_a_long_log_is_that_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("raylaunch.api.log_input.WHOLE_BYTES", 2000)
    monkeypatch.setattr("raylaunch.api.log_streams.CHUNK_BYTES", 1000)
    log = tmp_path / "vllm.log"
    log.write_text("INFO: all is well\n" * 10_000 + "torch.OutOfMemoryError: CUDA out of memory\n")
    found = api.diagnose(str(log))
    assert found is not None
    assert found.line_number == 10_001


@pytest.mark.parametrize(
    "words", [("start", "a2-dual", "--timeout", "nan"), ("verify", "x", "--timeout", "nan")]
)
def test_a_time_out_that_is_no_number_is_a_wrong_command_line(cli, words):
    assert cli(*words).exit_code == 2


@pytest.mark.parametrize(
    "name", ["x" * 300, "/" + "x" * 300, "é" * 200, "a/" + "x" * 300 + "/b.yaml"]
)
@pytest.mark.parametrize("verb", ["plan", "show", "check", "start", "weights"])
def test_a_recipe_name_that_no_file_can_have_is_a_wrong_command_line(cli, verb, name):
    result = cli(verb, name)
    assert result.exit_code == 2
    assert "255 bytes" in result.stderr
