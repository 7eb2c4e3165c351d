"""Fixtures of the tests that need hosts of their own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hosts import build_hosts
from ray_hosts import write_cluster_file


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """Hosts h0 and h1, and `desk`: the machine of the person who runs `ray up`."""
    with ExitStack() as stack:
        yield build_hosts(["h0", "h1", "desk"], tmp_path_factory.mktemp("hosts"), stack)


@pytest.fixture(scope="module")
def ray_cluster_on_hosts(two_hosts):
    """A cluster of 16 NPUs, brought up on both hosts by `ray up` with a bare file.

    The hosts' end ends it.
    """
    cluster = write_cluster_file(two_hosts, "a2-dual", "--bare")
    cluster.up(npus=16)
    return cluster
