"""Fixtures of the runtime tests: a user with a home, Ray nodes that end with the test, nothing left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from own_processes import kill_own
from ray_clusters import STANDIN, RayNodes, User, clean_env, free_ports

from raylaunch.runtime.cluster.local_cleanup import stop_local


@pytest.fixture
def short_folder():
    """A folder with a short path: Ray's sockets may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def user(short_folder, request):
    """Somebody with a new home. Afterwards whatever was started from it is ended, and its logs kept on failure."""
    person = User(short_folder / "home")
    yield person
    for record in (person.home / "clusters").glob("*.json"):
        stop_local(person.home, record.stem)


@pytest.fixture
def standin(short_folder):
    """Settings that put the stand-in in vLLM's place, and the folder where it records what reached it."""
    return _standin(short_folder)


@pytest.fixture
def ports():
    """Assignments that move a recipe to free ports."""
    http, rpc = free_ports(2)
    return ["--set", f"network.http_port={http}", "--set", f"network.rpc_port={rpc}"]


@pytest.fixture(scope="module")
def ray_nodes():
    """Two Ray nodes with 8 declared NPUs each, without authentication, running the stand-in; one pair per file."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    nodes = RayNodes(
        folder / "ray", folder / "record", clean_env(folder / "home", **_RAY, **_standin(folder))
    )
    try:
        nodes.start([8, 8])
        yield nodes
    finally:
        nodes.stop()
        kill_own("test-")
        shutil.rmtree(folder, ignore_errors=True)


_RAY = {"RAY_AUTH_MODE": "disabled"} | ({} if os.geteuid() == 0 else {"RAY_worker_niceness": "0"})
"""Root undoes the niceness 15 that Ray gives its workers; anybody else must have it set at `ray start`."""


def _standin(folder: Path) -> dict[str, str]:
    record = folder / "record"
    record.mkdir()
    return {
        "RAYLAUNCH_VLLM": str(STANDIN),
        "STANDIN_RECORD": str(record),
        "STANDIN_ASKED": str(folder / "asked"),
    }
