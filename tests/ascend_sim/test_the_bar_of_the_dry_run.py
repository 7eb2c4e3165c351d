"""The bar of the dry run: 46 wrong settings are refused with the right name, 25 good ones accepted.

The node's part (`dry_run`) asks the real vLLM and vllm-ascend, the head's part (`check_engines`)
makes findings of the answers. Only the device is simulated, and the weights are folders with a
config.json. The wrong settings are those of tests/data/vllm/refusals.json.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from model_folders import EAGLE3_M2, write_folder, write_model

from raylaunch.checks.engine.engine_checks import check_engines
from raylaunch.node.probe.engine_dry_run import dry_run
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

pytestmark = [pytest.mark.timeout(3600), pytest.mark.long]

RECORDED = Path(__file__).parents[1] / "data" / "vllm" / "refusals.json"
ANSWER_S = 3000.0

WRONG = {case["name"]: case for case in json.loads(RECORDED.read_text())}
GOOD = {
    "a2-dual": [
        [],
        ["parallel.tensor=4"],
        ["parallel.tensor=4", "parallel.data_local=2", "parallel.data=4"],
        ["args.max-model-len=131072"],
        ["args.max-model-len=196608"],
        ["args.max-num-seqs=64"],
        ["args.max-num-batched-tokens=8192"],
        ["args.gpu-memory-utilization=0.95"],
        ["args.quantization=fp8"],
        ["args.dtype=bfloat16"],
        ["args.enforce-eager=true"],
        ["args.seed=1024"],
        ["args.enable-prefix-caching=false"],
        ["args.async-scheduling=false"],
        ["args.load-format=dummy"],
        ["args.stream-interval=4"],
        ['args.compilation-config={"cudagraph_mode":"PIECEWISE"}'],
        [
            'args.compilation-config={"cudagraph_mode":"FULL_DECODE_ONLY","cudagraph_capture_sizes":[8,16]}'
        ],
        ['args.additional-config={"enable_cpu_binding": true, "enable_flashcomm1": true}'],
        ['args.additional-config={"enable_cpu_binding": false, "weight_nz_mode": 1}'],
        ["features.tool_calling.enabled=false"],
    ],
    "a3-single": [
        [],
        ["features.speculative.num_speculative_tokens=1"],
        ["features.speculative.enabled=false"],
    ],
    "a3-low-latency": [[]],
}


CONTRADICTIONS = {"xlite-eagle"}
"""Two settings that cannot be together, and both are set by hand here: the drafter's folder too.
The other one is named as "also involved"."""


@dataclass(frozen=True)
class Case:
    """A recipe with settings, planned, and the index of its first server among all."""

    loaded: object
    nodes: tuple[Facts, ...]
    plan: object
    index: int


def good_cases():
    for recipe, variants in GOOD.items():
        for number, sets in enumerate(variants):
            yield f"{recipe}-{number}", recipe, sets


@pytest.fixture(scope="module")
def findings_of(tmp_path_factory):
    """Ask for all command lines in one dry run; return the findings of a case by its name."""
    folder = tmp_path_factory.mktemp("bar")
    write_folder(EAGLE3_M2, folder / "drafter")
    write_folder(EAGLE3_M2 | {"num_attention_heads": 24}, folder / "drafter-24")
    cases: dict[str, Case] = {}
    wrong = [(name, case["recipe"], case["sets"]) for name, case in WRONG.items()]
    for name, recipe, sets in (*wrong, *good_cases()):
        cases[name] = plan_case(folder, name, recipe, sets, len(cases))
    first = [replace(case.plan.servers[0], index=case.index) for case in cases.values()]
    plan = replace(next(iter(cases.values())).plan, servers=tuple(first))
    every = range(len(first))
    report = dry_run(plan, every, {**os.environ}, folder / "state", timeout_s=ANSWER_S)
    assert report.known_flags is not None

    def find(name: str):
        case = cases[name]
        nodes = [replace(node, known_flags=report.known_flags) for node in case.nodes]
        answers = {0: report.answers[case.index]}
        return list(check_engines(case.loaded, nodes, case.plan, answers))

    return find


def plan_case(folder, name, recipe, sets, index):
    wanted = read(recipe, sets).recipe
    weights = "w8a8" if recipe != "a2-dual" else "fp8"
    if not (folder / weights).exists():
        write_model(read(recipe).recipe, folder / weights)
    given = [f"model.path={folder / weights}"]
    if wanted.features.speculative.enabled and wanted.features.speculative.model:
        drafter = "drafter-24" if name.startswith("draft-24") else "drafter"
        given.append(f"features.speculative.model={folder / drafter}")
    loaded = read(recipe, [*given, *sets])
    nodes = tuple(
        Facts(f"192.0.2.{11 + number}", interface="eth0")
        for number in range(loaded.recipe.parallel.servers)
    )
    return Case(loaded, nodes, build_plan(loaded, nodes), index)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_with_its_name(findings_of, name):
    (refused,) = [one for one in findings_of(name) if one.id == "engine-refuses"]
    text = refused.what
    if name in CONTRADICTIONS:
        text += refused.seen
    named = re.findall(r"(?<= )(--[\w-]+|VLLM_\w+)", text)
    assert WRONG[name]["flag"] in named, refused


@pytest.mark.parametrize("name", [name for name, _, _ in good_cases()])
def test_a_good_variant_is_accepted(findings_of, name):
    assert [one for one in findings_of(name) if one.level == "error"] == []
