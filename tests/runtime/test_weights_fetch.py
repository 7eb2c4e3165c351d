"""Downloads over several nodes: the order, and what failed. Fake nodes, no cluster."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from raylaunch.errors import ClusterError, NodeError, RaylaunchError
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import DownloadProgress, Stock, Wanted, WeightsReport
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import recipe_from_mapping
from raylaunch.recipe.model import Sources
from raylaunch.runtime.weights import weights_handle
from raylaunch.runtime.weights.weights_fetch import fetch, survey
from raylaunch.runtime.weights.weights_handle import WeightsNodes

GIB = 2**30
WANTED = Wanted("model", "/m", Sources(modelscope="a/b"))
WHOLE = {"config.json": 1, "model.safetensors": 5 * GIB}


@dataclass
class FakeNode:
    """A node whose disk is `disk`; its download exits at the `polls`-th poll."""

    cluster: FakeCluster
    node_id: str
    host: str
    disk: str
    polls: int
    answers: dict[str, list] = field(default_factory=dict)
    """What a method answers first, by its name; an error is raised."""

    def _scripted(self, method):
        scripted = self.answers.get(method)
        if not scripted:
            return None
        answer = scripted.pop(0)
        if isinstance(answer, RaylaunchError):
            raise answer
        return answer

    async def inspect(self):
        self._scripted("inspect")
        whole = self.disk in self.cluster.full
        seen = Weights(
            "/m",
            whole,
            files=WHOLE if whole else {},
            filesystem=self.cluster.filesystem,
            place=self.cluster.places[self.node_id],
        )
        return [Stock(self.host, "", self.node_id, WANTED, seen)]

    async def start_download(self, *, role, hub, needed_bytes):
        self._scripted("start_download")
        self.cluster.calls.append(("start_download", self.node_id, hub, needed_bytes))
        return "modelscope ..."

    async def wait(self, *, role, wait_s):
        if scripted := self._scripted("wait"):
            return scripted
        self.cluster.calls.append(("wait", self.node_id))
        self.polls -= 1
        if self.polls > 0:
            return DownloadProgress(1, 10)
        self.cluster.full.add(self.disk)
        return DownloadProgress(10, 10, running=False, exit_code=0)

    async def make_tiny(self):
        self.cluster.calls.append(("make_tiny", self.node_id))


class FakeCluster:
    """Fake nodes; `disks` says which of them share one."""

    def __init__(
        self,
        disks: dict[str, str],
        *,
        filesystem: str = "ext4",
        polls: dict[str, int] | None = None,
    ) -> None:
        self.filesystem = filesystem
        self.full: set[str] = set()
        self.calls: list[tuple] = []
        self.places: dict[str, str] = dict(disks)
        all_polls = dict.fromkeys(disks, 1) | (polls or {})
        self.by_id = {
            node_id: FakeNode(self, node_id, f"192.0.2.{number}", disk, all_polls[node_id])
            for number, (node_id, disk) in enumerate(disks.items())
        }

    @property
    def nodes(self) -> WeightsNodes:
        return WeightsNodes(
            dict(self.by_id), {node_id: node.host for node_id, node in self.by_id.items()}
        )

    def downloads(self) -> list[str]:
        return [one[1] for one in self.calls if one[0] == "start_download"]


def run(cluster: FakeCluster, hub=None, on_progress=None) -> WeightsReport:
    loaded = read("a2-dual", [])

    async def work():
        await fetch(cluster.nodes, await survey(cluster.nodes, loaded), hub, on_progress)
        return await survey(cluster.nodes, loaded)

    return asyncio.run(work())


def test_local_disks_are_filled_at_the_same_time():
    cluster = FakeCluster({"a": "one", "b": "two"}, polls={"a": 3, "b": 3})
    assert run(cluster).is_complete
    assert cluster.calls[:2] == [("start_download", "a", None, 0), ("start_download", "b", None, 0)]


def test_a_shared_folder_is_downloaded_once():
    cluster = FakeCluster({"a": "export", "b": "export"}, filesystem="nfs4")
    assert run(cluster).is_complete
    assert cluster.downloads() == ["a"]


def test_one_export_under_two_names_is_downloaded_once_and_never_by_two_at_a_time():
    cluster = FakeCluster({"a": "export", "b": "export"}, filesystem="nfs4", polls={"a": 4})
    cluster.places = {"a": "nas:/export", "b": "192.0.2.5:/export"}
    assert run(cluster).is_complete
    assert cluster.downloads() == ["a"], "the second look found it whole"


def test_two_exports_take_turns():
    cluster = FakeCluster({"a": "one", "b": "two"}, filesystem="nfs4", polls={"a": 3})
    assert run(cluster).is_complete
    assert [one[:2] for one in cluster.calls] == [
        ("start_download", "a"),
        *[("wait", "a")] * 3,
        ("start_download", "b"),
        ("wait", "b"),
    ]


def test_what_is_whole_is_left_alone():
    cluster = FakeCluster({"a": "one", "b": "two"})
    cluster.full = {"one", "two"}
    assert run(cluster).is_complete
    assert cluster.calls == []


def test_the_size_that_another_node_knows_is_asked_for():
    cluster = FakeCluster({"a": "one", "b": "two"})
    cluster.full = {"one"}
    run(cluster, hub="modelscope")
    assert cluster.calls[0] == ("start_download", "b", "modelscope", 5 * GIB + 1)


def test_a_failure_does_not_stop_the_others():
    cluster = FakeCluster({"a": "one", "b": "two"}, polls={"b": 5})
    broken = DownloadProgress(
        running=False, exit_code=1, log="/logs/m.log", tail=("", "ERROR: no such repository")
    )
    cluster.by_id["a"].answers["wait"] = [broken]
    with pytest.raises(NodeError) as failure:
        run(cluster)
    assert "on node 192.0.2.0 failed: exit code 1" in failure.value.what
    assert "no such repository" in failure.value.evidence
    assert "/logs/m.log" in failure.value.todo
    assert cluster.full == {"two"}


def test_several_failures_are_all_reported():
    cluster = FakeCluster({"a": "one", "b": "two", "c": "three"})
    cluster.by_id["a"].answers["start_download"] = [
        NodeError("node a has no program", todo="install it")
    ]
    cluster.by_id["b"].answers["wait"] = [ClusterError("node b was lost")]
    with pytest.raises(NodeError, match="2 downloads failed") as failure:
        run(cluster)
    assert "node a has no program" in failure.value.evidence
    assert "node b was lost" in failure.value.evidence
    assert failure.value.todo == "install it"
    assert cluster.full == {"three"}


def test_progress_is_reported_of_all_that_run():
    cluster = FakeCluster({"a": "one", "b": "two"}, polls={"b": 2})
    reports = []

    def on_progress(progress):
        reports.append([(stock.node_id, one.running) for stock, one in progress])

    run(cluster, on_progress=on_progress)
    assert reports == [[("a", False), ("b", True)], [("b", False)]]


def test_a_node_without_an_answer_is_reported_and_not_downloaded_to():
    cluster = FakeCluster({"a": "one", "b": "two"})
    lost = ClusterError("node 192.0.2.1 did not answer in 90 s (inspect)")
    cluster.by_id["b"].answers["inspect"] = [lost, lost]
    report = run(cluster)
    assert [stock.state for stock in report.stocks] == ["complete", "unknown"]
    assert not report.is_complete
    assert cluster.downloads() == ["a"]


def test_a_tiny_model_is_made_not_downloaded():
    cluster = FakeCluster({"a": "one"})
    loaded = read("local-dual", [])
    report = asyncio.run(survey(cluster.nodes, loaded))
    tiny = replace(
        report,
        stocks=tuple(
            replace(stock, wanted=Wanted("model", "", tiny="qwen3")) for stock in report.stocks
        ),
    )
    assert tiny.is_complete, "the first start makes it"
    asyncio.run(fetch(cluster.nodes, tiny, None))
    assert cluster.calls == [("make_tiny", "a")]


def test_the_nodes_of_the_smallest_group_need_the_weights_too(monkeypatch):
    sizes = {"192.0.2.10": 16, "192.0.2.11": 8, "192.0.2.12": 4}
    nodes = [
        {"NodeID": ip, "NodeManagerAddress": ip, "Resources": {"NPU": npus}}
        for ip, npus in sizes.items()
    ]
    monkeypatch.setattr(weights_handle, "alive_nodes", lambda: nodes)
    loaded = recipe_from_mapping(
        {
            "model": {"path": "/m", "served_name": "m"},
            "hardware": {"platform": "ascend-a3"},
            "parallel": {"tensor": 16},
            "groups": [{"name": "big"}, {"name": "small", "parallel": {"tensor": 8}}],
        },
        "r",
    )
    assert list(weights_handle._fitting_hosts(loaded)) == ["192.0.2.10", "192.0.2.11"]
