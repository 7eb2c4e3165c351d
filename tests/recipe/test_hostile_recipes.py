"""Recipes that once gave a traceback, a hang or gigabytes: refused with key, place, reason."""

import os
import time

import pytest

from raylaunch.errors import RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import files_of, finder, read
from raylaunch.recipe.load import load_recipe, recipe_from_mapping
from raylaunch.recipe.yaml_limits import MAX_FILE_BYTES, MAX_VALUES, load_plain
from raylaunch.recipe.yaml_reader import read_text

BASE = """\
model: {path: /models/m, served_name: m}
hardware: {platform: ascend-a2}
parallel: {tensor: 8, data: 2, data_local: 1}
"""


CPU_LIMIT_S = 8.0
"""CPU time of one test. Each takes under 2 s on an idle core; quadratic reading took over 40 s."""


@pytest.fixture(autouse=True)
def bounded_cpu_time():
    start = time.process_time()
    yield
    assert time.process_time() - start < CPU_LIMIT_S


def refuse(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe("mine", finder(tmp_path))
    return str(refused.value)


BAD_SCALARS = [
    ("!!int x", "is not a valid int"),
    ("!!int ''", "is not a valid int"),
    ("!!float x", "is not a valid float"),
    ("!!bool x", "is not a valid bool"),
    ("!!timestamp 2026-99-99", "is not a valid timestamp"),
    ("!!timestamp x", "is not a valid timestamp"),
    ("2026-99-99", "is not a valid timestamp"),
    ("2026-01-01", "type date"),
    ("!!binary aGFsbG8=", "type bytes"),
    ("1" * 5000, "5000 characters"),
    ("0x" + "f" * 20, "64 bits"),
    ("1" + "0" * 30, "64 bits"),
    (":".join(["1"] * 3000), "5999 characters"),
    (".inf", "not a finite number"),
    (".nan", "not a finite number"),
    ("!!set {a, b}", "YAML tag tag:yaml.org,2002:set"),
    ("!!omap [a: 1]", "YAML tag tag:yaml.org,2002:omap"),
    ('"a\\x7fb"', "U+007F"),
    ('"a\\0b"', "U+0000"),
    ('"\\e]52;c;x\\a"', "U+001B"),
    ('"\\ud800"', "Unicode"),
    ("{1: 2}", "the key 1 is not text"),
    ("{true: 2}", "the key True is not text"),
    ("[{2: 3}]", "the key 2 is not text"),
    ("{[a]: 2}", "is not text"),
    ("{<<: {a: 1}}", "merge"),
    ('{"\\x9b": 1}', "U+009B"),
]


@pytest.mark.parametrize(("value", "why"), BAD_SCALARS)
def test_a_value_that_no_flag_can_have_is_refused_with_its_line(tmp_path, value, why):
    text = refuse(tmp_path, f"{BASE}args:\n  x: {value}\n")
    assert why in text
    assert "line 5" in text
    assert len(text) < 600


@pytest.mark.parametrize(("value", "why"), BAD_SCALARS)
def test_set_refuses_the_same_values(value, why):
    with pytest.raises(RecipeError) as refused:
        read("a2-dual", [f"args.x={value}"])
    assert why in str(refused.value)
    assert "--set args.x" in str(refused.value)


@pytest.mark.parametrize("value", [b"x", {1: 2}, [{None: 1}], 10**30, float("nan"), "\x1b", {"a"}])
def test_a_recipe_from_python_refuses_them_too(value):
    values = {
        "model": {"path": "/m", "served_name": "m"},
        "hardware": {"platform": "cpu"},
        "args": {"x": value},
    }
    with pytest.raises(RecipeError, match="caller: "):
        recipe_from_mapping(values, "mine")


def test_a_mapping_that_holds_itself_is_refused():
    args = {}
    args["x"] = args
    with pytest.raises(RecipeError, match="too deeply nested"):
        recipe_from_mapping({"args": args}, "mine")


@pytest.mark.parametrize(
    ("assignment", "why"),
    [
        ("args={1: 2}", "the key 1 is not text"),
        ("hardware.npus_per_server=1000000000", "less than or equal to 64"),
        ("hardware.npus_per_node=1000000000", "less than or equal to 64"),
        ("parallel.tensor=1" + "0" * 30, "64 bits"),
        ("parallel.data=100000000", "less than or equal to 8192"),
        ("timeouts.start=1e300", "less than or equal to 2147483"),
        ("timeouts.start=.inf", "not a finite number"),
        ("tuning.sysctl={vm.swappiness: 18446744073709551615}", "less than or equal to 9223"),
        ("a\x1bb=1", "U+001B"),
        ("args.x=" + "[" * 100_000, "too many or too deeply nested"),
    ],
)
def test_set_values_beyond_all_hardware_are_refused(assignment, why):
    with pytest.raises(RecipeError) as refused:
        read("a2-dual", [assignment])
    assert why in str(refused.value)
    assert str(refused.value).isprintable() or "\n" in str(refused.value)


def test_a_server_beyond_every_node_is_refused():
    sets = ["hardware.npus_per_server=null", "parallel.pipeline=64"]
    with pytest.raises(RecipeError, match=r"a server needs 512 NPUs .* no node has more than 64"):
        read("a2-dual", sets)


def test_the_largest_supernode_is_not():
    recipe = read("a2-dual", ["parallel.data=1024"]).recipe
    assert recipe.parallel.servers == 1024


@pytest.mark.parametrize("form", ["[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}"])
def test_an_alias_bomb_is_refused(tmp_path, form):
    lines = ["  a0: &a0 [x]"]
    lines += [f"  a{n}: &a{n} {form.format(n - 1)}" for n in range(1, 40)]
    text = refuse(tmp_path, BASE + "args:\n" + "\n".join(lines) + "\n")
    assert f"at most {MAX_VALUES} values" in text


def test_an_alias_that_is_no_bomb_still_works(tmp_path):
    (tmp_path / "mine.yaml").write_text(BASE + "args:\n  a: &a {x: [1]}\n  b: *a\n")
    assert load_recipe("mine", finder(tmp_path)).recipe.args == {"a": {"x": [1]}, "b": {"x": [1]}}


@pytest.mark.parametrize("text", ["[" * 1_000_000, "a: " + "{b: " * 100_000, "- " * 400_000])
def test_deep_nesting_is_refused(tmp_path, text):
    assert "too many or too deeply nested" in refuse(tmp_path, text)


def test_twenty_thousand_flags_are_planned_in_linear_time(tmp_path):
    flags = "".join(f"  flag-{n}: {n}\n  config.key-{n}: {n}\n" for n in range(10_000))
    (tmp_path / "mine.yaml").write_text(f"{BASE}args:\n{flags}")
    loaded = load_recipe("mine", finder(tmp_path))
    nodes = [Facts("192.0.2.10", interface="e"), Facts("192.0.2.11", interface="e")]
    flags = build_plan(loaded, nodes).primary.flags
    assert len(flags) > 10_000


def test_thousands_of_unknown_keys_are_summed_up(tmp_path):
    text = refuse(tmp_path, BASE + "".join(f"unknown-{n}: 1\n" for n in range(5000)))
    assert "and 4980 more problems" in text


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "large.yaml").write_text("#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_text(tmp_path / "large.yaml")
    with pytest.raises(OSError, match="not a regular file"):
        read_text("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        read_text(tmp_path / "fifo")


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="/proc/kmsg is not readable here")
def test_a_file_that_blocks_its_reader_is_refused(tmp_path):
    assert "recipe" in refuse(tmp_path, "extends: /proc/kmsg\n")


@pytest.mark.parametrize("base", ["/dev/zero", "/proc/self/pagemap", "../../etc/passwd", "x" * 300])
def test_extends_refuses_what_is_no_recipe(tmp_path, base):
    assert "recipe" in refuse(tmp_path, f"extends: {base}\n")


@pytest.mark.parametrize(
    "name", ["x" * 256, "x/" + "y" * 256 + ".yaml", "a/" * 3000, "a\0b", "/\0"]
)
def test_names_and_paths_that_no_file_can_have_are_refused(name):
    with pytest.raises(RecipeError) as refused:
        read(name)
    assert len(str(refused.value)) < 2000


def test_a_long_chain_of_recipes_is_refused(tmp_path):
    for number in range(30):
        (tmp_path / f"r{number}.yaml").write_text(f"extends: r{number + 1}\n")
    with pytest.raises(RecipeError, match="extends over 16 recipes"):
        load_recipe("r0", finder(tmp_path))


def test_the_files_of_a_recipe_that_extends_itself_are_not_searched_for_ever(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        files_of(str(tmp_path / "a.yaml"))


def test_the_files_of_a_recipe_are_its_own_and_its_bases(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("extends: a2-dual\n")
    (tmp_path / "sub" / "mine.yaml").write_text("extends: ../base.yaml\n")
    name, files = files_of(str(tmp_path / "sub" / "mine.yaml"))
    assert name == "sub/mine.yaml"
    assert sorted(files) == ["base.yaml", "sub/mine.yaml"]


@pytest.mark.parametrize("path", ["env.HCCL_IF_IP", "args.port", "env.VLLM_HOST_IP"])
def test_null_for_what_raylaunch_sets_is_refused_with_the_field_to_use(path):
    with pytest.raises(RecipeError) as refused:
        read("a2-dual", [f"{path}=null"])
    assert f"--set: {path} is set by raylaunch: use network." in str(refused.value)


def test_hccl_if_ip_can_be_left_unset_as_the_message_says():
    with pytest.raises(RecipeError, match=r"network\.hccl_if_ip=false leaves it unset"):
        read("a2-dual", ["env.HCCL_IF_IP=null"])
    nodes = [Facts("192.0.2.10", interface="e"), Facts("192.0.2.11", interface="e")]
    env = build_plan(read("a2-dual", ["network.hccl_if_ip=false"]), nodes).primary.environ
    assert "HCCL_IF_IP" not in env
    assert env["HCCL_SOCKET_IFNAME"] == "=e"


def test_other_files_may_merge_one_mapping_per_key():
    assert load_plain("a: &a {x: 1}\nb: {<<: *a, y: 2}\n") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
