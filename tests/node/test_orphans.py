"""Which marked processes are orphans: no guard, controller or record owns them."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from types import SimpleNamespace

import psutil
import pytest
from process_trees import Watched, python

from raylaunch.node.process import orphans
from raylaunch.node.process.orphans import (
    KnownDeployments,
    deployment_of,
    find_orphans,
    machine_identity,
    terminate_orphans,
)
from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked

NOTHING_KNOWN = KnownDeployments()


@pytest.fixture
def name():
    """A deployment of this test alone; no test here reads or terminates anything of another."""
    deployment = f"test-{uuid.uuid4().hex}"
    yield deployment
    for marker in {
        found.deployment for found in find_marked() if deployment_of(found.deployment) == deployment
    }:
        terminate_marked(marker, instance=ANY_INSTANCE, grace_s=0)


@pytest.fixture
def orphan(tmp_path):
    """Start a marked process that nothing owns, in the home of this test."""
    started = []

    def start(marker, home=tmp_path, **more):
        env = {
            **more,
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


def test_an_orphan_is_found_and_terminated_alone(name, orphan):
    first, second, other = orphan(name), orphan(name), orphan(f"{name}-other")
    found = find_orphans(NOTHING_KNOWN, name)
    assert pids(found) == {first.pid, second.pid}
    assert [one.attempt for one in found] == [3, 3]
    assert terminate_orphans([one for one in found if one.pid == first.pid], grace_s=20) == []
    assert first.wait(20) == -15
    assert second.poll() is None, "same marker, but not in the list"
    assert other.poll() is None


def test_a_deployment_with_a_controller_is_left_alone(name, orphan):
    process = orphan(name)
    assert find_orphans(KnownDeployments((name,)), name) == []
    assert pids(find_orphans(KnownDeployments((name,)), None)).isdisjoint({process.pid})


def test_a_server_below_its_guard_is_left_alone_whatever_cluster_it_belongs_to(name, tmp_path):
    watched = Watched(name, tmp_path / "log", "say('up'); sleep()", instance="aaaa")
    try:
        watched.event("spawned")
        assert find_marked(name)
        assert find_orphans(NOTHING_KNOWN, name) == []
        same_name = KnownDeployments(orphaned=(name,), orphaned_instances=("bbbb",))
        assert find_orphans(same_name, name) == [], "that is another cluster's deployment"
        same_instance = KnownDeployments(orphaned=(name,), orphaned_instances=("aaaa",))
        assert find_orphans(same_instance, name), "its controller is known to be gone"
    finally:
        watched.process.terminate(0)


def test_a_guard_that_waits_for_an_agent_is_an_orphan_for_who_names_its_deployment(
    name, tmp_path, monkeypatch
):
    watched = Watched(name, tmp_path / "log", "say('up'); sleep()", instance="aaaa")
    try:
        watched.event("spawned")
        guard = SimpleNamespace(instance="aaaa", owner=None)
        monkeypatch.setattr(orphans, "find_guards", lambda _home, _name: [guard])
        assert {one.instance for one in find_orphans(NOTHING_KNOWN, name)} == {"aaaa"}
        running = KnownDeployments(deployments=(name,))
        assert find_orphans(running, name) == [], "its controller may give it an agent"
        assert pids(find_orphans(NOTHING_KNOWN, None)).isdisjoint({watched.process.pid})
        guard.owner = 4711
        assert find_orphans(NOTHING_KNOWN, name) == []
    finally:
        watched.process.terminate(0)


def test_a_gateway_is_an_orphan_only_without_its_start_or_when_it_is_named(name, orphan):
    orphan(name, RAYLAUNCH_GROUP="gateway", RAYLAUNCH_INSTANCE="a1")
    assert not [found for found in find_orphans(NOTHING_KNOWN) if found.deployment == name]
    assert find_orphans(NOTHING_KNOWN, name)
    assert not find_orphans(KnownDeployments(deployments=(name,)), name)
    other = KnownDeployments(orphaned=(name,), orphaned_instances=("b2.serve-0",))
    assert not find_orphans(other, name)
    assert find_orphans(KnownDeployments((), (name,), ("a1.serve-0",)), name)


def test_ancestors_that_proc_hides_are_no_guards(name, orphan, monkeypatch):
    """As with hidepid=1: what is above the first process of another user cannot be a guard."""

    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    process = orphan(name)
    monkeypatch.setattr(psutil.Process, "parent", refuse)
    assert pids(find_orphans(NOTHING_KNOWN, name)) == {process.pid}


def test_damaged_records_of_embedded_clusters_are_passed_over(name, orphan, tmp_path):
    process = orphan(name)
    records = tmp_path / "clusters"
    records.mkdir()
    for number, text in enumerate(("", "[1]", "null", "{", '{"marker": 7}')):
        (records / f"{number}.json").write_text(text)
    (records / "folder.json").mkdir()
    (records / "bytes.json").write_bytes(b"\xff\xfe")
    assert pids(find_orphans(NOTHING_KNOWN, name)) == {process.pid}


def test_an_embedded_cluster_is_left_alone_as_long_as_it_is_recorded(name, orphan, tmp_path):
    marker = f"@{name}-1a2b3c4d"
    record = tmp_path / "clusters" / f"{name}.json"
    record.parent.mkdir()
    record.write_text(embedded_record(name, marker))
    cluster, server = orphan(marker), orphan(name)
    assert find_orphans(NOTHING_KNOWN, name) == [], (
        "its servers too, also between two attempts, when no guard lives"
    )
    record.write_text(embedded_record(name, f"@{name}-99999999"))
    assert pids(find_orphans(NOTHING_KNOWN, name)) == {cluster.pid, server.pid}, (
        "the record is of a later one, not alive"
    )
    record.unlink()
    assert pids(find_orphans(NOTHING_KNOWN, name)) == {cluster.pid, server.pid}


def test_the_record_in_the_home_of_the_process_counts_not_in_ours(
    name, orphan, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path / "mine"))
    theirs = tmp_path / "theirs"
    marker = f"@{name}-1a2b3c4d"
    (theirs / "clusters").mkdir(parents=True)
    (theirs / "clusters" / f"{name}.json").write_text(embedded_record(name, marker))
    orphan(marker, theirs)
    assert find_orphans(NOTHING_KNOWN, name) == []


def test_a_marker_names_its_deployment():
    assert deployment_of("@local-dual-1a2b3c4d") == "local-dual"
    assert deployment_of("a2-dual-1a2b3c4d") == "a2-dual-1a2b3c4d"
    assert deployment_of("@plain") == "plain"


def test_the_machine_has_a_name_and_a_key():
    key, host = machine_identity()
    assert key == machine_identity()[0]
    assert host == os.uname().nodename
