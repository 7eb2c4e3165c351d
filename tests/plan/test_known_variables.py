"""Misspelt variables are found by distance, and real ones are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from raylaunch.plan.known_variables import probably_meant, read_variables
from raylaunch.plan.spelling import closest, distance

EXPORTED = Path(__file__).parents[1] / "data" / "vllm" / "exported_variables.txt"
PREFIXES = ("HCCL_", "ASCEND_", "GLOO_", "TP_", "VLLM_")
SCRIPTS_OWN = {"VLLM_TP_SIZE"}
"""A variable of one example script, which passes it to a flag."""


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("HCCL_BUFFSZIE", "HCCL_BUFFSIZE"),
        ("HCCL_BUFFERSIZE", "HCCL_BUFFSIZE"),
        ("HCCL_CONECT_TIMEOUT", "HCCL_CONNECT_TIMEOUT"),
        ("HCCL_INTTRA_ROCE_ENABLE", "HCCL_INTRA_ROCE_ENABLE"),
        ("VLLM_ASCEND_ENBALE_FLASHCOMM1", "VLLM_ASCEND_ENABLE_FLASHCOMM1"),
        ("GLOO_SOCKET_IFNMAE", "GLOO_SOCKET_IFNAME"),
        ("HCCL_BUFFSIZE", ""),
        ("MY_OWN_VARIABLE", ""),
    ],
)
def test_a_misspelt_variable_has_its_right_name(written, meant):
    assert probably_meant(written) == meant


def misspell(name, rng):
    place = rng.randrange(len(name) - 1)
    before, one, two, after = name[:place], name[place], name[place + 1], name[place + 2 :]
    return rng.choice(
        [
            f"{before}{two}{one}{after}",
            f"{before}{two}{after}",
            f"{before}{one}{one}{two}{after}",
            f"{before}{rng.choice('AEIORST')}{two}{after}",
            name.replace("_", "", 1),
        ]
    )


def test_190_of_200_typos_are_corrected():
    rng = random.Random(16)
    names = [name for name in read_variables() if name.startswith(PREFIXES)]
    typos = {}
    while len(typos) < 200:
        name = rng.choice(names)
        typo = misspell(name, rng)
        if typo not in names:
            typos[typo] = name
    wrong = {typo: name for typo, name in typos.items() if probably_meant(typo) != name}
    assert len(wrong) <= 10, wrong


def test_no_name_that_six_trees_of_vllm_ascend_use_is_taken_for_a_typo():
    lines = EXPORTED.read_text().splitlines()
    names = [line.split()[0] for line in lines if not line.startswith("#")]
    assert len(names) > 100
    assert {
        name: probably_meant(name) for name in names if probably_meant(name)
    }.keys() <= SCRIPTS_OWN


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "axc", 1), ("abc", "xyz", 3)],
)
def test_the_distance_counts_edits(one, other, edits):
    assert distance(one, other, 5) == edits
    assert distance(one, other, edits - 1) == edits


def test_the_closest_name_is_none_when_all_are_far():
    assert closest("max-num-sqs", ["max-num-seqs", "max-model-len"]) == "max-num-seqs"
    assert closest("zzz", ["max-num-seqs"]) == ""
