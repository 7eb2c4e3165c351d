"""Which weights a recipe wants, the commands that bring them, and who downloads for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.plan.facts import Weights
from raylaunch.plan.wanted_weights import (
    Stock,
    Wanted,
    download_argv,
    downloader,
    hubs_of,
    is_network,
    lanes,
    wanted_weights,
)
from raylaunch.recipe.catalog import read
from raylaunch.recipe.model import Sources

BOTH = Sources(modelscope="MiniMax/MiniMax-M2.5", huggingface="MiniMaxAI/MiniMax-M2.5")
WHOLE = {"config.json": 1, "model.safetensors": 5}


def stock(
    node: str, *, place: str = "", disk: str = "ext4", whole: bool = False, role="model", **changes
) -> Stock:
    seen = Weights(
        "/m", whole, files=WHOLE if whole else {}, filesystem=disk, place=place or f"disk of {node}"
    )
    return replace(Stock(node, "", node, Wanted(role, "/m", BOTH), seen), **changes)


def names(found: list[list[list[Stock]]]) -> list[list[list[str]]]:
    return [[[each.node_id for each in group] for group in lane] for lane in found]


def test_the_guides_commands():
    """https://modelscope.cn: modelscope/cli/download.py; `hf download --help` of huggingface_hub 2.4."""
    (wanted,) = wanted_weights(read("a2-dual", []).recipe)
    folder = "/opt/data/verification/models/MiniMax-M2.5"
    assert download_argv("modelscope", wanted) == (
        *("modelscope", "download", "--model", "MiniMax/MiniMax-M2.5"),
        *("--local_dir", folder),
    )
    assert download_argv("huggingface", wanted, "/usr/bin/hf") == (
        *("/usr/bin/hf", "download", "MiniMaxAI/MiniMax-M2.5"),
        *("--local-dir", folder),
    )
    assert hubs_of(wanted) == ("modelscope", "huggingface")


def test_a_source_that_is_not_named_has_no_command():
    wanted = Wanted("model", "/m", Sources(huggingface="a/b"))
    assert download_argv("modelscope", wanted) is None
    assert hubs_of(wanted) == ("huggingface",)


def test_a_drafter_of_its_own_is_wanted_too_and_one_within_the_model_is_not():
    roles = {
        name: [one.role for one in wanted_weights(read(name, []).recipe)]
        for name in ("a3-single", "glm-4.7-a2-dual")
    }
    assert roles == {"a3-single": ["model", "drafter"], "glm-4.7-a2-dual": ["model"]}
    off = read("a3-single", ["features.speculative.enabled=false"]).recipe
    assert [one.role for one in wanted_weights(off)] == ["model"]


def test_a_drafter_by_a_hubs_name_is_vllms_own_to_fetch():
    sets = ["features.speculative.model=yuhuili/EAGLE3", "features.speculative.method=eagle3"]
    assert [one.role for one in wanted_weights(read("a3-single", sets).recipe)] == ["model"]


def test_sources_of_the_drafter_are_not_for_vllm():
    recipe = read("a3-single", ["features.speculative.sources={modelscope: a/b}"]).recipe
    assert "sources" not in recipe.features.speculative.config()
    assert wanted_weights(recipe)[1].sources.modelscope == "a/b"


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "lustre", "fuse.juicefs", "fuse", "ceph", "virtiofs"]
)
def test_network_filesystems(kind):
    assert is_network(kind)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "fuse.lxcfs", "", None]
)
def test_local_filesystems(kind):
    assert not is_network(kind)


def test_local_disks_are_filled_side_by_side():
    assert names(lanes([stock("a"), stock("b"), stock("c", whole=True)])) == [[["a"]], [["b"]]]


def test_nodes_that_see_one_folder_are_one_group():
    shared = {"place": "192.0.2.5:/export/m", "disk": "nfs4"}
    assert names(lanes([stock("a", **shared), stock("b", **shared)])) == [[["a", "b"]]]


def test_folders_on_file_servers_take_turns_for_they_may_be_the_same():
    one, two = ({"place": f"{name}:/export/m", "disk": "nfs4"} for name in ("nas", "192.0.2.5"))
    assert names(lanes([stock("a", **one), stock("b", **two), stock("c")])) == [
        [["a"], ["b"]],
        [["c"]],
    ]


def test_the_local_folders_of_a_node_take_turns():
    model, drafter = stock("a"), stock("a", role="drafter", place="another folder")
    assert names(lanes([model, drafter])) == [[["a"], ["a"]]]


def test_a_folder_that_one_of_its_nodes_lacks_is_downloaded_there():
    """It was not the same folder after all; who has it whole need not download."""
    group = [stock("a", place="p", whole=True), stock("b", place="p")]
    assert names(lanes(group)) == [[["a", "b"]]]
    assert downloader(group).node_id == "b"


def test_who_has_the_program_downloads():
    group = [stock("a"), stock("b", programs={"huggingface": "/usr/bin/hf"})]
    assert downloader(group).node_id == "b"
    assert downloader([stock("a"), stock("b")]).node_id == "a", (
        "so that it can be told what to install"
    )


def test_tiny_models_and_silent_nodes_are_not_downloaded():
    tiny = stock("a", wanted=Wanted("model", "", tiny="qwen3"))
    assert lanes([tiny, stock("b", weights=None), stock("c", whole=True)]) == []


def test_states():
    assert stock("a").state == "missing"
    assert stock("a", whole=True).state == "complete"
    assert stock("a", weights=None).state == "unknown"
    assert stock("a", weights=Weights("/m", True, files={"config.json": 1})).state == "incomplete"
    assert stock("a", weights=Weights("/m", True)).state == "missing", "an empty folder"
