"""Groups of a recipe: each becomes a recipe of its own, and a mistake in one names its line."""

import pytest
import yaml

from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import recipe_from_mapping

TEXT = """\
extends: a2-single
groups:
  - name: small
    replicas: 2
    args: {max-num-seqs: 8, quantization: null}
  - name: long
    role: prefill
    parallel:
      tensor: 4
      prefill_context: 2
    env:
      HCCL_BUFFSIZE: 2048
"""


@pytest.fixture
def load(tmp_path):
    """Load a recipe file with TEXT, some of it replaced, and with more settings."""

    def _load(old="", new="", sets=()):
        assert old in TEXT
        file = tmp_path / "mine.yaml"
        file.write_text(TEXT.replace(old, new, 1) if old else TEXT)
        return read(str(file), list(sets))

    return _load


@pytest.mark.parametrize("name", [name for name in recipe_names() if "replicas" not in name])
def test_a_recipe_that_names_no_groups_has_one_and_stays_as_it_is(name):
    loaded = read(name)
    (only,) = expand_groups(loaded)
    assert (only.name, only.role, only.replica, only.alone) == ("serve-0", "serve", 0, True)
    assert only.loaded is loaded


@pytest.mark.parametrize(("name", "base"), [("a2-replicas", "a2-single")])
def test_replicas_are_the_recipe_without_replicas(name, base):
    loaded = read(name)
    groups = expand_groups(loaded)
    assert [group.name for group in groups] == ["serve-0", "serve-1"]
    assert [group.alone for group in groups] == [False, False]
    texts = ("description", "good_for", "source")
    wanted = read(base).recipe.model_dump(exclude_unset=True, exclude=texts)
    for group in groups:
        assert group.loaded.recipe.model_dump(exclude_unset=True, exclude=texts) == wanted
        assert "parallel.replicas" not in group.loaded.origins
        assert len(expand_groups(group.loaded)) == 1, "a group is a recipe of one group"


def test_set_makes_replicas():
    groups = expand_groups(read("a2-dual", ["parallel.replicas=3"]))
    assert [group.name for group in groups] == ["serve-0", "serve-1", "serve-2"]


def test_a_group_changes_what_it_gives_and_keeps_the_rest(load):
    groups = {group.name: group for group in expand_groups(load())}
    assert list(groups) == ["small-0", "small-1", "long-0"]
    small, long = groups["small-1"].loaded, groups["long-0"].loaded
    assert small.recipe.args["max-num-seqs"] == 8
    assert "quantization" not in small.recipe.args, "null removes"
    assert small.recipe.parallel.tensor == 8
    assert (long.recipe.parallel.tensor, long.recipe.parallel.prefill_context) == (4, 2)
    assert long.recipe.args["quantization"] == "ascend"
    assert long.recipe.env["HCCL_BUFFSIZE"] == "2048", "the value is read as under `env`"
    assert groups["long-0"].role == "prefill"
    assert long.recipe.groups == ()


def test_a_value_of_a_group_has_the_line_it_is_written_on(load):
    small, _, long = (group.loaded for group in expand_groups(load()))
    assert small.origin("args.max-num-seqs") == "recipe mine.yaml:5"
    assert small.origin("args.seed").startswith("recipe a2-single.yaml:")
    assert long.origin("parallel.prefill_context") == "recipe mine.yaml:10"
    assert long.origin("env.HCCL_BUFFSIZE") == "recipe mine.yaml:12"


def test_set_reaches_the_groups_that_do_not_set_the_value(load):
    small, _, long = (group.loaded for group in expand_groups(load(sets=["args.max-num-seqs=9"])))
    assert small.recipe.args["max-num-seqs"] == 8
    assert long.recipe.args["max-num-seqs"] == 9
    assert long.origin("args.max-num-seqs") == "--set"


def test_an_extending_recipe_replaces_the_groups_and_their_origins(load, tmp_path):
    load()
    file = tmp_path / "more.yaml"
    file.write_text("extends: mine.yaml\ngroups:\n  - name: other\n    args:\n      seed: 7\n")
    (other,) = expand_groups(read(str(file)))
    assert (other.name, other.alone) == ("other-0", True)
    assert other.loaded.recipe.args["seed"] == 7
    assert other.loaded.origin("args.seed") == "recipe more.yaml:5"
    assert other.loaded.origin("args.max-num-seqs").startswith("recipe a2-single.yaml")


def test_groups_given_as_values_are_those_of_the_file(load):
    loaded = load()
    values = loaded.recipe.model_dump(exclude_unset=True)
    again = expand_groups(recipe_from_mapping(values, "mine"))
    for group, same in zip(expand_groups(loaded), again, strict=True):
        assert same.loaded.recipe == group.loaded.recipe
        assert same.name == group.name


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("tensor:", "tensr:", 9, "'groups[1].parallel.tensr'; did you mean 'groups[1].parallel.t"),
        ("role:", "rle:", 7, "unknown key 'groups[1].rle'; did you mean 'groups[1].role'?"),
        ("tensor: 4", "tensor: x", 9, "groups[1].parallel.tensor: Input should be a valid integer"),
        ("role: prefill", "role: pre", 7, "groups[1].role: Input should be 'serve', 'prefill'"),
        ("tensor: 4", "replicas: 4", 6, "groups[1]: give `replicas` of the group"),
        (
            "    parallel:",
            "    hardware: {npus_per_server: 65}\n    parallel:",
            8,
            "groups[1].hardware.npus_per_server: Input should be less than or equal to 64",
        ),
        (
            "    parallel:",
            "    hardware: {npus_per_server: null}\n    parallel:\n      pipeline: 9",
            6,
            "groups[1]: a server needs 72 NPUs",
        ),
        ("args: {", "args: {port: 1, ", 5, "groups[0]: args.port is set by raylaunch"),
        ("args: {", "args: {port: null, ", 5, "args.port is set by raylaunch"),
        ("args: {", "args: {max_num_seqs: 1, ", 3, "groups[0]: args gives --max-num-seqs twice"),
        ("SIZE: 2048", "SIZE: 1.5", 12, "groups[1].env.HCCL_BUFFSIZE: environment values are text"),
        ("name: long", "name: small", 6, "groups[1].name is 'small', as that of another one"),
        ("name: long", "name: Long", 6, "groups[1].name: 'Long' is not a name for groups"),
        ("name: long", "name: a-b", 6, "'a-b' is not a name for groups"),
        ("name: long", "name: " + "a" * 21, 6, "is not a name for groups"),
        ("replicas: 2", "replicas: 0", 4, "groups[0].replicas: Input should be greater"),
        ("replicas: 2", "replicas: 8192", None, "groups: 8193 groups, and at most 8192"),
        ("    env:", "    hardware: null\n    env:", 11, "groups[1].hardware is missing"),
        ("- name: long", "- args: {}", 6, "groups[1].name is missing"),
        ("groups:", "parallel: {replicas: 2}\ngroups:", None, "stands beside groups"),
    ],
)
def test_a_mistake_in_a_group_names_its_line(load, old, new, line, message):
    with pytest.raises(RecipeError) as refused:
        load(old, new)
    where = f"recipe mine.yaml:{line}: " if line else "recipe mine.yaml"
    assert str(refused.value).startswith(where), refused.value
    assert message in str(refused.value)


def test_set_refuses_to_change_one_of_the_groups(load):
    with pytest.raises(RecipeError, match=r"--set groups\.0\.name: groups are changed in a recipe"):
        load(sets=["groups.0.name=x"])


def test_the_shown_recipe_reads_back_with_the_same_groups(load, tmp_path):
    from raylaunch.cli.views.recipe_view import yaml_lines

    loaded = load()
    text = "\n".join(yaml_lines(loaded))
    assert "  - name: small " in text
    assert "# mine.yaml:12" in text
    values = yaml.safe_load(text)
    assert values["groups"] == yaml.safe_load(TEXT)["groups"]
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    for group, same in zip(expand_groups(loaded), expand_groups(read(str(file))), strict=True):
        assert same.loaded.recipe == group.loaded.recipe
