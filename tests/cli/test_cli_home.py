"""RAYLAUNCH_HOME that cannot be used, damaged records, deployments whose cluster has died."""

from __future__ import annotations

import json
import stat

import pytest

from raylaunch import api
from raylaunch.deployment import cluster_choice, deployment_records
from raylaunch.deployment.cluster_choice import writable_home
from raylaunch.deployment.deployment_records import Record, Silent, read_record, write_record
from raylaunch.errors import ClusterError, NodeError, RaylaunchError, UnknownDeploymentError

ADDRESS = "127.0.0.1:1"
"""Nothing listens there, and that is known at once."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "no-ray"))
    return tmp_path


@pytest.fixture(params=["file", "below a file", "too long", "read-only"])
def unusable(request, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    path = {
        "file": str(file),
        "below a file": str(file / "home"),
        "too long": str(tmp_path / ("x" * 300)),
        "read-only": "/proc/raylaunch",
    }[request.param]
    monkeypatch.setenv("RAYLAUNCH_HOME", path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "no-ray"))
    return path


def test_a_home_that_cannot_be_used_is_named(unusable):
    with pytest.raises(NodeError) as caught:
        writable_home()
    assert unusable[:200] in caught.value.what
    assert "RAYLAUNCH_HOME" in caught.value.what


def test_start_on_an_embedded_cluster_needs_it(unusable):
    with pytest.raises(NodeError, match="RAYLAUNCH_HOME"):
        api.deploy("local-dual")


def test_list_goes_on_without_it(unusable):
    assert api.overview() == api.overview(), "no error"
    assert api.overview().running == ()


def test_what_asks_for_one_deployment_ends_in_an_error_of_ours(unusable):
    for call in (api.attach, api.stop, api.diagnose, api.verify):
        with pytest.raises(RaylaunchError):
            call("prod")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"address": 1}', '{"address": "a", "b": 1}', "\xff"]
)
def test_a_damaged_record_of_an_embedded_cluster_does_not_hide_the_others(home, text):
    (home / "clusters").mkdir()
    (home / "clusters" / "broken.json").write_text(text, encoding="latin-1")
    silent = {one.deployment: one for one in api.overview().silent}
    assert "broken" in silent
    with pytest.raises(RaylaunchError):
        api.attach("broken")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '{"started_at": "x"}', '{"started_at": 1e300}']
)
def test_a_damaged_record_of_a_deployment_is_skipped(home, text):
    (home / "deployments").mkdir()
    (home / "deployments" / "broken.json").write_text(text)
    assert read_record(home, "broken") is None
    assert api.overview().silent == ()


def test_a_record_is_private_and_is_read_back(home):
    record = Record("prod", "a2-dual", ADDRESS, 1_700_000_000.0)
    write_record(home, record)
    file = home / "deployments" / "prod.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["address"] == ADDRESS
    assert read_record(home, "prod") == record
    assert [path.name for path in file.parent.iterdir()] == ["prod.json"]
    deployment_records.remove_record(home, "prod")
    assert read_record(home, "prod") is None
    deployment_records.remove_record(home, "prod")


def test_a_record_that_cannot_be_written_does_not_fail_a_start(unusable):
    from pathlib import Path

    write_record(Path(unusable), Record("prod", "a2-dual", ADDRESS, 0.0))
    deployment_records.remove_record(Path(unusable), "prod")


def test_after_the_cluster_has_died_list_names_what_was_started_there(home):
    write_record(home, Record("prod", "a2-dual", ADDRESS, 1_700_000_000.0))
    (silent,) = api.overview().silent
    assert silent.deployment == "prod"
    assert ADDRESS in silent.what
    assert "recipe a2-dual" in silent.what
    assert "raylaunch clean" in silent.todo
    with pytest.raises(ClusterError) as caught:
        api.overview(ADDRESS)
    assert "prod" in caught.value.evidence


@pytest.mark.parametrize("address", [None, ADDRESS])
def test_after_the_cluster_has_died_status_says_where_the_deployment_was_started(home, address):
    write_record(home, Record("prod", "a2-dual", ADDRESS, 1_700_000_000.0))
    with pytest.raises(ClusterError) as caught:
        api.attach("prod", address)
    assert "prod does not answer" in caught.value.what
    assert ADDRESS in caught.value.why
    assert "ray up" in caught.value.todo
    with pytest.raises((UnknownDeploymentError, ClusterError)) as caught_other:
        api.attach("other", address)
    assert "prod" not in str(caught_other.value)


def test_a_named_cluster_that_another_deployment_was_started_on_is_not_blamed(home):
    write_record(home, Record("prod", "a2-dual", "192.0.2.1:6379", 1_700_000_000.0))
    with pytest.raises(ClusterError) as caught:
        api.attach("prod", ADDRESS)
    assert "192.0.2.1" not in str(caught.value)


def test_the_command_line_shows_the_silent_ones_on_stderr(cli, api):
    api.script.clear()
    api.silent = (Silent("prod", "started from this machine on x:1", "no answer", "ray up"),)
    for words in (("status",), ("list", "--running")):
        result = cli(*words)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "prod: started from this machine on x:1" in result.stderr
        assert "next  ray up" in result.stderr
        assert "`raylaunch start NAME` starts one" not in result.stderr


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("RAYLAUNCH_HOME", raising=False)

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pathlib.Path.home", fail)
    with pytest.raises(NodeError) as caught:
        cluster_choice.home()
    assert "RAYLAUNCH_HOME" in caught.value.todo
