"""Random and mutated recipes and --set values: planned, or refused with an error of our own."""

import json

import pytest
from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch import api
from raylaunch.errors import RaylaunchError
from raylaunch.plan.host_spec import parse_host
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.plan_json import deployment_plan_to_dict
from raylaunch.recipe.catalog import configs_dir, finder, read
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import load_recipe, recipe_from_mapping
from raylaunch.recipe.validation import field_names
from raylaunch.render.container import render_containers
from raylaunch.render.ray_cluster import render_cluster
from raylaunch.render.script import render_scripts

fuzz = settings.get_profile("fuzz")

SHIPPED = [(configs_dir() / f"{name}.yaml").read_text() for name in ("a2-dual", "a3-single")]
TOKENS = [
    *("!!int ", "!!float ", "!!bool ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ", "!x "),
    *("&a ", "*a ", "<<: ", "? ", "- ", "{", "}", "[", "]", ": ", "|\n", ">\n", "'", '"', "#", "%"),
    *("2026-99-99", "1" * 5000, "1:" * 50 + "1", "0x" + "f" * 40, ".inf", ".nan", "1e999", "-1"),
    *("null", "~", "true", '"\\0"', '"\\x7f"', '"\\ud800"', "\x1b", "\x00", "\ud800", "\u2028"),
    *("extends: ", "a2-dual", "/proc/kmsg", "/dev/zero", "/" + "x" * 300, "args: ", "env: "),
    *("parallel: ", "data: ", "100000000", "10" * 30, "npus_per_server: ", "\t", "\n", "\n  "),
]
SECTIONS = [name for name in field_names(()) if name != "extends"]
PATHS = [f"{section}.{name}" for section in SECTIONS for name in field_names((section,))]
PATHS += [*SECTIONS, "args.x", "args.x.y", "env.A", "env.HCCL_IF_IP", "args.tp", "extends", "a.b.c"]

yaml_texts = st.lists(st.sampled_from(TOKENS) | st.text(max_size=8), max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), below, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw):
    """A shipped recipe with pieces cut out of it, repeated, or replaced by tokens."""
    text = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = (
            text[:start] + draw(st.sampled_from(TOKENS) | st.just(text[start:end] * 2)) + text[end:]
        )
    return text


def use(loaded):
    """Do with a recipe what the commands do that need no cluster."""
    json.dumps(loaded.recipe.model_dump(mode="json"))
    if loaded.recipe.hardware.platform == "cpu":
        return
    values = loaded.recipe.model_dump(exclude_unset=True)
    _, plan, _ = api.make_plan(values)
    json.dumps(deployment_plan_to_dict(plan)).encode()
    "".join(render_scripts(plan).values()).encode()
    hosts = nodes_needed(expand_groups(loaded))
    more = [f"192.0.2.{20 + number}" for number in range(1, hosts)]
    render_cluster(loaded, head="192.0.2.20", workers=more, ssh_user="u", name="c").encode()
    "".join(render_containers(loaded, plan).values()).encode()


@pytest.fixture(scope="session")
def survives():
    """Run an action in bounded time; an error of our own must be printable and short."""

    def survives(action):
        refused = None
        with bounded():
            try:
                action()
            except RaylaunchError as error:
                refused = error
        if refused:
            assert refused.what
            assert len(str(refused).encode()) < 20_000

    return survives


@fuzz
@given(st.one_of(mutated(), yaml_texts, st.text(max_size=200)))
def test_a_recipe_file_is_used_or_refused(tmp_path_factory, survives, text):
    folder = tmp_path_factory.getbasetemp() / "fuzz-recipes"
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    survives(lambda: use(load_recipe("mine", _find_in(folder))))


def _find_in(folder):
    shipped = finder(configs_dir())
    own = finder(folder)
    return lambda name, beside: (own if name == "mine" else shipped)(name, beside)


@fuzz
@given(st.lists(st.tuples(st.sampled_from(PATHS), yaml_texts), min_size=1, max_size=3))
def test_set_values_are_used_or_refused(survives, pairs):
    sets = [f"{path}={text}" for path, text in pairs]
    survives(lambda: use(read("a2-dual", sets)))


@fuzz
@given(st.one_of(yaml_texts, st.text(max_size=40)))
def test_any_assignment_is_used_or_refused(survives, assignment):
    survives(lambda: use(read("a2-dual", [assignment])))


@fuzz
@given(st.text(max_size=60) | yaml_texts)
def test_any_recipe_name_is_found_or_refused(survives, name):
    survives(lambda: read(name))


@fuzz
@given(st.dictionaries(st.sampled_from([*SECTIONS, "x"]), values, max_size=4), values)
def test_a_recipe_from_python_is_used_or_refused(survives, sections, value):
    base = {
        "model": {"path": "/m", "served_name": "m"},
        "hardware": {"platform": "ascend-a2"},
        "args": {"x": value},
    }
    survives(lambda: use(recipe_from_mapping({**base, **sections}, "mine")))


HOST_TOKENS = ["192.0.2.1", "::1", "fe80::1", "%", "[", "]", ":", "80", "eth0", " ", "/", "\uff11"]


@fuzz
@given(st.text(max_size=40) | st.lists(st.sampled_from(HOST_TOKENS), max_size=5).map("".join))
def test_any_host_is_parsed_or_refused(survives, text):
    survives(lambda: parse_host(text))


@pytest.mark.parametrize("text", SHIPPED)
def test_the_seeds_are_recipes(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    use(load_recipe("mine", _find_in(tmp_path)))
