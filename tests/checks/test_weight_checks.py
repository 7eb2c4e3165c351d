"""Checks on weights against the parallel sizes, the memory, the disk; what a probe saw decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.checks.check_all import check_nodes
from raylaunch.plan.facts import Facts, Interface, Npu, Weights
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

GIB = 2**30
FILES = {
    "config.json": 900,
    "model.safetensors.index.json": 100,
    "model-00001.safetensors": 220 * GIB,
}
CONFIG = {
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "intermediate_size": 1536,
    "num_local_experts": 256,
}
WEIGHTS = Weights(
    "/models/m", True, "minimax_m2", FILES, config=CONFIG, fingerprint="a1", filesystem="ext4"
)
NPUS = tuple(Npu(n, n, 0, "910B1", "OK", "0000:C1:00.0", 3400, 65536) for n in range(8))
IDS = {
    "dense-data-parallel",
    "drafter-missing",
    "layer-size",
    "weights-differ",
    "weights-too-big",
    "memory-small",
    "weights-on-network",
    "heads",
    "model-type",
}


def node(n: int, **changes) -> Facts:
    ip = f"192.0.2.{n}"
    nics = (Interface("eth0", (f"{ip}/24",)),)
    facts = Facts(
        ip, node_id=f"id{n}", interfaces=nics, npus=NPUS, weights=WEIGHTS, memory_available=500 * GIB,
        memory_total=1000 * GIB, clock=1000.0, devices=tuple(range(8)),
    )  # fmt: skip
    return replace(facts, **changes)


def check(first: Facts, second: Facts | None = None, sets=(), name="a2-dual"):
    loaded = read(name, list(sets))
    nodes = [first, second or node(11)][: loaded.recipe.parallel.servers]
    return [
        found for found in check_nodes(loaded, nodes, build_plan(loaded, nodes)) if found.id in IDS
    ]


def weights(**changes):
    return {"weights": replace(WEIGHTS, **changes)}


def test_good_weights_bring_nothing():
    assert check(node(10)) == []


def test_equal_names_and_sizes_with_other_content_differ():
    """MiniMax-M2.5 on one node and M2.7 on the other."""
    (found,) = check(node(10, **weights(fingerprint="b2")))
    assert (found.id, found.level) == ("weights-differ", "error")
    assert "content" in found.what
    assert "192.0.2.10 | 192.0.2.11" in found.what
    assert check(node(10, **weights(fingerprint=""))) == [], "not sampled there"


def test_the_size_of_other_kinds_of_weight_files_counts_too():
    (found,) = check(node(10, **weights(files=FILES | {"pytorch_model.bin": 3})))
    assert found.id == "weights-differ"
    assert "pytorch_model.bin" in found.seen


MANIFEST = FILES | {
    "tokenizer.json": 5000,
    "tokenizer_config.json": 700,
    "tiktoken.model": 60,
    "quant_model_description.json": 800,
    "modeling_minimax_m2.py": 90,
    "generation_config.json": 70,
    "chat_template.jinja": 80,
}


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("tokenizer.json", "error"),
        ("tokenizer_config.json", "error"),
        ("tiktoken.model", "error"),
        ("quant_model_description.json", "error"),
        ("modeling_minimax_m2.py", "error"),
        ("config.json", "error"),
        ("generation_config.json", "warning"),
        ("chat_template.jinja", "warning"),
        ("model.safetensors.index.json", "warning"),
    ],
)
def test_what_lies_beside_the_weights_must_be_the_same_too(name, level):
    whole = weights(files=MANIFEST)
    (absent,) = check(node(10, **weights(files=without(name))), node(11, **whole))
    assert (absent.id, absent.level, absent.where) == ("weights-differ", level, "192.0.2.10")
    assert f"{name} (missing on 192.0.2.10, {MANIFEST[name]} bytes on 192.0.2.11)" in absent.what
    (other,) = check(node(10, **whole), node(11, **weights(files=MANIFEST | {name: 1})))
    assert (other.id, other.level, other.where) == ("weights-differ", level, ""), (
        "nobody can say which is right"
    )
    assert f"{name} (1 bytes on 192.0.2.11, {MANIFEST[name]} bytes on 192.0.2.10)" in other.what


def without(*names):
    return {name: size for name, size in MANIFEST.items() if name not in names}


def test_files_that_no_server_reads_may_differ():
    more = (
        "README.md",
        "LICENSE",
        "merges.txt",
        "model.index",
        "figures/a.json",
        "inference/model.py",
        "docs/tokenizer",
    )
    found = check(
        node(10, **weights(files=MANIFEST | dict.fromkeys(more, 1))),
        node(11, **weights(files=MANIFEST)),
    )
    assert found == []


def test_of_many_nodes_the_odd_one_is_named():
    loaded = read("a2-dual", ["parallel.data=9"])

    def differ(**files):
        nodes = [node(10 + n, **weights(files=files if n == 4 else MANIFEST)) for n in range(9)]
        found = list(check_nodes(loaded, nodes, build_plan(loaded, nodes)))
        return [one for one in found if one.id == "weights-differ"]

    (one,) = differ(**MANIFEST | {"tokenizer.json": 5001})
    assert one.where == "192.0.2.14"
    assert (
        "tokenizer.json (5001 bytes on 192.0.2.14, 5000 bytes on 192.0.2.10, 192.0.2.11,"
        in one.what
    )
    assert "and 3 more" in one.what
    (several,) = differ(
        **without("tokenizer.json", "tiktoken.model", "modeling_minimax_m2.py", "config.json")
    )
    assert several.where == "192.0.2.14"
    assert "and 1 more files" in several.what
    assert "tokenizer.json" in several.seen
    (extra,) = differ(**MANIFEST | {"other.json": 3})
    assert (extra.level, extra.where) == ("warning", "192.0.2.14")
    assert "other.json (3 bytes on 192.0.2.14, missing on" in extra.what


@pytest.mark.parametrize(
    ("config", "sets", "named"),
    [
        ({"intermediate_size": 1004}, [], "1004 % 8"),
        ({"text_config": {"intermediate_size": 1004}}, [], "1004 % 8"),
        (
            {"moe_intermediate_size": 776, "n_routed_experts": 64},
            ["parallel.expert=false"],
            "776 % 16",
        ),
        (
            {"intermediate_size": 776, "num_local_experts": 64},
            ["parallel.expert=false"],
            "776 % 16",
        ),
        ({"moe_intermediate_size": 776, "n_routed_experts": 64}, [], None),
        ({"intermediate_size": 776, "num_local_experts": 64}, [], None),
        (
            {"intermediate_size": 1536, "moe_intermediate_size": 768, "num_experts": 128},
            ["parallel.expert=false"],
            None,
        ),
    ],
)
def test_feed_forward_layers_are_split_evenly(config, sets, named):
    """Without expert parallelism the experts are split over tensor- and data-parallel workers: 16 here."""
    found = check(node(10, **weights(config=config)), sets=sets)
    assert [(one.id, one.level, one.seen) for one in found] == (
        [("layer-size", "warning", named)] if named else []
    )


def test_ranks_of_a_dense_model_may_be_replicas():
    dense = {"num_attention_heads": 48, "num_key_value_heads": 8}
    sets = ["model.type=llama"]

    def of(config, sets=sets, kind="llama"):
        both = weights(config=config, model_type=kind)
        return check(node(10, **both), node(11, **both), sets=sets)

    (found,) = of(dense)
    assert (found.id, found.level) == ("dense-data-parallel", "info")
    assert "its 2 data-parallel ranks need no collective" in found.what
    assert found.todo.startswith("parallel.replicas=2 with parallel.data=1")
    assert of(dense | {"n_routed_experts": 8}) == []
    assert of({"text_config": dense | {"num_experts": 8}}) == []
    assert of(dense, [*sets, "parallel.data=1"]) == []
    assert of(dense, ["model.type=qwen3_moe"], "qwen3_moe") == [], "the type names experts"


@pytest.mark.parametrize(
    ("size_gib", "sets", "config", "fits"),
    [
        (900, [], CONFIG, True),  # 900 / 16 NPUs * 0.9 = 50.6 GiB; 64 GiB * 0.92 = 58.9 GiB
        (1100, [], CONFIG, False),
        (500, ["parallel.expert=false"], CONFIG, True),
        (550, ["parallel.expert=false"], CONFIG, False),  # every rank holds all: 8 NPUs
        (1100, [], CONFIG | {"torch_dtype": "float32"}, True),
        (900, ["args.gpu-memory-utilization=0.7"], CONFIG, False),
    ],
)
def test_weights_that_no_npu_can_hold_are_refused(size_gib, sets, config, fits):
    size = weights(expected_bytes=size_gib * GIB, config=config)
    found = check(node(10, **size, memory_available=2000 * GIB), sets=sets)
    assert [(one.id, one.level) for one in found] == (
        [] if fits else [("weights-too-big", "error")]
    )


def test_memory_that_cannot_hold_the_pages_means_reading_again():
    (found,) = check(node(10, memory_available=100 * GIB))
    assert (found.id, found.level, found.where) == ("memory-small", "warning", "192.0.2.10")
    assert "each of the 8 workers" in found.what
    less = weights(files=FILES | {"model-00001.safetensors": 30 * GIB})
    assert check(node(10, memory_available=100 * GIB, **less), node(11, **less)) == []
    assert check(node(10, memory_available=0)) == [], "not asked"


def test_on_cpu_each_rank_needs_the_weights_in_memory():
    sets = [
        "model.tiny=null",
        "model.path=/models/m",
        "model.type=null",
        "network.interface=eth0",
        "hardware.npus_per_server=8",
    ]
    both = replace(node(10, npus=()), memory_available=400 * GIB)
    (found,) = check(both, both, sets=sets, name="local-dual")
    assert (found.id, found.level) == ("memory-small", "error")
    assert "load 440.0 GiB" in found.what, "two servers on one machine"
    enough = replace(both, memory_available=441 * GIB)
    assert check(enough, enough, sets=sets, name="local-dual") == []


def test_a_network_filesystem_brings_the_load_time():
    (found,) = check(node(10, **weights(filesystem="nfs4", read_rate=500e6)))
    assert (found.id, found.level, found.where) == ("weights-on-network", "info", "192.0.2.10")
    assert "from nfs4 at 500 MB/s: 220.0 GiB in about 8 min" in found.what
    assert check(node(10, **weights(filesystem="nfs4", read_rate=None))) == []


def test_a_load_longer_than_the_start_may_take_is_a_warning():
    (found,) = check(node(10, **weights(filesystem="nfs", read_rate=50e6)))
    assert (found.id, found.level) == ("weights-on-network", "warning")
    assert "timeouts.start" in found.todo
    assert (
        check(node(10, **weights(filesystem="nfs", read_rate=50e6)), sets=["timeouts.start=7200"])[
            0
        ].level
        == "info"
    )


def test_a_repository_with_two_formats_is_not_counted_twice():
    both = FILES | {"pytorch_model.bin": 220 * GIB}
    first, second = (
        node(n, **weights(files=both, read_rate=1e9, filesystem="nfs")) for n in (10, 11)
    )
    assert all("220.0 GiB" in found.what for found in check(first, second))


def test_a_drafter_is_looked_at_before_the_model_is_loaded():
    sets = ["features.speculative={enabled: true, method: eagle3, model: /models/Eagle3}"]
    drafter = Weights("/models/Eagle3", True, files={"config.json": 1, "model.safetensors": 9})
    assert check(node(10, drafter=drafter), sets=sets) == []
    for broken in (
        Weights("/models/Eagle3", False),
        replace(drafter, damaged=("model.safetensors",)),
        replace(drafter, files={"config.json": 1}),
    ):
        (found,) = check(node(10, drafter=broken), sets=sets)
        assert (found.id, found.level, found.where) == ("drafter-missing", "error", "192.0.2.10")
        assert "/models/Eagle3" in found.what
        assert "raylaunch weights a2-dual" in found.todo


def test_a_tiny_model_is_never_judged():
    small = replace(
        node(10, npus=()),
        memory_available=1,
        weights=replace(WEIGHTS, read_rate=1.0, missing=("x",)),
    )
    assert check(small, small, ["network.interface=eth0"], name="local-dual") == []
