"""`ray start` of the embedded cluster: a slow machine, and how long it may take."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys

import pytest

from raylaunch.errors import ClusterError
from raylaunch.runtime.cluster import ray_start

RAYLET = """
DASHBOARD_AGENT_LISTEN_PORT_NAME = "listen"
persisted = []

def persist_port(*words):
    persisted.append(words)
"""
SERVICES = """
from ray import _raylet

tries = []

def start_raylet(address, node_id, *, session_dir):
    assert _raylet.persisted == [("/session", "n1", "listen", -1)]

def get_node(*words):
    tries.append(words)
    if len(tries) < {tries}:
        raise RuntimeError("the node is not in the GCS yet")
    return {{"node": words, "tries": len(tries)}}
"""
SCRIPTS = """
import sys
from ray._private import services

def main():
    services.start_raylet("gcs", "n1", session_dir="/session")
    print(sys.argv[1:], services.get_node("gcs", "id"))
"""
SCRIPTS_OF_A_DEAD_RAYLET = """
import subprocess, sys
from ray._private import services

def main():
    raylet = subprocess.Popen([sys.argv[1]])
    services.get_node("gcs", "id")
"""


def run_ray_start(folder, limit_s, tries, *words, scripts=SCRIPTS):
    """Run raylaunch's `ray start` with a package `ray` whose node registers at try `tries`."""
    for name, text in (
        ("_private/services.py", SERVICES),
        ("scripts/scripts.py", scripts),
        ("_raylet.py", RAYLET),
    ):
        path = folder / "ray" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Regular packages: others would yield to the installed Ray.
        for package in (path.parent, folder / "ray"):
            (package / "__init__.py").touch()
        path.write_text(text.format(tries=tries) if text is SERVICES else text)
    return subprocess.run(
        [sys.executable, "-c", ray_start.RAY_START, str(limit_s), *words],
        cwd=folder,
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_raylet_that_registers_late_is_awaited_and_knows_that_there_is_no_job_server(tmp_path):
    done = run_ray_start(tmp_path, 300, 4, "words", "of", "start")
    assert done.stdout.startswith("['words', 'of', 'start'] "), done.stderr
    assert "'tries': 4" in done.stdout


def test_a_raylet_that_never_registers_is_not_awaited_for_ever(tmp_path):
    done = run_ray_start(tmp_path, 0, 1_000_000)
    assert done.returncode == 1
    assert "RuntimeError: the node is not in the GCS yet" in done.stderr


def test_a_raylet_that_has_exited_is_not_awaited_and_its_reason_is_printed(tmp_path):
    raylet = tmp_path / "raylet"
    shutil.copy(shutil.which("true"), raylet)
    log = tmp_path / "session_latest" / "logs" / "raylet.err"
    log.parent.mkdir(parents=True)
    log.write_text("Check failed: Timed out waiting for file metrics_agent_port")
    words = (str(raylet), f"--temp-dir={tmp_path}")
    done = run_ray_start(tmp_path, 3600, 1_000_000, *words, scripts=SCRIPTS_OF_A_DEAD_RAYLET)
    assert done.returncode == 1
    assert "Ray's raylet has exited: Check failed: Timed out waiting for file" in done.stderr


def test_the_ports_of_rays_agents_are_given_and_free_and_no_two_nodes_share_one():
    nodes = ray_start.agent_ports(400)
    ports = [option.split("=")[1] for options in nodes for option in options]
    assert len(ports) == len(set(ports)) == 4 * 400
    assert all(len(dict(option.split("=") for option in options)) == 4 for options in nodes)
    for port in ports[:8]:
        with socket.socket() as probe:
            probe.bind((ray_start.LOOPBACK, int(port)))


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit('Exception: The current node timed out during startup. This could')",
        "import time; print('Ray waits', flush=True); time.sleep(3600)",
        # A daemon keeps the output open after `ray start` was killed.
        "import subprocess, time; subprocess.Popen(['sleep', '20']); time.sleep(3600)",
    ],
    ids=["ray-gave-up", "silent", "silent-with-a-daemon"],
)
def test_ray_that_takes_too_long_is_an_error_of_its_own(monkeypatch, code):
    monkeypatch.setattr(ray_start, "START_TIMEOUT_S", 60.0 if "SystemExit" in code else 1.0)
    monkeypatch.setattr(ray_start, "_KILLED_S", 0.5)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        with pytest.raises(ClusterError) as caught:
            ray_start.finish(process)
        assert process.wait() != 0
    assert caught.value.what.startswith(ray_start.TOO_LATE)
    assert "load average" in caught.value.why


NO_CANN = """\
2026-11-28 11:43:08,156\tERROR npu.py:82 -- Failed to detect NPU type.
Traceback (most recent call last):
  File "ray/_private/accelerators/npu.py", line 78, in get_current_node_accelerator_type
    import acl
ModuleNotFoundError: No module named 'acl'
"""


def test_ray_that_fails_is_another_error():
    code = f"print({2 * NO_CANN!r}); raise SystemExit('the port is in use')"
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        pytest.raises(ClusterError) as caught,
    ):
        ray_start.finish(process)
    assert "exit status 1" in caught.value.what
    assert caught.value.evidence == "the port is in use", "without what Ray always logs"
