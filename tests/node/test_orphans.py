"""Which marked processes belong to nothing that runs: told from those that a guard, controller or record speaks for."""

from __future__ import annotations

import json
import os
import subprocess
import uuid

import pytest
from process_trees import Watched, python

from raylaunch.node.process.orphans import (
    Running,
    deployment_of,
    end_leftovers,
    find_leftovers,
    machine,
)
from raylaunch.node.process.process_markers import end_marked, find_marked

NOBODY = Running()


@pytest.fixture
def name():
    """A deployment of this test alone; no test here ever looks at, or ends, anything of another."""
    deployment = f"test-{uuid.uuid4().hex}"
    yield deployment
    for marker in {
        found.deployment for found in find_marked() if deployment_of(found.deployment) == deployment
    }:
        end_marked(marker, grace_s=0)


@pytest.fixture
def orphan(tmp_path):
    """Start a marked process that nothing speaks for, in the home of this test."""
    started = []

    def start(marker, home=tmp_path):
        env = {
            "RAYLAUNCH_DEPLOYMENT": marker,
            "RAYLAUNCH_ATTEMPT": "3",
            "RAYLAUNCH_HOME": str(home),
        }
        process = subprocess.Popen(
            python("say('up'); sleep()"), env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def embedded_record(name, marker):
    """The record of an embedded cluster that was started completely."""
    parts = {
        "deployment": name,
        "marker": marker,
        "folder": "/tmp/raylaunch-none",
        "address": "127.0.0.1:1",
    }
    return json.dumps(parts)


def pids(found):
    return {one.pid for one in found}


def test_a_process_nobody_speaks_for_is_found_and_ended_alone(name, orphan):
    first, second, other = orphan(name), orphan(name), orphan(f"{name}-other")
    found = find_leftovers(NOBODY, name)
    assert pids(found) == {first.pid, second.pid}
    assert [one.attempt for one in found] == [3, 3]
    assert end_leftovers([one for one in found if one.pid == first.pid], grace_s=20) == []
    assert first.wait(20) == -15
    assert second.poll() is None, "same mark, but not among those to end"
    assert other.poll() is None


def test_a_deployment_with_a_controller_is_left_alone(name, orphan):
    process = orphan(name)
    assert find_leftovers(Running((name,)), name) == []
    assert pids(find_leftovers(Running((name,)), None)).isdisjoint({process.pid})


def test_a_server_under_its_guard_is_left_alone_whatever_cluster_it_belongs_to(name, tmp_path):
    watched = Watched(name, tmp_path / "log", "say('up'); sleep()")
    try:
        watched.event("spawned")
        assert find_marked(name)
        assert find_leftovers(NOBODY, name) == []
        assert find_leftovers(Running(orphaned=(name,)), name), (
            "unless its controller is known to be gone"
        )
    finally:
        watched.process.end(0)


def test_an_embedded_cluster_is_left_alone_as_long_as_it_is_recorded(name, orphan, tmp_path):
    marker = f"@{name}-1a2b3c4d"
    record = tmp_path / "clusters" / f"{name}.json"
    record.parent.mkdir()
    record.write_text(embedded_record(name, marker))
    cluster, server = orphan(marker), orphan(name)
    assert find_leftovers(NOBODY, name) == [], (
        "its servers too, also between two attempts, when no guard lives"
    )
    record.write_text(embedded_record(name, f"@{name}-99999999"))
    assert pids(find_leftovers(NOBODY, name)) == {cluster.pid, server.pid}, (
        "the record is of a later one, not alive"
    )
    record.unlink()
    assert pids(find_leftovers(NOBODY, name)) == {cluster.pid, server.pid}


def test_the_record_in_the_home_of_the_process_counts_not_in_ours(
    name, orphan, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path / "mine"))
    theirs = tmp_path / "theirs"
    marker = f"@{name}-1a2b3c4d"
    (theirs / "clusters").mkdir(parents=True)
    (theirs / "clusters" / f"{name}.json").write_text(embedded_record(name, marker))
    orphan(marker, theirs)
    assert find_leftovers(NOBODY, name) == []


def test_a_marker_names_its_deployment():
    assert deployment_of("@local-dual-1a2b3c4d") == "local-dual"
    assert deployment_of("a2-dual-1a2b3c4d") == "a2-dual-1a2b3c4d"


def test_the_machine_has_a_name_and_a_key():
    key, host = machine()
    assert key == machine()[0]
    assert host == os.uname().nodename
