"""What the nodes' own vLLM makes of the servers becomes findings that name the setting."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from raylaunch.checks.engine.engine_checks import check_engines, judge_message, listed_values
from raylaunch.checks.findings import Finding
from raylaunch.plan.engine_answer import EngineAnswer, Message, Refusal
from raylaunch.plan.facts import Facts
from raylaunch.plan.known_flags import KnownFlags, Option, read_flags
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

DATA = Path(__file__).parents[1] / "data" / "vllm"
REFUSALS = json.loads((DATA / "refusals.json").read_text())
"""What vLLM 0.23.0 with vllm-ascend 0.23.0.post1 answered to wrong settings of shipped recipes."""


@cache
def known_names() -> KnownFlags:
    keys = json.loads((DATA / "ascend_keys.json").read_text())
    below = {key: tuple(names) for key, names in keys["config_keys_below"].items()}
    flags = {name: Option() for name, life in read_flags().items() if not life.removed_in}
    return KnownFlags(flags, config_keys=tuple(keys["config_keys"]), config_keys_below=below)


@cache
def plan_of(recipe, sets):
    loaded = read(recipe, list(sets))
    count = loaded.recipe.parallel.servers
    nodes = tuple(
        Facts(
            f"192.0.2.{11 + number}",
            f"node{number}",
            interface="eth0",
            known_flags=known_names(),
            vllm_executable="/usr/bin/vllm",
        )
        for number in range(count)
    )
    return loaded, nodes, build_plan(loaded, nodes)


def check(answers, recipe="a2-dual", sets=(), found=()):
    loaded, nodes, plan = plan_of(recipe, tuple(sets))
    return list(check_engines(loaded, nodes, plan, answers, found))


def refusal_of(case):
    choices = {
        flag: {key: tuple(values) for key, values in keys.items()}
        for flag, keys in case["choices"].items()
    }
    fields, conditions, files = (tuple(case[name]) for name in ("fields", "conditions", "files"))
    return Refusal(case["stage"], case["kind"], case["words"], fields, conditions, files, choices)


@pytest.mark.parametrize("case", REFUSALS, ids=[case["name"] for case in REFUSALS])
def test_a_refusal_names_the_setting_that_was_changed(case):
    answer = EngineAnswer(refusal=refusal_of(case))
    [one] = check({0: answer}, case["recipe"], case["sets"])[-1:]
    assert (one.id, one.level) == ("engine-refuses", "error")
    named = one.what.partition(" refuses ")[2].partition(":")[0].partition(" (")[0]
    assert named == case["flag"], one
    # The flag of a recipe as it is was not changed by hand.
    assert "--set" in one.where or not case["sets"] or "recipe" in one.where
    if case["near"]:
        assert one.todo == f"did you mean {case['near']}?"
    assert one.seen
    assert one.todo


def test_the_same_refusal_on_two_nodes_is_one_finding():
    answer = EngineAnswer(refusal=Refusal("config", "ValueError", "max_num_seqs is wrong"))
    [one] = check({0: answer, 1: answer})
    assert "node0" in one.what
    assert "node1" in one.what
    assert one.where.startswith("recipe a2-dual.yaml:")


def test_a_refusal_that_names_nothing_still_has_the_host_and_what_to_do():
    refusal = Refusal("config", "RuntimeError", "out of luck")
    [one] = check({0: EngineAnswer(refusal=refusal)})[-1:]
    assert "refuses its command line: out of luck" in one.what
    assert one.where == "192.0.2.11"
    assert "raylaunch plan" in one.todo


def test_a_flag_that_is_not_given_is_named():
    words = "Flash Comm v1 requires enable_expert_parallel=True for MoE models."
    sets = ["parallel.expert=false"]
    answer = EngineAnswer(refusal=Refusal("config", "ValueError", words))
    [one] = check({0: answer}, sets=sets)[-1:]
    assert "--enable-expert-parallel, which is not given" in one.todo


def test_what_a_check_of_flags_reports_is_not_repeated():
    refusal = Refusal("parse", "Refused", "unrecognized arguments: --max-num-sqs 3")
    sets = ["args.max-num-sqs=3"]
    both = {0: EngineAnswer(refusal=refusal), 1: EngineAnswer(refusal=refusal)}
    known = Finding("unknown-flag", "error", "`vllm serve` has no flag", where="--set")
    assert check(both, sets=sets, found=[known]) == []
    [one] = check(both, sets=sets)
    assert one.todo == "did you mean --max-num-seqs?"


def test_a_secret_that_vllm_quotes_is_not_repeated():
    refusal = Refusal("parse", "Refused", "argument --api-key: invalid value: 's3cr3t-value'")
    answer = EngineAnswer(refusal=refusal, messages=(Message("warning", "s3cr3t-value ignored"),))
    [one] = check({0: answer}, sets=["args.api-key=s3cr3t-value"])[-1:]
    assert "--api-key" in one.what
    assert "s3cr3t" not in f"{one}"


BECAME = {"max_model_len": "196608", "data_parallel_rank": "0", "kv_block_size": "128"}


def test_servers_of_a_group_must_agree_except_on_their_rank():
    one, other = (EngineAnswer(BECAME | {"data_parallel_rank": rank}) for rank in ("0", "1"))
    assert check({0: one, 1: other}) == []
    shorter = replace(other, became={**other.became, "max_model_len": "32768"})
    [finding] = check({0: one, 1: shorter})
    assert (finding.id, finding.level) == ("engine-differs", "error")
    assert finding.seen == "server 0: 196608, server 1: 32768"


def test_a_server_that_was_not_asked_is_reported_once_per_node():
    [one] = check({0: EngineAnswer(BECAME)})
    assert (one.id, one.level, one.where) == ("engine-not-asked", "info", "192.0.2.12")


FALLS_BACK = (
    "AscendConfig.enable_flashcomm1 falls back to environment variable "
    "VLLM_ASCEND_ENABLE_FLASHCOMM1 with value True. Please use additional_config.enable_flashcomm1 "
    "instead, because VLLM_ASCEND_ENABLE_FLASHCOMM1 will be removed in the next release."
)
IGNORED = (
    "Parameter is currently ignored on Ascend. parameter=enable_dbo, action: resetting to False."
)
EAGER = "Enforce eager set, disabling torch.compile and CUDAGraphs."
BLOCK = "Block size is set to 128 if prefix cache or chunked prefill is enabled."


# id, level of the finding, level of the message, its text, what is set
MESSAGES = [
    ("engine-deprecated", "info", "info", FALLS_BACK, []),
    ("engine-warns", "warning", "warning", IGNORED, ["args.enable-dbo=true"]),
    ("engine-warns", "info", "info", BLOCK, ["args.block-size=64"]),
    ("engine-warns", "info", "warning", EAGER, ["args.enforce-eager=true"]),
]


@pytest.mark.parametrize(("finding", "level", "logged", "text", "sets"), MESSAGES)
def test_a_message_about_a_setting_becomes_a_finding(finding, level, logged, text, sets):
    answer = EngineAnswer(BECAME, messages=(Message(logged, text),))
    [one] = check({0: answer, 1: answer}, sets=sets)
    assert (one.id, one.level) == (finding, level)
    assert one.where
    assert one.todo


@pytest.mark.parametrize(
    "text",
    [
        "Triton is not installed. triton-cpu is expected on x86 CPUs.",
        "Using max model len 196608",
        "Unknown vLLM environment variable detected: VLLM_ASCEND_ENABLE_FLASHCOMM1",
        BLOCK,  # the recipe sets no block size
    ],
)
def test_a_message_about_nothing_that_was_set_is_left_out(text):
    answer = EngineAnswer(BECAME, messages=(Message("warning", text),))
    assert check({0: answer, 1: answer}) == []


def test_a_message_without_change_is_no_finding():
    assert judge_message(Message("warning", "Asynchronous scheduling is enabled.")) is None


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("invalid choice: 'fp8' (choose from 'auto', 'half')", ["auto", "half"]),
        (
            "invalid tool call parser: x (chose from { hermes,minimax_m2 })",
            ["hermes", "minimax_m2"],
        ),
        ("'x' not found. Available parsers: ernie45, minimax_m2", ["ernie45", "minimax_m2"]),
        ("Input should be 'ngram', 'medusa' or 'mtp'", ["ngram", "medusa", "mtp"]),
        ("Input should be greater than or equal to 1", []),
    ],
)
def test_valid_values_are_read_from_a_message(words, values):
    assert listed_values(words) == values
