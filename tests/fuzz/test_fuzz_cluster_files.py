"""Random and mutated files for `ray up`: read, or refused with an error of our own."""

import pytest
from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch.errors import ClusterFileError
from raylaunch.recipe.catalog import read
from raylaunch.recipe.cluster_yaml import read_cluster_file
from raylaunch.render.ray_cluster import render_cluster

fuzz = settings.get_profile("fuzz")

SEED = render_cluster(
    read("a2-dual"), head="192.0.2.10", workers=["192.0.2.11"], ssh_user="root", ssh_key="~/k"
)
TOKENS = [
    *(
        "!!int x",
        "!!bool x",
        "!!timestamp x",
        "!!binary x",
        "!!set {a}",
        "!!omap [a]",
        "!!python/x a",
    ),
    *(
        "&a ",
        "*a ",
        "<<: *a\n",
        "<<: [*a, *a]\n",
        "? ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "|",
        "'",
        '"',
    ),
    *(
        "1:" * 50 + "1",
        "1" * 5000,
        ".nan",
        "null",
        "2026-99-99",
        "\x00",
        "\x7f",
        "\ud800",
        "\n",
        "\t",
    ),
    *("provider: ", "type: local", "head_ip: ", "worker_ips: ", "auth: ", "min_workers: ", "-7"),
]


@st.composite
def mutated(draw):
    """A written cluster file with pieces cut out of it or replaced by tokens."""
    text = draw(st.sampled_from([SEED, "\n".join(SEED.splitlines()[14:30])]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = text[:start] + draw(st.sampled_from(TOKENS)) + text[end:]
    return text


def survives(text):
    refused = None
    try:
        found = read_cluster_file(text, "some.yaml")
    except ClusterFileError as error:
        refused = error
    if refused:
        str(refused).encode("utf-8", "backslashreplace")
        assert refused.what
        assert refused.todo
    else:
        assert found.head_ip.encode()
        assert 0 <= found.min_workers <= len(found.workers)


@fuzz
@given(st.one_of(mutated(), st.lists(st.sampled_from(TOKENS), max_size=12).map("".join)))
def test_a_cluster_file_is_read_or_refused(text):
    with bounded():
        survives(text)


BOMB = "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)
)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, "- " * 100_000, "{a: " * 50_000, "a: " + "1:" * 200_000 + "1"),
        *(
            "a: !!int '" + "1:" * 200_000 + "1'",
            "a: " + "1" * 500_000,
            BOMB,
            MERGES,
            "x" * 2_000_000,
        ),
    ],
    ids=["flow", "block", "maps", "base 60", "tag", "digits", "aliases", "merges", "long"],
)
def test_a_bomb_is_read_or_refused_within_two_seconds(text):
    with bounded():
        survives(text)
