"""Every shipped Ascend recipe: the real vLLM and vllm-ascend accept each of its servers' commands.

The device below is simulated, and the weights are folders with a config.json (model_folders.py).
"""

from __future__ import annotations

import pytest
from engine_config import create_engine_config, import_vllm
from model_folders import write_drafter, write_model

from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.recipe_settings import image_versions, on_ascend

pytestmark = pytest.mark.timeout(1200)

INSTALLED = {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}
NEWER = "runs on the image of a later vllm-ascend: this environment has none of its model"


def installed_here(recipe: Recipe) -> bool:
    """Whether the recipe's image holds what is installed here, or an image of its own name."""
    return image_versions(recipe) in ({}, INSTALLED)


ASCEND = [name for name in recipe_names() if on_ascend(read(name).recipe)]
HERE = [name for name in ASCEND if installed_here(read(name).recipe)]
LATER = sorted(set(ASCEND) - set(HERE))


def commands():
    """Each recipe's primary, and its first headless server; the others differ by rank and address."""
    for name in HERE:
        yield pytest.param(name, 0, id=name)
        if read(name).recipe.parallel.servers > 1:
            marks = () if name == "a2-dual" else (pytest.mark.long,)
            yield pytest.param(name, 1, id=f"{name}-headless", marks=marks)


@pytest.fixture(scope="module", autouse=True)
def vllm():
    import_vllm()


@pytest.fixture
def servers(tmp_path):
    """Plan the first group of a recipe on example hosts, with folders in place of weights."""

    def plan(name: str) -> tuple[Recipe, tuple[ServerPlan, ...]]:
        recipe = read(name).recipe
        sets = [f"model.path={write_model(recipe, tmp_path / 'model')}"]
        if recipe.features.speculative.enabled and recipe.features.speculative.model:
            drafter = write_drafter(recipe, tmp_path / "drafter")
            sets.append(f"features.speculative.model={drafter}")
        loaded = expand_groups(read(name, sets))[0].loaded
        nodes = [
            Facts(f"192.0.2.{10 + number}", interface="enp67s0f0np0")
            for number in range(loaded.recipe.parallel.servers)
        ]
        return loaded.recipe, build_plan(loaded, nodes).servers

    return plan


def ask(recipe: Recipe, server: ServerPlan):
    return create_engine_config(
        server.argv,
        server.environ,
        list(server.unset),
        len(server.devices),
        recipe.hardware.platform[-2:].upper(),
    )


@pytest.mark.parametrize(("name", "number"), list(commands()))
def test_a_server_becomes_what_the_recipe_says(servers, name, number):
    recipe, planned = servers(name)
    parallel = recipe.parallel
    answer = ask(recipe, planned[number])
    assert not answer.error, f"{answer.stage}: {answer.error}\n{answer.log[-3000:]}"
    expected = {
        "worker": "vllm_ascend.worker.worker.NPUWorker",
        "executor": "MultiprocExecutor",
        "tensor": parallel.tensor,
        "data": parallel.data,
        "data_local": parallel.ranks_per_server,
        "expert": parallel.expert,
        "prefill_context": parallel.prefill_context,
        "decode_context": parallel.decode_context,
        "hybrid_lb": False,
        "external_lb": False,
        "max_num_seqs": recipe.args["max-num-seqs"],
    }
    assert {key: answer.config[key] for key in expected} == expected
    if "max-model-len" in recipe.args:
        assert answer.config["max_model_len"] == recipe.args["max-model-len"]
    assert answer.config["speculative"] or not recipe.features.speculative.enabled
    if quantization := recipe.args.get("quantization"):
        assert answer.config["quantization"] == quantization


def test_what_is_not_installed_here_is_named():
    assert LATER == ["minimax-m3-a2-dual", "minimax-m3-w8a8-a2-dual"], NEWER


def test_a_wrong_value_is_refused(servers):
    """The bar of the tests above: the same way refuses what the real code refuses."""
    _, (primary, _) = servers("a2-dual")
    argv = [
        "5" if before == "--tensor-parallel-size" else word
        for before, word in zip(("", *primary.argv), primary.argv, strict=False)
    ]
    answer = create_engine_config(argv, primary.environ, list(primary.unset), 8, "A2")
    assert answer.stage == "config"
    assert answer.error
