"""From a scenario to the guide's command line, and which loads are refused."""

from __future__ import annotations

import json
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from sample_runs import plan_of

from raylaunch.bench.result import METRICS
from raylaunch.bench.scenario import (
    OWNED_FLAGS,
    build_argv,
    choose,
    read_changes,
    refuse_too_long,
    shipped,
    tokens_needed,
)
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read, recipe_names

GUIDE = """vllm bench serve --backend vllm
--dataset-name prefix_repetition
--prefix-repetition-prefix-len 175104
--prefix-repetition-suffix-len 19440
--prefix-repetition-output-len 1024
--prefix-repetition-num-prefixes 1
--num-prompts 16
--max-concurrency 4
--ignore-eos
--model minimax25
--tokenizer /opt/data/verification/models/MiniMax-M2.5/
--endpoint /v1/completions
--request-rate inf
--seed 1000
--host 192.0.2.10
--port 20004"""
"""As the guide has it, with the recipe's model path and the address of the primary."""


def flags_of(words):
    """Flag -> value, whatever the order."""
    found, name = {}, ""
    for word in words[3:]:
        if word.startswith("--"):
            name, found[word] = word, ""
        else:
            found[name] = word
    return found


def test_the_a2_scenario_is_the_guides_command():
    loaded, plan = plan_of("a2-dual")
    scenario = choose(None, loaded.recipe.bench)
    argv = [*build_argv(plan, scenario), "--seed", str(scenario.seed)]
    wanted = flags_of(shlex.split(GUIDE))
    got = flags_of(argv)
    assert got.pop("--trust-remote-code") == "", (
        "the server's: without it the tokenizer would not load"
    )
    assert got == wanted
    assert argv[:3] == ["vllm", "bench", "serve"]


def test_a_key_or_a_result_file_never_comes_from_a_scenario():
    assert not [
        name for scenario in shipped().values() for name in scenario.args if name in OWNED_FLAGS
    ]
    with pytest.raises(RecipeError, match="--header"):
        choose("short", ()).changed({"header": "Authorization=Bearer x"})


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_known_scenarios_and_the_servers_accept_the_first(name):
    loaded, plan = plan_of(name)
    assert set(loaded.recipe.bench) <= shipped().keys()
    refuse_too_long(plan, choose(None, loaded.recipe.bench))


@pytest.mark.parametrize("scenario", shipped().values(), ids=shipped().keys())
def test_a_shipped_scenario_has_what_raylaunch_needs(scenario):
    assert scenario.description
    assert scenario.concurrency
    assert scenario.prompts >= scenario.concurrency
    assert tokens_needed(scenario.args)
    known = {metric.key for metric in METRICS} | {"source"}
    assert set(scenario.reference) <= known
    assert not scenario.reference or scenario.reference["source"]


def test_a_request_longer_than_the_server_accepts_is_refused():
    loaded, plan = plan_of("a3-long-context")
    with pytest.raises(RecipeError) as refused:
        refuse_too_long(plan, choose("a3-190k", loaded.recipe.bench))
    assert "195568" in refused.value.what
    assert "138000" in refused.value.what
    assert "args.max-model-len=195568" in refused.value.todo
    loaded, plan = plan_of("a3-long-context", "args.max-model-len=196608")
    refuse_too_long(plan, choose("a3-190k", loaded.recipe.bench))


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({"dataset-name": "prefix_repetition"}, 256 + 256 + 128),
        ({"dataset-name": "prefix_repetition", "output-len": 7}, 256 + 256 + 7),
        ({}, 1024 + 128),
        (
            {
                "random-input-len": 100,
                "random-output-len": 100,
                "random-range-ratio": 0.5,
                "random-prefix-len": 9,
            },
            309,
        ),
        ({"dataset-name": "sharegpt"}, None),
    ],
)
def test_the_longest_request_is_computed_from_the_flags(args, tokens):
    assert tokens_needed(args) == tokens


def test_a_reference_counts_only_for_the_recipe_and_the_load_it_was_measured_with():
    fitting = read("a2-dual").recipe.bench
    assert choose("a2-190k", fitting).reference["mean_ttft_ms"] == 3305.25
    assert not choose("a2-190k", ("short",)).reference, "another model's recipe"
    assert not choose("a2-190k", fitting).at(8).reference
    assert not choose("a2-190k", fitting).changed({"num-prompts": 32}).reference
    assert choose("a2-190k", fitting).at(4).reference
    assert choose("a2-190k", fitting).changed({"num_prompts": 16}).reference, "no change"


def test_a_higher_concurrency_has_at_least_as_many_prompts():
    more = choose("a2-190k", ()).at(64)
    assert (more.concurrency, more.prompts) == (64, 64)
    assert choose("a2-190k", ()).at(2).prompts == 16


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match="there is no scenario 'a2-19k'") as refused:
        choose("a2-19k", ())
    assert "did you mean 'a2-190k'?" in refused.value.why


def test_changes_are_read_as_yaml_and_null_removes_a_flag():
    changes = read_changes(["num-prompts=8", "ignore-eos=null", "extra-body={temperature: 0}"])
    scenario = choose("small", ()).changed(changes)
    _, plan = plan_of("local-dual")
    argv = build_argv(plan, scenario)
    assert scenario.prompts == 8
    assert "--ignore-eos" not in argv
    assert json.loads(argv[argv.index("--extra-body") + 1]) == {"temperature": 0}
    for wrong in (
        "num-prompts",
        "=3",
        "a={",
        "a=!!int x",
        "a=!!timestamp 2026-99-99",
        "a=!!bool x",
    ):
        with pytest.raises(RecipeError):
            read_changes([wrong])


def test_the_client_gets_the_servers_tokenizer_mode():
    _, plan = plan_of("a2-dual", "args.tokenizer-mode=deepseek_v32")
    argv = build_argv(plan, choose("short", ()))
    assert argv[argv.index("--tokenizer-mode") + 1] == "deepseek_v32"


def test_the_installed_vllm_knows_every_flag():
    """Read from its sources: an import needs many seconds."""
    found = find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("no vLLM here")
    sources = (Path(found.origin).parent / "benchmarks").rglob("*.py")
    text = "\n".join(source.read_text() for source in sources)
    _, plan = plan_of("a2-dual", "args.tokenizer-mode=auto")
    result = ("--seed", "--save-result", "--result-dir", "--result-filename")
    words = [
        *result,
        *(word for scenario in shipped().values() for word in build_argv(plan, scenario)),
    ]
    assert not sorted({word for word in words if word.startswith("--") and f'"{word}"' not in text})
    written = (
        "completed",
        "failed",
        "request_throughput",
        "output_throughput",
        "total_token_throughput",
        "num_prompts",
    )
    assert not [key for key in written if f'"{key}"' not in text]
