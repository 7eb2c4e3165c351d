"""`ray start` of the embedded cluster: a slow machine, and how long it may take."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raylaunch.errors import ClusterError
from raylaunch.runtime.cluster import ray_start

SERVICES = """
tries = []

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
    print(sys.argv[1:], services.get_node("gcs", "id"))
"""


def run_ray_start(folder, limit_s, tries):
    """Run raylaunch's `ray start` with a package `ray` whose node registers at try `tries`."""
    for name, text in (("_private/services.py", SERVICES), ("scripts/scripts.py", SCRIPTS)):
        path = folder / "ray" / name
        path.parent.mkdir(parents=True)
        # Regular packages: others would yield to the installed Ray.
        for package in (path.parent, folder / "ray"):
            (package / "__init__.py").touch()
        path.write_text(text.format(tries=tries) if text is SERVICES else text)
    return subprocess.run(
        [sys.executable, "-c", ray_start.RAY_START, str(limit_s), "words", "of", "start"],
        cwd=folder,
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_raylet_that_registers_late_is_awaited(tmp_path):
    done = run_ray_start(tmp_path, limit_s=300, tries=4)
    assert done.stdout.startswith("['words', 'of', 'start'] "), done.stderr
    assert "'tries': 4" in done.stdout


def test_a_raylet_that_never_registers_is_not_awaited_for_ever(tmp_path):
    done = run_ray_start(tmp_path, limit_s=0, tries=1_000_000)
    assert done.returncode == 1
    assert "RuntimeError: the node is not in the GCS yet" in done.stderr


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


def test_ray_that_fails_is_another_error():
    command = [sys.executable, "-c", "raise SystemExit('the port is in use')"]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        pytest.raises(ClusterError) as caught,
    ):
        ray_start.finish(process)
    assert "exit status 1" in caught.value.what
    assert "the port is in use" in caught.value.evidence
