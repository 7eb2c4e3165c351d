"""The published JSON schema: current, and of one mind with the loader about what a recipe file may hold."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from raylaunch.recipe.catalog import configs_dir, recipe_names

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "schema.py"
MINIMAL = {"model": {"served_name": "m", "path": "/m"}, "hardware": {"platform": "cpu"}}


@pytest.fixture(scope="module")
def schema():
    return json.loads((ROOT / "configs" / "recipe.schema.json").read_text())


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("schema_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_valid(schema, values):
    return jsonschema.Draft202012Validator(schema).is_valid(values)


def test_the_file_is_current():
    done = subprocess.run(
        [sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_file_is_noticed(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "FILE", tmp_path / "recipe.schema.json")
    monkeypatch.setattr(sys, "argv", ["schema.py", "--check"])
    assert tool.main() == 1
    tool.FILE.write_text(tool.render())
    assert tool.main() == 0
    assert "stale" in capsys.readouterr().out


def test_it_is_a_valid_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_fits_and_points_editors_at_it(schema, name):
    text = (configs_dir() / f"{name}.yaml").read_text()
    jsonschema.validate(yaml.safe_load(text), schema)
    assert text.startswith("# yaml-language-server: $schema=./recipe.schema.json\n")


def test_fields_carry_their_explanation(schema):
    assert (
        "Expert parallelism" in schema["$defs"]["Parallel"]["properties"]["expert"]["description"]
    )
    assert "extends" in schema["properties"]


def test_a_recipe_that_extends_may_leave_out_anything(schema):
    assert is_valid(
        schema,
        {"extends": "a2-dual", "model": {"path": "/m"}, "env": {"A": None, "B": 3, "C": "x"}},
    )
    assert is_valid(
        schema,
        {"extends": "a2-dual", "container": None, "parallel": {"data_local": None, "data": None}},
    )


def test_a_recipe_that_stands_alone_may_not(schema):
    assert is_valid(schema, MINIMAL)
    assert not is_valid(schema, {"model": {"served_name": "m"}})
    assert not is_valid(schema, MINIMAL | {"model": {"path": "/m"}})
    assert not is_valid(schema, MINIMAL | {"container": {"image": "x"}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonsense": 1},
        {"parallel": {"data": "many"}},
        {"parallel": {"datta": 1}},
        {"network": {"http_port": 70000}},
        {"env": {"A": True}},
        {"hardware": {"platform": "gpu"}},
        {"tuning": {"sysctl": {"vm.swappiness": "none"}}},
    ],
)
def test_mistakes_are_underlined(schema, wrong):
    assert not is_valid(schema, MINIMAL | wrong)
