"""Fallbacks of a recipe: which are read, and which cannot take its place."""

from __future__ import annotations

import pytest

from raylaunch.api.recipe_arguments import load as load_value
from raylaunch.checks.secret_checks import MASK, mask_recipe
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import files_of, read
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.health_settings import MAX_FALLBACKS
from raylaunch.recipe.load import change_recipe, recipe_from_mapping
from raylaunch.supervise.replicas import with_replicas

FULL = """\
extends: local-dual
fallback:
  - small
  - recipe: small
    set: {args.max-num-seqs: 2}
  - set: {parallel.data: 1}
"""
SMALL = "extends: local-dual\nparallel: {data: 1}\nargs: {max-num-seqs: 4}\n"


@pytest.fixture
def load(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)

    def _load(text=FULL, sets=()):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return read(str(file), list(sets))

    return _load


def complaint(load, *args, **kwargs) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_a_fallback_is_a_recipe_another_with_changes_or_this_one_with_changes(load):
    loaded = load()
    sizes = [(one.name, one.recipe.args["max-num-seqs"]) for one in loaded.fallbacks]
    assert sizes == [("small", 4), ("small", 2), ("mine", 8)]
    assert [one.recipe.parallel.servers for one in loaded.fallbacks] == [1, 1, 1]
    assert loaded.fallbacks[1].origin("args.max-num-seqs") == "fallback"
    assert [entry.title for entry in loaded.recipe.fallback] == [
        "small",
        "small with args.max-num-seqs",
        "the recipe itself with parallel.data=1",
    ]
    for one in loaded.fallbacks:
        assert one.recipe.fallback == ()


def test_settings_of_the_command_line_reach_the_fallback_that_is_this_recipe(load):
    loaded = load(sets=["args.max-model-len=64"])
    lengths = [one.recipe.args["max-model-len"] for one in loaded.fallbacks]
    assert lengths == [1024, 1024, 64]


def test_a_recipe_that_extends_the_full_one_inherits_no_fallback(load, tmp_path):
    (tmp_path / "less.yaml").write_text("extends: mine\nparallel: {data: 1}\n")
    loaded = load("extends: local-dual\nfallback: [less]\n")
    assert loaded.fallbacks[0].recipe.fallback == ()


def test_a_fallback_is_found_beside_the_file_that_names_it(load, tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    (below / "mine.yaml").write_text("extends: ../base.yaml\n")
    (tmp_path / "base.yaml").write_text("extends: local-dual\nfallback: [./small.yaml]\n")
    assert read(str(below / "mine.yaml")).fallbacks[0].name == "small"
    name, files = files_of(str(below / "mine.yaml"))
    assert name == "below/mine.yaml"
    assert sorted(files) == ["base.yaml", "below/mine.yaml", "small.yaml"], (
        "another machine needs it too"
    )


@pytest.mark.parametrize(
    ("fallback", "words"),
    [
        ("[smal]", ["there is no recipe named 'smal'", "a2-single"]),
        ("[{set: {parallel.data: 2}}]", ["mine.yaml:2", "fallback[0] needs 2 node(s)", "itself 2"]),
        ("[small, local-dual]", ["fallback[1] needs 2 node(s)", "for fewer nodes"]),
        ("[mine]", ["the recipe mine has fallbacks itself", "the largest first"]),
        ("[{set: {fallback: [small]}}]", ["cannot give a fallback further ones"]),
        (
            "[{recipe: small, set: {model.served_name: other}}]",
            ["serves 'other'", "clients ask for 'tiny'", "model.served_name: tiny"],
        ),
        ("[{recipe: small, set: {secrets: [HF_TOKEN]}}]", ["needs the secret HF_TOKEN"]),
        ("[{recipe: small, set: {hardware.platform: ascend-a2}}]", ["is for ascend-a2"]),
        ("[{recpie: small}]", ["mine.yaml:2", "'fallback.0.recpie'", "'fallback.0.recipe'"]),
        ("[{set: {paralel.data: 1}}]", ["fallback: unknown key 'paralel'", "'parallel'"]),
        ("[{set: {groups: []}}]", ["groups are changed in a recipe file only"]),
        ("small", ["fallback"]),
        ("[3]", ["fallback"]),
        (f"[{', '.join(['small'] * (MAX_FALLBACKS + 1))}]", ["fallback", "at most 8"]),
    ],
)
def test_a_fallback_that_cannot_take_the_place_is_refused(load, fallback, words):
    text = complaint(load, f"extends: local-dual\nfallback: {fallback}\n")
    for word in words:
        assert word in text


def test_a_time_to_degrade_after_the_group_has_failed_is_refused(load):
    text = complaint(load, sets=["health.degrade_after_s=3600"])
    assert "health.degrade_after_s is not below health.restart_window_s" in text


def test_the_shipped_recipe_for_one_node_fits_below_that_for_two():
    entry = "{recipe: a2-single, set: {model.served_name: minimax25}}"
    (small,) = read("a2-dual", [f"fallback=[{entry}]"]).fallbacks
    assert small.recipe.args["quantization"] == "ascend"
    assert small.recipe.model.served_name == "minimax25"
    assert "clients ask for 'minimax25'" in complaint(read, "a2-dual", ["fallback=[a2-single]"])


def test_a_recipe_as_a_value_names_shipped_recipes():
    values = read("local-dual").recipe.model_dump(exclude_unset=True)
    small = {"set": {"parallel.data": 1}}
    assert load_value({**values, "fallback": [small]}).fallbacks[0].recipe.parallel.data == 1
    assert "needs 2 node" in complaint(load_value, {**values, "fallback": ["local-dual"]})
    text = complaint(recipe_from_mapping, {**values, "fallback": ["local-dual"]}, "mine")
    assert "cannot be read here" in text, "nothing is searched where no finder is given"


def test_changes_of_a_running_recipe_keep_its_fallbacks(load):
    loaded = load()
    changed = change_recipe(loaded, ["args.max-model-len=64"])
    assert changed.fallbacks[:2] == loaded.fallbacks[:2]
    assert changed.fallbacks[2].recipe.args["max-model-len"] == 64
    assert change_recipe(loaded, ["fallback=[]"]).fallbacks == ()
    text = complaint(change_recipe, loaded, ["fallback=[a2-single]"])
    assert "a2-single is not among those that were read" in text
    assert with_replicas(loaded, 2).fallbacks == loaded.fallbacks


def test_groups_of_a_recipe_with_fallbacks_are_those_without(load):
    (with_them,) = expand_groups(load())
    (without,) = expand_groups(read("local-dual"))
    assert with_them.name == without.name
    assert with_them.loaded.recipe.parallel == without.loaded.recipe.parallel


def test_a_secret_in_the_changes_of_a_fallback_is_masked():
    values = {"fallback": [{"recipe": "small", "set": {"env.HF_TOKEN": "hf_abc", "env.A": "1"}}]}
    masked = mask_recipe(values)
    assert masked["fallback"] == [{"recipe": "small", "set": {"env.HF_TOKEN": MASK, "env.A": "1"}}]
