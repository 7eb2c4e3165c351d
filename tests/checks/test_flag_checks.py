"""Checks of the plan's flags against what each node's own vLLM knows."""

from dataclasses import replace

import pytest

from raylaunch.checks.check_all import check_nodes, check_recipe, common_names
from raylaunch.plan.facts import Facts
from raylaunch.plan.known_flags import KnownFlags, Option, read_flags
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

KEY = "secrets=[VLLM_API_KEY]"
"""With an API key the healthy hosts below give no finding at all."""

BARE = ("headless", "enable-", "no-", "async-scheduling", "trust-remote-code")
LIVING = {name for name, life in read_flags().items() if not life.removed_in}
FLAGS = {name: Option("none" if name.startswith(BARE) else "one") for name in LIVING} | {
    "mm-processor-cache-type": Option("one", ("lru", "shm")),
    "served-model-name": Option("many"),
    "block-size": Option("one", ("16", "32", "128")),
    "tokenizer-revision": Option("maybe"),
}
KNOWN = KnownFlags(FLAGS, ("hermes", "minimax_m2"), ("minimax_m2", "minimax_m2_append_think"))
FEATURE = "features.tool_calling"
TOOLS = f"{FEATURE}.enabled=true"
CACHE = "mm-processor-cache-type"


def without(*names):
    flags = {name: option for name, option in FLAGS.items() if name not in names}
    parsers = [
        tuple(one for one in kind if one not in names)
        for kind in (KNOWN.tool_parsers, KNOWN.reasoning_parsers)
    ]
    return KnownFlags(flags, *parsers)


def node(number, known):
    ip, versions = f"192.0.2.{10 + number}", {"vllm": "0.23.0"}
    return Facts(
        ip, f"node{number}", f"id{number}", interface="eth0", known_flags=known, versions=versions
    )


def check(first=KNOWN, second=KNOWN, sets=()):
    loaded = read("a2-dual", [KEY, *sets])
    nodes = [node(number, known) for number, known in enumerate((first, second))]
    plan = build_plan(loaded, nodes)
    return [
        *check_recipe(loaded, nodes[0].versions, known=common_names(nodes)),
        *check_nodes(loaded, nodes, plan),
    ]


# id, what is set, what the finding says, what it advises, what else it shows
FIRES = [
    (
        "unknown-flag",
        "error",
        ["args.max-num-sqs=3"],
        "no flag --max-num-sqs",
        "did you mean max-num-seqs?",
    ),
    ("unknown-flag", "error", ["args.max-num-seqs=false"], "no flag --no-max-num-seqs", ""),
    (
        "flag-value",
        "error",
        ["args.mm-processor-cache-type=shn"],
        "`--mm-processor-cache-type shn` on",
        "did you mean shm?",
    ),
    ("flag-value", "error", ["args.block-size=64"], "none of its values", "it takes 16, 32, 128"),
    (
        "flag-value",
        "error",
        ["args.max-model-len=true"],
        "`--max-model-len` on 192.0.2.10 (node0), 192.0.2.11 (node1): it needs a value",
        "give it one",
    ),
    ("flag-value", "error", ["args.async-scheduling=1"], "it takes no value", "write true"),
    (
        "unknown-parser",
        "error",
        [TOOLS, f"{FEATURE}.tool_parser=minimax-m2"],
        "no tool parser",
        "minimax_m2?",
    ),
    (
        "unknown-parser",
        "error",
        [f"{FEATURE}.reasoning_parser=minimax"],
        "no reasoning parser",
        "you mean minimax_m2",
    ),
]

SILENT = [
    [],
    [TOOLS],
    ["args.max_num_seqs=4", "args.mm_processor_cache_type=shm"],
    ["args.mm-processor-cache-type=SHM"],
    ["args.tokenizer-revision=true"],
    ["args.tokenizer-revision=abc"],
    ["args.compilation-config.level=3"],
    ["args.enable-prefix-caching=false"],
    [TOOLS, "features.tool_calling.tool_parser=own", "args.tool-parser-plugin=/opt/own.py"],
]


@pytest.mark.parametrize(("finding", "level", "sets", "what", "todo"), FIRES)
def test_a_flag_that_vllm_would_refuse_is_found_on_every_node(finding, level, sets, what, todo):
    found = check(sets=sets)
    assert [(one.id, one.level) for one in found] == [(finding, level)], (
        "once, not per node, nor by the list again"
    )
    [one] = found
    assert what in one.what
    assert "192.0.2.10 (node0), 192.0.2.11 (node1)" in one.what
    assert todo in one.todo
    assert one.where.startswith("--set")
    assert "vLLM 0.23.0" in one.seen


@pytest.mark.parametrize("sets", SILENT)
def test_what_vllm_takes_is_left_alone(sets):
    assert check(sets=sets) == []


@pytest.mark.parametrize(
    ("finding", "sets", "lacking", "named"),
    [
        ("unknown-flag", [], ["data-parallel-start-rank"], "--data-parallel-start-rank"),
        ("unknown-flag", [f"args.{CACHE}=shm"], [CACHE], f"--{CACHE}"),
        ("unknown-parser", [TOOLS], ["minimax_m2_append_think"], "minimax_m2_append_think"),
    ],
)
def test_an_older_vllm_on_one_host_is_named_with_that_host(finding, sets, lacking, named):
    [one] = check(KNOWN, without(*lacking), sets)
    assert (one.id, one.level, one.where) == (finding, "error", "192.0.2.11")
    assert named in one.what
    assert "192.0.2.11 (node1)" in one.what
    assert "192.0.2.10" not in one.what
    assert "install one version of vLLM" in one.todo


def test_a_value_that_only_an_older_vllm_refuses_names_that_host():
    older = replace(KNOWN, flags=FLAGS | {"mm-processor-cache-type": Option("one", ("lru",))})
    [one] = check(older, KNOWN, ["args.mm-processor-cache-type=shm"])
    assert (one.id, one.where) == ("flag-value", "192.0.2.10")


def test_the_list_counts_only_where_a_vllm_was_not_asked():
    assert check(sets=["args.from-a-plug-in=1"], first=None, second=None)[0].where == "--set"
    plugged = replace(KNOWN, flags=FLAGS | {"from-a-plug-in": Option()})
    assert check(plugged, plugged, ["args.from-a-plug-in=1"]) == [], "it knows better than the list"
    assert {one.id for one in check(plugged, None, ["args.from-a-plug-in=1"])} == {"unknown-flag"}


def test_registries_that_nobody_could_read_are_not_judged():
    blank = replace(KNOWN, tool_parsers=(), reasoning_parsers=())
    assert check(blank, blank, [TOOLS]) == []
