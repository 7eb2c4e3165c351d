"""check and clean on real Ray: what they find, and that they leave the cluster as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray_clusters import STANDIN, RayNodes, await_true, clean_env, free_ports, model_folder

from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked
from raylaunch.recipe.group_names import GATEWAY_GROUP

pytestmark = pytest.mark.ray

WAIT = "import signal, sys; print('up', flush=True); signal.pause()"

HELD_UP = """
import asyncio
from raylaunch.cli.app import main
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller import preflight

async def hang(gang, *_, **__):
    gang.create(placement.slots(gang.reservation))
    await gang.demand_all(lambda agent: agent.hello())
    print("looking", flush=True)
    await asyncio.Event().wait()

preflight._probe_and_plan = hang
main()
"""
"""The program, but its look at the nodes takes for ever, so that a signal surely meets it there."""

STATE = """
import json, ray
from ray.util import list_named_actors, placement_group_table
ray.init(address={address!r}, log_to_driver=False, logging_level=50)
groups = [group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
actors = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
print(json.dumps([groups, actors, ray.available_resources().get("NPU", 0)]))
"""


@pytest.fixture
def person(user):
    """A user of the open cluster of these tests."""
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    return user


@pytest.fixture
def orphan():
    """Start processes that carry the mark of a deployment that does not run."""
    started = []

    def start(deployment: str) -> subprocess.Popen[str]:
        env = {**os.environ, "RAYLAUNCH_DEPLOYMENT": deployment, "RAYLAUNCH_ATTEMPT": "2"}
        process = subprocess.Popen(
            [sys.executable, "-c", WAIT], env=env, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def state(person, ray_nodes):
    """What the cluster holds: reservations, named actors, free NPUs."""
    return json.loads(person.python(STATE.format(address=ray_nodes.address)).out.splitlines()[-1])


def assert_untouched(person, ray_nodes):
    """Ray takes a moment to give NPUs back, and tells nobody."""
    await_true(lambda: state(person, ray_nodes) == [[], [], 16.0], "nothing reserved, no actor", 60)


def settings(short_folder, model=None):
    http, rpc = free_ports(2)
    return [
        *("--set", f"model.path={model or model_folder(short_folder / 'model')}"),
        *("--set", f"network.http_port={http}", "--set", f"network.rpc_port={rpc}"),
    ]


def test_check_looks_from_the_nodes_and_lets_go_of_everything(
    person, ray_nodes, short_folder, orphan
):
    sets = settings(short_folder)
    fine = person.run(
        "check",
        "a2-dual",
        "--name",
        "test-fine",
        "--address",
        ray_nodes.address,
        *sets,
        "-o",
        "json",
    )
    assert fine.code == 0, fine.out + fine.err
    assert fine.json()["worst"] != "error"
    assert len(fine.json()["hosts"]) == 2
    assert_untouched(person, ray_nodes)

    old = orphan("test-old")
    gone = settings(short_folder, model="/does/not/exist")
    words = ("check", "a2-dual", "--name", "test-old", "--address", ray_nodes.address, *gone)
    bad = person.run(*words, "-o", "json")
    assert bad.code == 4, bad.out + bad.err
    errors = {finding["id"] for finding in bad.json()["findings"] if finding["level"] == "error"}
    assert {"model-missing", "leftovers"} <= errors, "all at once"
    assert str(old.pid) in bad.out
    skips = [word for one in errors for word in ("--skip-check", f"{one}=known")]
    skipped = person.run(*words, *skips)
    assert skipped.code == 0, skipped.out + skipped.err
    assert "(skipped: known)" in skipped.out
    assert_untouched(person, ray_nodes)


def test_a_vllm_is_asked_for_its_flags_once_and_not_waited_for_by_start(
    person, ray_nodes, short_folder
):
    asked = ray_nodes.folder.parent / "asked"
    memory = Path(ray_nodes.env["RAYLAUNCH_HOME"]) / "vllm-flags"
    shutil.rmtree(memory, ignore_errors=True)
    asked.unlink(missing_ok=True)
    words = (
        "a2-dual",
        "--name",
        "test-ask",
        "--address",
        ray_nodes.address,
        *settings(short_folder),
    )
    started = person.run("start", *words)
    assert started.code == 0, started.out + started.err
    assert person.run("stop", "test-ask", "--address", ray_nodes.address).code == 0
    wrong = ("--set", "args.mm-processor-cache-type=shn", "--set", "args.max-num-sqs=3")
    counts = []
    for verb in ("check", "start", "check"):
        refused = person.run(verb, *words, *wrong, "-o", "json")
        assert refused.code == 4, refused.out + refused.err
        assert "did you mean shm?" in refused.out + refused.err
        assert "did you mean max-num-seqs?" in refused.out + refused.err
        counts.append(len(asked.read_text().splitlines()))
    assert list(memory.glob("*.json"))
    assert len(set(counts)) == 1, (
        "once it is remembered nobody asks again; both nodes are one machine with one vLLM"
    )
    assert_untouched(person, ray_nodes)


def test_a_host_with_an_older_vllm_is_refused_with_its_name_and_the_flag(person, short_folder):
    """Two nodes of different images: only the second lacks a flag that every server is given."""
    old = short_folder / "old"
    old.mkdir()
    for name in ("vllm", "python3"):
        wrapper = old / name
        wrapper.write_text(
            f'#!/bin/sh\nexport STANDIN_WITHOUT=data-parallel-rpc-port\nexec {STANDIN.with_name(name)} "$@"\n'
        )
        wrapper.chmod(0o755)
    (short_folder / "record").mkdir()
    env = {
        "RAYLAUNCH_VLLM": str(STANDIN),
        "STANDIN_RECORD": str(short_folder / "record"),
        "RAY_AUTH_MODE": "disabled",
    }
    nodes = RayNodes(
        short_folder / "ray", short_folder / "record", clean_env(short_folder / "home", **env)
    )
    try:
        nodes.start([8])
        nodes.env["RAYLAUNCH_VLLM"] = str(old / "vllm")
        nodes.env["RAYLAUNCH_HOME"] = str(short_folder / "home-of-the-other")
        nodes.add(8)
        words = (
            "a2-dual",
            "--name",
            "test-older",
            "--address",
            nodes.address,
            *settings(short_folder),
        )
        checked = person.run("check", *words, "-o", "json")
        assert checked.code == 4, checked.out + checked.err
        [error] = [one for one in checked.json()["findings"] if one["level"] == "error"]
        assert error["id"] == "unknown-flag"
        assert "--data-parallel-rpc-port" in error["what"]
        assert error["where"] == nodes.address.rpartition(":")[0]
        assert "install one version of" in error["todo"]
        refused = person.run("start", *words)
        assert refused.code == 4, refused.out + refused.err
        assert "no flag --data-parallel-rpc-port" in refused.out + refused.err
        assert find_marked("test-older") == [], "nothing was launched"
    finally:
        nodes.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_check_leaves_nothing_reserved(person, ray_nodes, short_folder, number):
    words = ["check", "a2-dual", "--address", ray_nodes.address, *settings(short_folder)]
    checking = subprocess.Popen(
        [sys.executable, "-c", HELD_UP, *words], env=person.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert checking.stdout.readline() == "looking\n"
        groups, actors, free = state(person, ray_nodes)
        assert (len(groups), len(actors), free) == (1, 2, 0)
    finally:
        checking.send_signal(number)
        said = checking.communicate(timeout=60)[0]
    assert checking.returncode == (130 if number == signal.SIGTERM else -9), said
    assert_untouched(person, ray_nodes)


def test_check_without_a_cluster_looks_at_this_machine_and_starts_nothing(user, standin, ports):
    user.extra = standin
    fine = user.run("check", "local-dual", *ports)
    assert fine.code == 0, fine.out + fine.err
    assert "ready to start" in fine.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = user.run("check", "local-dual", "--set", f"network.http_port={port}", "-o", "json")
    assert busy.code == 4, busy.out + busy.err
    assert "port-busy" in {finding["id"] for finding in busy.json()["findings"]}
    assert not list((user.home / "clusters").glob("*"))


def test_clean_ends_what_an_accident_left_and_nothing_else(person, ray_nodes, short_folder, orphan):
    running, lost, other = "test-runs", "test-lost", "test-other"
    address = ("--address", ray_nodes.address)
    started = person.run("start", "a2-dual", "--name", running, *address, *settings(short_folder))
    assert started.code == 0, started.out + started.err
    try:
        leftovers, spared = [orphan(lost), orphan(lost)], orphan(other)
        servers = {found.pid for found in find_marked(running)}
        looked = person.run("clean", "--deployment", lost, *address, "-o", "json")
        assert looked.code == 11, looked.out + looked.err
        assert {one["pid"] for one in looked.json()["found"]} == {
            process.pid for process in leftovers
        }
        assert all(process.poll() is None for process in leftovers), "without --yes it only looks"

        assert person.run("clean", "--deployment", running, *address, "--yes").code == 0
        assert {found.pid for found in find_marked(running)} >= servers

        ended = person.run("clean", "--deployment", lost, *address, "--yes")
        assert ended.code == 0, ended.out + ended.err
        assert str(leftovers[0].pid) in ended.out
        assert [process.wait(60) for process in leftovers] == [-signal.SIGTERM] * 2
        assert spared.poll() is None
        assert person.run("status", running, *address).code == 0
    finally:
        stopped = person.run("stop", running, *address)
    assert stopped.code == 0, stopped.out + stopped.err


def test_clean_gives_back_what_agents_without_a_controller_hold(person, ray_nodes, short_folder):
    name, address = "test-headless", ("--address", ray_nodes.address)
    started = person.run("start", "a2-dual", "--name", name, *address, *settings(short_folder))
    assert started.code == 0, started.out + started.err
    kill = f"""
import ray
ray.init(address={ray_nodes.address!r}, log_to_driver=False, logging_level=50)
ray.kill(ray.get_actor("controller:{name}", "raylaunch"), no_restart=True)
"""
    assert person.python(kill).code == 0
    cleaned = person.run("clean", "--deployment", name, *address, "--yes")
    assert cleaned.code == 0, cleaned.out + cleaned.err
    assert "its controller is gone" in cleaned.out
    assert find_marked(name) == []
    assert_untouched(person, ray_nodes)


def test_clean_removes_the_record_of_an_embedded_cluster_that_is_gone(user, standin, ports):
    """As after a crash of the machine, or when somebody ends Ray by hand."""
    user.extra = standin
    assert user.run("start", "local-dual", "--name", "test-crash", *ports).code == 0
    record = user.home / "clusters" / "test-crash.json"
    known = json.loads(record.read_text())
    kept = user.run("clean", "--deployment", "test-crash", "--yes")
    assert kept.code == 0, kept.out + kept.err
    assert user.run("status", "test-crash").code == 0, "a cluster that lives is not touched"

    terminate_marked(known["marker"], instance=ANY_INSTANCE, grace_s=0)
    assert Path(known["folder"]).is_dir()
    assert Path(known["folder"]).parent == Path(tempfile.gettempdir())
    assert {one.group for one in find_marked("test-crash")} >= {GATEWAY_GROUP, "serve-0"}, (
        "gateway and servers wait for another controller"
    )
    assert user.run("clean", "--deployment", "test-crash").code == 11
    cleaned = user.run("clean", "--deployment", "test-crash", "--yes")
    assert cleaned.code == 0, cleaned.out + cleaned.err
    assert not record.exists()
    assert not Path(known["folder"]).exists()
    assert find_marked("test-crash") == []
