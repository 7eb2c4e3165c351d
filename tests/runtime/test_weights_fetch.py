"""Downloads over several nodes: who begins when, what failed; depots that answer as told, no cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.errors import ClusterError, NodeError
from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import DownloadProgress, Stock, Wanted, WeightsReport
from raylaunch.recipe.catalog import read
from raylaunch.recipe.model import Sources
from raylaunch.runtime.weights.weights_fetch import fetch, survey

GIB = 2**30
WANTED = Wanted("model", "/m", Sources(modelscope="a/b"))
WHOLE = {"config.json": 1, "model.safetensors": 5 * GIB}


class Depots:
    """Plays the nodes. `ticks`: how often a node is asked until its download is over; `disks`: who shares what."""

    def __init__(
        self,
        disks: dict[str, str],
        *,
        filesystem: str = "ext4",
        ticks: dict[str, int] | None = None,
    ) -> None:
        self.nodes = {node: f"192.0.2.{number}" for number, node in enumerate(disks)}
        self.disks, self.filesystem, self.left = (
            disks,
            filesystem,
            dict.fromkeys(disks, 1) | (ticks or {}),
        )
        self.full: set[str] = set()
        self.answers: dict[tuple[str, str], list] = {}
        self.told: list[tuple] = []
        self.places: dict[str, str] = dict(disks)

    def ask(self, calls, timeout_s):
        return [self._call(*call) for call in calls]

    def _call(self, node, method, arguments):
        if scripted := self.answers.get((node, method)):
            return scripted.pop(0)
        return getattr(self, f"_{method}")(node, *arguments)

    def _look(self, node):
        whole = self.disks[node] in self.full
        files = WHOLE if whole else {}
        seen = Weights(
            "/m", whole, files=files, filesystem=self.filesystem, place=self.places[node]
        )
        return [Stock(self.nodes[node], "", node, WANTED, seen)]

    def _fetch(self, node, role, hub, needed):
        self.told.append(("fetch", node, hub, needed))
        return "modelscope ..."

    def _wait(self, node, role, timeout_s):
        self.told.append(("wait", node))
        self.left[node] -= 1
        if self.left[node] > 0:
            return DownloadProgress(1, 10)
        self.full.add(self.disks[node])
        return DownloadProgress(10, 10, running=False, exit_code=0)

    def _make_tiny(self, node):
        self.told.append(("make_tiny", node))

    def fetched(self) -> list[str]:
        return [one[1] for one in self.told if one[0] == "fetch"]


def run(depots: Depots, hub=None, on_progress=None) -> WeightsReport:
    loaded = read("a2-dual", [])
    fetch(depots, survey(depots, loaded), hub, on_progress)
    return survey(depots, loaded)


def test_local_disks_are_filled_at_the_same_time():
    depots = Depots({"a": "one", "b": "two"}, ticks={"a": 3, "b": 3})
    assert run(depots).is_complete
    assert depots.told[:2] == [("fetch", "a", None, 0), ("fetch", "b", None, 0)]


def test_a_shared_folder_is_downloaded_once():
    depots = Depots({"a": "export", "b": "export"}, filesystem="nfs4")
    assert run(depots).is_complete
    assert depots.fetched() == ["a"]


def test_one_export_under_two_names_is_downloaded_once_and_never_by_two_at_a_time():
    depots = Depots({"a": "export", "b": "export"}, filesystem="nfs4", ticks={"a": 4})
    depots.places = {"a": "nas:/export", "b": "192.0.2.5:/export"}
    assert run(depots).is_complete
    assert depots.fetched() == ["a"], "the second look found it whole"


def test_two_exports_take_turns():
    depots = Depots({"a": "one", "b": "two"}, filesystem="nfs4", ticks={"a": 3})
    assert run(depots).is_complete
    assert [one[:2] for one in depots.told] == [
        ("fetch", "a"),
        *[("wait", "a")] * 3,
        ("fetch", "b"),
        ("wait", "b"),
    ]


def test_what_is_whole_is_left_alone():
    depots = Depots({"a": "one", "b": "two"})
    depots.full = {"one", "two"}
    assert run(depots).is_complete
    assert depots.told == []


def test_the_size_that_another_node_knows_is_asked_for():
    depots = Depots({"a": "one", "b": "two"})
    depots.full = {"one"}
    run(depots, hub="modelscope")
    assert depots.told[0] == ("fetch", "b", "modelscope", 5 * GIB + 1)


def test_a_failure_does_not_stop_the_others():
    depots = Depots({"a": "one", "b": "two"}, ticks={"b": 5})
    broken = DownloadProgress(
        running=False, exit_code=1, log="/logs/m.log", tail=("", "ERROR: no such repository")
    )
    depots.answers["a", "wait"] = [broken]
    with pytest.raises(NodeError) as failure:
        run(depots)
    assert "on node 192.0.2.0 ended with exit code 1" in failure.value.what
    assert "no such repository" in failure.value.evidence
    assert "/logs/m.log" in failure.value.todo
    assert depots.full == {"two"}


def test_several_failures_are_all_told():
    depots = Depots({"a": "one", "b": "two", "c": "three"})
    depots.answers["a", "fetch"] = [NodeError("node a has no program", todo="install it")]
    depots.answers["b", "wait"] = [ClusterError("node b was lost")]
    with pytest.raises(NodeError, match="2 downloads failed") as failure:
        run(depots)
    assert "node a has no program" in failure.value.evidence
    assert "node b was lost" in failure.value.evidence
    assert failure.value.todo == "install it"
    assert depots.full == {"three"}


def test_progress_is_told_of_all_that_run():
    depots, told = Depots({"a": "one", "b": "two"}, ticks={"b": 2}), []
    run(
        depots,
        on_progress=lambda seen: told.append([(stock.node_id, one.running) for stock, one in seen]),
    )
    assert told == [[("a", False), ("b", True)], [("b", False)]]


def test_a_node_without_an_answer_is_reported_and_not_downloaded_to():
    depots = Depots({"a": "one", "b": "two"})
    lost = ClusterError("node 192.0.2.1 did not answer in 90 s (look)")
    depots.answers["b", "look"] = [lost, lost]
    report = run(depots)
    assert [stock.state for stock in report.stocks] == ["complete", "unknown"]
    assert not report.is_complete
    assert depots.fetched() == ["a"]


def test_a_tiny_model_is_made_not_downloaded():
    depots = Depots({"a": "one"})
    loaded = read("local-dual", [])
    report = survey(depots, loaded)
    tiny = replace(
        report,
        stocks=tuple(
            replace(stock, wanted=Wanted("model", "", tiny="qwen3")) for stock in report.stocks
        ),
    )
    assert tiny.is_complete, "the first start makes it"
    fetch(depots, tiny, None)
    assert depots.told == [("make_tiny", "a")]
