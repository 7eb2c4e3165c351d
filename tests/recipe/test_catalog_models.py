"""Every shipped recipe says what it is for, plans on the right number of nodes, and passes the checks."""

import re
from dataclasses import replace

import pytest

from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.cli.views.recipe_view import recipe_summary
from raylaunch.plan.facts import Facts, Npu
from raylaunch.plan.known_flags import read_flags
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import configs_dir, read, recipe_names
from raylaunch.recipe.recipe_settings import image_versions, version_number

NODES = {"single": 1, "dual": 2, "quad": 4}
MODELS = [name for name in recipe_names() if re.search(r"-a[23]-(?:dual|quad)$", name)]
"""Recipes named MODEL-BOARD-NODES."""

SIZES = {
    "glm-5-a2-dual": (8, 2, 1, 131072),
    "glm-5-a3-dual": (16, 2, 1, 200000),
    "glm-5.2-a2-dual": (8, 2, 1, 40000),
    "glm-5.2-a3-dual": (8, 4, 2, 66000),
    "glm-5.2-1m-a3-dual": (8, 4, 2, 1024000),
    "deepseek-v3.1-a2-dual": (4, 4, 2, 16384),
    "deepseek-v3.2-a2-dual": (8, 2, 1, 8192),
    "deepseek-v3.2-tp16-a3-dual": (16, 2, 1, 8192),
    "kimi-k2.5-tp4-a2-dual": (4, 4, 2, 32768),
    "minimax-m3-w8a8-a2-dual": (8, 2, 1, 131072),
    "qwen3.8-a3-quad": (16, 4, 1, 131072),
    "minimax-m3-a2-dual": (8, 2, 1, 40960),
    "qwen3-235b-a2-dual": (8, 2, 1, 40960),
    "qwen3-235b-a3-dual": (8, 4, 2, 8192),
    "qwen3-vl-235b-a2-dual": (8, 2, 1, 262144),
    "qwen3.5-397b-a2-dual": (8, 2, 1, 32768),
    "kimi-k2.5-a2-dual": (8, 2, 1, 51200),
    "glm-4.7-a2-dual": (8, 2, 1, 140000),
    "glm-5.1-a2-dual": (8, 2, 1, 38000),
    "glm-5.1-a3-dual": (16, 2, 1, 133120),
    "deepseek-v3.1-a3-dual": (8, 4, 2, 8192),
    "deepseek-v3.2-a3-dual": (8, 4, 2, 90000),
    "deepseek-r1-a2-dual": (4, 4, 2, 16384),
    "deepseek-v4-pro-a2-quad": (8, 4, 1, 135000),
    "deepseek-v4-pro-a3-dual": (16, 2, 1, 135000),
}
"""Tensor, data and local data parallel size and context length, as the sources have them."""


def plan_of(name):
    loaded = read(name)
    nodes = recipe_summary(loaded)["nodes"]
    return loaded, [
        Facts(f"192.0.2.{10 + number}", interface="enp67s0f0np0") for number in range(nodes)
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_it_says_what_it_is(name):
    summary = recipe_summary(read(name))
    assert summary["description"]
    assert summary["good_for"]
    assert summary["source"]
    assert summary["model"]


@pytest.mark.parametrize("name", recipe_names())
def test_it_plans_and_checks_without_errors(name):
    loaded, nodes = plan_of(name)
    plan = build_plan(loaded, nodes)
    findings = [
        *check_recipe(loaded, {}),
        *check_recipe(loaded, {"vllm": "0.23.0"}),
        *check_nodes(loaded, nodes, plan),
    ]
    assert not [finding for finding in findings if finding.level == "error"]
    assert len(plan.servers) == loaded.recipe.parallel.servers
    for server in plan.servers:
        assert len(server.devices) == loaded.recipe.npus_per_server
        assert max(server.devices, default=0) < loaded.recipe.npus_per_node


@pytest.mark.parametrize("name", recipe_names())
def test_it_has_no_finding_on_its_own_image_and_board(name):
    loaded, nodes = plan_of(name)
    recipe = loaded.recipe
    board = {"ascend-a2": "910B3", "ascend-a3": "Ascend910"}.get(recipe.hardware.platform)
    versions = image_versions(recipe)
    if board:
        npus = tuple(
            Npu(number, number, 0, board, "OK", None, 0, 65536)
            for number in range(recipe.npus_per_node)
        )
        versions["vllm-ascend-board"] = recipe.hardware.platform[-2:].upper()
        nodes = [replace(node, versions=versions, npus=npus) for node in nodes]
    findings = [
        *check_recipe(loaded, versions),
        *check_nodes(loaded, nodes, build_plan(loaded, nodes)),
    ]
    assert findings == []


@pytest.mark.parametrize("name", recipe_names())
def test_its_image_has_its_model(name):
    recipe = read(name).recipe
    if recipe.container is None:
        return
    model = f"{recipe.model.path} {recipe.model.type}".lower()
    if "minimax-m3" in model:
        assert version_number(image_versions(recipe)["vllm-ascend"]) >= (0, 24)
    if "qwen3.8" in model:
        assert "qwen3.8" in recipe.container.tag


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_after_a_nightly_file_names_the_tutorial_and_what_it_leaves_out(name):
    recipe = read(name).recipe
    if "nightly" not in recipe.source:
        return
    assert re.search(r"; the tutorial \S+\.md ", recipe.source)
    text = (configs_dir() / f"{name}.yaml").read_text()
    assert "VLLM_USE_MODELSCOPE" in text or "VLLM_USE_MODELSCOPE" in recipe.env


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("v0.23.0.post1", {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}),
        ("v0.23.0.post1-openeuler", {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}),
        ("v0.24.0rc1-a3", {"vllm": "0.24.0", "vllm-ascend": "0.24.0rc1"}),
        ("v0.18.0", {"vllm": "0.18.0", "vllm-ascend": "0.18.0"}),
        ("qwen3.8-a3", {}),
        ("main", {}),
        ("v0.23.0nightly", {}),
    ],
)
def test_the_versions_of_an_image_are_in_its_tag(tag, expected):
    recipe = read("a2-dual", [f"container.tag={tag}"]).recipe
    assert image_versions(recipe) == expected


@pytest.mark.parametrize("name", recipe_names())
def test_its_flags_are_known(name):
    loaded, nodes = plan_of(name)
    for flag in build_plan(loaded, nodes).primary.flags[1:]:
        assert flag.name.removeprefix("--") in read_flags()


@pytest.mark.parametrize("name", MODELS)
def test_a_models_recipe_is_what_its_name_and_source_say(name):
    loaded, nodes = plan_of(name)
    recipe = loaded.recipe
    board, size = name.split("-")[-2:]
    assert recipe.hardware.platform == f"ascend-{board}"
    assert len(nodes) == len(build_plan(loaded, nodes).servers) == NODES[size]
    parallel = recipe.parallel
    sizes = (
        parallel.tensor,
        parallel.data,
        parallel.ranks_per_server,
        recipe.args["max-model-len"],
    )
    assert sizes == SIZES[name]
    assert parallel.expert
    assert re.search(
        r"vllm-ascend (docs|tests)/\S+\.(md|yaml)\b.* \(read \d{4}-\d\d-\d\d\)", recipe.source
    )
    assert recipe.container is not None
    assert len(read(name).recipe.model.sources.model_dump(exclude_none=True)) > 0


def test_there_are_recipes_of_every_size():
    assert set(MODELS) == set(SIZES)
    kinds = {tuple(name.split("-")[-2:]) for name in MODELS}
    assert {("a2", "dual"), ("a3", "dual"), ("a2", "quad")} <= kinds


def test_what_recipes_share_is_no_recipe_itself():
    base = sorted(path.stem for path in (configs_dir() / "base").glob("*.yaml"))
    assert base
    assert not set(base) & set(recipe_names())
