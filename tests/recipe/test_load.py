"""Reading recipes: layers, --set, and errors a person can act on."""

import re

import pytest

from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import configs_dir, finder, read, recipe_names
from raylaunch.recipe.load import load_recipe, recipe_from_mapping

BASE = """\
model:
  path: /models/m
  served_name: m
hardware:
  platform: ascend-a2
parallel:
  tensor: 8
  data: 2
  data_local: 1
args:
  max-num-seqs: 128
  compilation-config: {cudagraph_mode: FULL_DECODE_ONLY, level: 3}
env:
  HCCL_BUFFSIZE: 1024
  OMP_PROC_BIND: "false"
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def load(tmp_path, write):
    def load(text=BASE, sets=(), name="mine"):
        write(name, text)
        return load_recipe(name, finder(tmp_path), sets)

    return load


def complaint(load, *args, **kwargs):
    with pytest.raises(RecipeError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_every_shipped_recipe_loads_and_describes_itself():
    assert recipe_names() == sorted(path.stem for path in configs_dir().glob("*.yaml"))
    for name in recipe_names():
        recipe = read(name).recipe
        assert recipe.description, name
        assert recipe.source, name


def test_values_know_their_line(load):
    loaded = load()
    assert loaded.origin("parallel.tensor") == "recipe mine.yaml:7"
    assert loaded.origin("env.HCCL_BUFFSIZE") == "recipe mine.yaml:14"
    assert loaded.origin("network.http_port") == "raylaunch: default"


def test_numbers_in_env_become_text_and_booleans_are_refused(load):
    assert load().recipe.env == {"HCCL_BUFFSIZE": "1024", "OMP_PROC_BIND": "false"}
    text = complaint(load, BASE.replace('"false"', "false"))
    assert "mine.yaml:15" in text
    assert "env.OMP_PROC_BIND" in text
    assert "'false'" in text


@pytest.mark.parametrize("name", ["FOO-BAR", "1FOO", "A B"])
def test_a_variable_that_no_shell_could_export_is_refused(load, name):
    text = complaint(load, f"{BASE}  {name}: x\n")
    assert "mine.yaml:16" in text
    assert name in text


def test_extends_merges_mappings_and_replaces_the_rest(load, write):
    write("base", BASE)
    loaded = load("extends: base\nparallel: {data: 4}\nargs: {compilation-config: {level: 1}}\n")
    recipe = loaded.recipe
    assert (recipe.parallel.tensor, recipe.parallel.data) == (8, 4)
    assert recipe.args["max-num-seqs"] == 128
    assert recipe.args["compilation-config"] == {"level": 1}, (
        "a flag's value is one thing, never merged"
    )
    assert loaded.origin("parallel.tensor") == "recipe base.yaml:7"
    assert loaded.origin("parallel.data") == "recipe mine.yaml:2"


def test_extends_reaches_over_several_files_and_finds_paths_beside_the_asker(load, write, tmp_path):
    write("base", BASE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mid.yaml").write_text("extends: ../base.yaml\nmodel: {served_name: mid}\n")
    recipe = load("extends: sub/mid.yaml\nparallel: {data: 4}\n").recipe
    assert (recipe.model.served_name, recipe.parallel.data, recipe.parallel.tensor) == ("mid", 4, 8)


def test_null_removes_what_the_base_had(load, write):
    write("base", BASE)
    recipe = load(
        "extends: base\nargs: {max-num-seqs: null}\nenv: {HCCL_BUFFSIZE: null}\nparallel: {data: null}\n"
    ).recipe
    assert "max-num-seqs" not in recipe.args
    assert "HCCL_BUFFSIZE" not in recipe.env
    assert recipe.parallel.data == 1


def test_null_where_there_is_no_base_is_nothing_at_all(load):
    recipe = load(
        BASE.replace("max-num-seqs: 128", "max-num-seqs: null"),
        sets=["env.NEW=null", "args.seed=null"],
    ).recipe
    assert "max-num-seqs" not in recipe.args
    assert "seed" not in recipe.args
    assert "NEW" not in recipe.env


def test_null_inside_a_flag_value_stays(load, write):
    write("base", BASE)
    recipe = load("extends: base\nargs: {compilation-config: {level: null}}\n").recipe
    assert recipe.args["compilation-config"] == {"level": None}


def test_a_recipe_that_extends_itself_is_refused_with_the_circle(load, write):
    write("a", "extends: b\n")
    write("b", "extends: a\n")
    text = complaint(load, "extends: a\n")
    assert "extends itself" in text
    assert "mine.yaml -> a.yaml -> b.yaml" in text


def test_an_unknown_base_is_named(load):
    assert "there is no recipe named 'nowhere'" in complaint(load, "extends: nowhere\n")


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("parallel.data=4", ("parallel", "data"), 4),
        ("network.interface=eth0", ("network", "interface"), "eth0"),
        ("parallel.expert=true", ("parallel", "expert"), True),
        ("timeouts.start=90", ("timeouts", "start"), 90.0),
        ("secrets=[VLLM_API_KEY]", ("secrets",), ("VLLM_API_KEY",)),
        ("model.path=/a=b", ("model", "path"), "/a=b"),
    ],
)
def test_set_is_typed_by_the_schema(load, assignment, path, value):
    found = load(sets=[assignment])
    reached = found.recipe
    for part in path:
        reached = getattr(reached, part)
    assert reached == value
    assert type(reached) is type(value)
    assert found.origin(".".join(path)) == "--set"


def test_set_reaches_flags_and_variables_even_with_dots_in_their_names(load):
    recipe = load(sets=["env.HCCL_BUFFSIZE=512", "args.a.b=1", "args.list=[1, 2]"]).recipe
    assert recipe.env["HCCL_BUFFSIZE"] == "512"
    assert recipe.args["a.b"] == 1
    assert recipe.args["list"] == [1, 2]


def test_the_last_set_wins(load):
    assert load(sets=["parallel.data=4", "parallel.data=6"]).recipe.parallel.data == 6


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("parallel.data", "has no value"),
        ("=3", "has no value"),
        ("parallel.data=many", "--set: parallel.data"),
        ("args.x={", "not valid YAML"),
        ("parallel.datta=4", "did you mean 'parallel.data'?"),
        ("env.HCCL_IF_IP=1.2.3.4", "use network.interface"),
        ("args.tp=4", "use parallel.tensor"),
        ("parallel=4", "parallel"),
    ],
)
def test_a_bad_set_is_explained(load, assignment, said):
    assert said in complaint(load, sets=[assignment])


def test_an_unknown_key_names_file_line_key_and_the_nearest(load):
    text = complaint(load, BASE + "network:\n  http_prot: 1\n")
    assert (
        "mine.yaml:17: unknown key 'network.http_prot'; did you mean 'network.http_port'?" in text
    )


def test_a_key_near_nothing_gets_the_list(load):
    assert re.search(
        r"unknown key 'zzz'; valid here: .*parallel.*extends", complaint(load, BASE + "zzz: 1\n")
    )


def test_all_problems_are_told_at_once(load):
    text = complaint(load, BASE + "zzz: 1\nnetwork: {http_port: 70000}\n")
    assert "zzz" in text
    assert "mine.yaml:17: network.http_port" in text


def test_a_missing_key_is_named(load):
    assert "model.served_name is missing" in complaint(load, BASE.replace("  served_name: m\n", ""))


def test_a_key_given_twice_is_refused_with_its_line(load):
    text = complaint(load, BASE + "env:\n  A: 1\n")
    assert "line 16" in text
    assert "key env is given twice" in text


def test_a_flag_in_two_spellings_is_refused(load):
    said = complaint(load, BASE.replace("args:\n", "args:\n  max_num_seqs: 1\n"))
    assert re.search(r"mine\.yaml, line \d+: args gives --max-num-seqs twice", said)


def test_a_flag_in_two_spellings_is_refused_from_python_too():
    args = {"max_num_seqs": 1, "max-num-seqs": 2}
    values = {
        "model": {"path": "/m", "served_name": "m"},
        "hardware": {"platform": "cpu"},
        "args": args,
    }
    with pytest.raises(RecipeError, match="--max-num-seqs twice"):
        recipe_from_mapping(values, "mine")


def test_a_flag_is_overridden_in_any_spelling(load):
    for spelling in ("max-num-seqs", "max_num_seqs"):
        changed = load(BASE, sets=[f"args.{spelling}=7"])
        assert [value for name, value in changed.recipe.args.items() if "seqs" in name] == [7]
        assert changed.origin(f"args.{spelling}") == "--set"
    gone = load(BASE, sets=["args.max_num_seqs=null"])
    assert not [name for name in gone.recipe.args if "seqs" in name]
    last = load(BASE, sets=["args.max_num_seqs=7", "args.max-num-seqs=8"])
    assert last.recipe.args == load(BASE, sets=["args.max-num-seqs=8"]).recipe.args


@pytest.mark.parametrize(
    "text", ["model: {path: [", "a: b: c\n", "\tx: 1\n", "a: @b\n", "a: *nowhere\n", "a: !odd b\n"]
)
def test_malformed_yaml_is_an_error_with_a_line(load, text):
    assert re.search(r"mine\.yaml is not valid YAML, line \d+, column \d+", complaint(load, text))


@pytest.mark.parametrize("text", ["a: \x00\n", "a: 2026-13-45\n", "a: &x {b: *x}\n"])
def test_yaml_without_a_meaning_is_an_error_too(load, text):
    assert "mine.yaml is not valid YAML" in complaint(load, text)


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(load, text):
    assert "not a mapping" in complaint(load, text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in complaint(load_recipe, "mine", finder(tmp_path))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("args:\n  port: 1", "args.port is set by raylaunch: use network.http_port"),
        (
            "args:\n  tensor_parallel_size: 1",
            "args.tensor_parallel_size is set by raylaunch: use parallel.tensor",
        ),
        ("args:\n  --dp: 1", "use parallel.data"),
        ("args:\n  no-enable-expert-parallel: true", "use parallel.expert"),
        ("args:\n  speculative_config: {}", "use features.speculative"),
        (
            "env:\n  GLOO_SOCKET_IFNAME: eth0",
            "env.GLOO_SOCKET_IFNAME is set by raylaunch: use network.interface",
        ),
        ("env:\n  ASCEND_RT_VISIBLE_DEVICES: '0'", "Ray assigns the devices"),
        ("env:\n  VLLM_TORCH_PROFILER_DIR: /x", "use features.profiling.dir"),
        ("env:\n  RAYLAUNCH_ATTEMPT: '1'", "raylaunch marks its own processes"),
    ],
)
def test_what_the_planner_owns_is_refused_with_the_field_to_use(load, key, said):
    text = complaint(load, BASE.partition("args:")[0] + key + "\n")
    assert said in text
    assert "mine.yaml:11" in text


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError) as caught:
        read("a2-duel")
    assert "did you mean 'a2-dual'?" in str(caught.value)


def test_a_path_that_leads_nowhere_is_said_to(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe file"):
        read(str(tmp_path / "no.yaml"))


def test_a_recipe_is_read_from_a_mapping_too():
    values = {
        "model": {"path": "/m", "served_name": "m"},
        "hardware": {"platform": "cpu"},
        "args": {"x": {"y": 1}},
    }
    loaded = recipe_from_mapping(values, "inline")
    assert loaded.recipe.args == {"x": {"y": 1}}
    assert loaded.origin("model.path") == "caller"


def test_secrets_are_names_only(load):
    recipe = load(BASE + "secrets: [VLLM_API_KEY, HF_TOKEN]\n").recipe
    assert recipe.secrets == ("VLLM_API_KEY", "HF_TOKEN")
    assert "followed by a value" in complaint(load, BASE + "secrets: ['VLLM_API_KEY=abc']\n")


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("secrets", ["HF_TOKEN=hf_x7Qp2mT9aB"]),
        ("secrets", {"HF_TOKEN": "hf_x7Qp2mT9aB"}),
        ("secrets", "hf_x7Qp2mT9aB"),
        ("env", {"HF_TOKEN": {"value": "hf_x7Qp2mT9aB"}}),
        ("env", {"HF_TOKEN": ["hf_x7Qp2mT9aB"]}),
        ("env", "HF_TOKEN=hf_x7Qp2mT9aB"),
        ("env", {"HF_TOKEN=hf_x7Qp2mT9aB": ""}),
        ("args", "--api-key hf_x7Qp2mT9aB"),
        ("container", "docker run -e HF_TOKEN=hf_x7Qp2mT9aB"),
        ("groups", [{"name": "one", "env": {"HF_TOKEN": ["hf_x7Qp2mT9aB"]}}]),
    ],
)
def test_a_wrong_value_that_may_be_a_secret_is_not_quoted(section, value):
    base = {"model": {"path": "/m", "served_name": "m"}, "hardware": {"platform": "ascend-a2"}}
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping({**base, section: value}, "mine")
    assert section in str(caught.value)
    assert "x7Qp2mT9aB" not in str(caught.value)
