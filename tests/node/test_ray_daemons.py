"""The daemons of Ray as /proc shows them. Copies of a shell stand in for them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess

import psutil
import pytest
from standin_servers import wait_until

from raylaunch.node.process.guard import read_process
from raylaunch.node.process.ray_daemons import (
    helpers_of,
    marked_daemons,
    renewed,
    session_daemons,
    session_processes,
)

MARKER = f"@test-daemons-{secrets.token_hex(4)}"
"""Of this process: tests run beside each other."""
NODE = "ab" * 28


@pytest.fixture
def start(tmp_path):
    """Start a stand-in for a daemon: a copy of a shell, with a daemon's name and options."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str, **env: str) -> subprocess.Popen[bytes]:
            program = tmp_path / name
            if not program.exists():
                shutil.copy(shutil.which("bash"), program)
            # An inner process, so that the shell does not replace itself.
            words = ["-c", "sleep 600 & echo; wait", *options]
            process = subprocess.Popen(
                [str(program), *words],
                env={"RAYLAUNCH_DEPLOYMENT": MARKER, "PATH": os.environ["PATH"], **env},
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
            process.stdout.readline()
            # Between fork and exec the inner process looks like the daemon.
            below = psutil.Process(process.pid)
            wait_until(lambda: [one.name() for one in below.children()] == ["sleep"], "its child")
            return process

        yield start


def test_the_daemons_of_a_marker_are_found_the_gcs_first(start):
    raylet = start("raylet", "--session-name=s", f"--node_id={NODE}")
    gcs = start("gcs_server", "--session-name=s")
    start("raylet", "--session-name=s", RAYLAUNCH_DEPLOYMENT="@test-daemons-ffffffff")
    start("dashboard", "--session-name=s")
    found = marked_daemons(MARKER)
    assert [daemon.process.pid for daemon in found] == [gcs.pid, raylet.pid]
    assert [daemon.kind for daemon in found] == ["gcs_server", "raylet"]
    assert found[1].node_id == NODE
    assert ("RAYLAUNCH_DEPLOYMENT", MARKER) in found[1].env
    assert found[1].option("session-name") == "s"
    assert found[1].option("session") == ""


def test_the_daemons_of_a_raylets_session_are_found_and_no_others(start):
    raylet = start("raylet", "--session-name=s")
    gcs = start("gcs_server", "--session-name=s")
    start("raylet", "--session-name=other")
    found = session_daemons(raylet.pid)
    assert [daemon.process.pid for daemon in found] == [gcs.pid, raylet.pid]
    assert session_daemons(os.getpid()) == []
    # With what they have started: here a `sleep` each.
    assert len(session_processes(found)) == 4
    assert {gcs.pid, raylet.pid} < {process.pid for process in session_processes(found)}


def test_a_raylet_is_started_again_as_another_node_and_a_gcs_as_it_was(start, tmp_path):
    session = tmp_path / "session"
    session.mkdir()
    agent_port = f"dashboard_agent_listen_port_{NODE}"
    for name, text in (
        (f"export_{NODE}", "-1"),
        (f"metrics_{NODE}", "4711"),
        (agent_port, "11721"),
    ):
        (session / name).write_text(text)
    socket = tmp_path / "raylet.sock"
    socket.touch()
    start("gcs_server", f"--node-id={NODE}")
    start(
        "raylet",
        f"--node_id={NODE}",
        f"--session_dir={session}",
        f"--raylet_socket_name={socket}",
        f"--dashboard_agent_command=python --node-id={NODE}",
        "--java_worker_command=",
    )
    gcs, raylet = marked_daemons(MARKER)
    assert renewed(gcs) == gcs
    again = renewed(raylet)
    new = again.node_id
    assert len(new) == len(NODE)
    assert new != NODE
    assert NODE not in " ".join(again.argv)
    assert again.argv[-1] == "--java_worker_command="
    assert again.env == raylet.env
    assert not socket.exists()
    assert (session / f"export_{new}").read_text() == "-1"
    port = (session / f"dashboard_agent_listen_port_{new}").read_text()
    assert port == "-1", "its agent wrote a port over it; a raylet that waits for it may exit"
    assert not (session / f"metrics_{new}").exists(), "its agents choose their ports again"


def test_the_agents_of_a_dead_raylet_are_found_by_its_node(start):
    start("raylet", f"--node_id={NODE}")
    (raylet,) = marked_daemons(MARKER)
    agent = start("python3", "dashboard/agent.py", RAY_NODE_ID=NODE)
    start("python3", "dashboard/agent.py", RAY_NODE_ID="cd" * 28)
    start("python3", "a_worker.py", RAY_NODE_ID=NODE)
    assert helpers_of(raylet) == [read_process(agent.pid)]


def test_the_agents_of_the_heads_node_are_not_those_of_the_gcs(start):
    start("gcs_server", f"--node-id={NODE}")
    start("python3", "dashboard/agent.py", RAY_NODE_ID=NODE)
    (gcs,) = marked_daemons(MARKER)
    assert gcs.node_id == NODE
    assert helpers_of(gcs) == []
