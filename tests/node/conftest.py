"""A deployment of a test's own, of which nothing may be left, and the log of its server."""

from __future__ import annotations

import uuid

import pytest

from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked


@pytest.fixture
def deployment():
    name = f"test-{uuid.uuid4().hex}"
    yield name
    left = find_marked(name)
    terminate_marked(name, instance=ANY_INSTANCE, grace_s=0)
    assert left == []


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "server-0.log"
