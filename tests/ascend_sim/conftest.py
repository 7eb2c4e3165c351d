"""These tests run in an environment of their own: `make test-ascend`.

Elsewhere vllm-ascend is not installed and none of them is collected.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm_ascend") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "hosts"))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts of an Atlas A2 cluster, h0 and h1, and `desk`: the operator's machine."""
    from hosts import build_hosts

    with ExitStack() as stack:
        yield build_hosts(["h0", "h1", "desk"], tmp_path_factory.mktemp("hosts"), stack)


@pytest.fixture(scope="module")
def cluster(hosts):
    """A Ray cluster over both hosts, which hold a tiny MiniMax-M2 in place of the weights."""
    from ray_hosts import write_cluster_file
    from simulated_hosts import install

    for number in range(2):
        install(hosts[number], number)
    cluster = write_cluster_file(hosts, "a2-dual", "--bare")
    cluster.up(npus=16)
    return cluster
