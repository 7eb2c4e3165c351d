"""Files for `ray up`: what raylaunch reads of them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raylaunch.errors import ClusterFileError
from raylaunch.recipe.cluster_yaml import read_cluster_file

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "cluster_name: c\nauth: {ssh_user: u}\nprovider: {type: local, head_ip: 192.0.2.10, worker_ips: [192.0.2.11]}\n"


@pytest.mark.parametrize("name", ["a2-dual", "a3-single", "bare"])
def test_the_shipped_files_are_read(name):
    found = read_cluster_file((ROOT / "cluster" / f"{name}.yaml").read_text(), name)
    assert (found.name, found.head_ip, found.user) == (name, "192.0.2.10", "root")
    assert found.workers == (() if name == "a3-single" else ("192.0.2.11",))
    assert found.min_workers == len(found.workers)
    assert (found.container is None) == (name == "bare")


def test_what_ray_up_makes_of_it_says_how_many_workers_start():
    completed = {
        "cluster_name": "c",
        "auth": {"ssh_user": "u"},
        "docker": {},
        "provider": {
            "type": "local",
            "head_ip": "192.0.2.10",
            "worker_ips": ["192.0.2.11", "192.0.2.12"],
        },
        "available_node_types": {"local.cluster.node": {"min_workers": 1, "max_workers": 2}},
    }
    assert read_cluster_file(json.dumps(completed), "f").min_workers == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", "is not a file for `ray up`"),
        ("model: {path: /m}", "is not a file for `ray up`"),
        (LOCAL.replace("head_ip: 192.0.2.10, ", ""), "is not a file for `ray up`"),
        (LOCAL.replace("type: local", "type: aws"), "provider 'aws'"),
    ],
)
def test_another_file_is_refused(text, told):
    with pytest.raises(ClusterFileError, match=told) as refused:
        read_cluster_file(text, "some.yaml")
    assert "some.yaml" in refused.value.what
