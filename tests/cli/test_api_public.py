"""The public names: every verb as a function, typed, documented, with one spelling for settings."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.main import get_command

import raylaunch
from raylaunch import api
from raylaunch.cli.app import app
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
FUNCTIONS = [name for name in raylaunch.__all__ if inspect.isfunction(getattr(raylaunch, name))]
HOSTS = ["192.0.2.10%eth0", "192.0.2.11%eth0"]


def test_every_verb_has_a_function_on_the_page():
    verbs = set(get_command(app).commands) - {"version"}  # type: ignore[attr-defined]
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `raylaunch ")]
    documented = {row.split("`")[1].split()[1] for row in rows}
    assert documented >= verbs


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_and_typed(name):
    function = getattr(raylaunch, name)
    assert inspect.getdoc(function)
    assert f"`{name}" in PAGE.read_text() or f"raylaunch.{name}(" in PAGE.read_text()
    parameters = inspect.signature(function).parameters.values()
    assert [one.name for one in parameters if one.kind is one.VAR_KEYWORD] == []
    assert all(one.annotation not in (one.empty, "Any") for one in parameters)
    assert inspect.signature(function).return_annotation != inspect.Signature.empty


def test_a_verb_stays_a_function_after_its_room_was_imported():
    code = (
        "import raylaunch, raylaunch.plan.planner, raylaunch.verify.cases\n"
        "from raylaunch.plan import layout\n"
        "import raylaunch.plan.facts\n"
        "assert raylaunch.plan('a2-dual') == raylaunch.plan('a2-dual')\n"
        "assert callable(raylaunch.verify) and callable(raylaunch.plan)\n"
        "import raylaunch.api; assert raylaunch.api.plan is raylaunch.plan\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_are_a_mapping_or_texts():
    for settings in ({"args.max-num-seqs": 7}, ["args.max-num-seqs=7"], ("args.max-num-seqs=7",)):
        plan = raylaunch.plan("a2-dual", hosts=HOSTS, set=settings)
        assert plan.primary.flag("--max-num-seqs") == "7"


@pytest.mark.parametrize("call", [raylaunch.plan, raylaunch.check, raylaunch.make_plan])
def test_the_old_spelling_works_and_warns_where_it_is_written(call):
    with pytest.warns(DeprecationWarning, match="`set` takes texts") as caught:
        old = call("a2-dual", hosts=HOSTS, sets=["args.max-num-seqs=7"])
    assert caught[0].filename == __file__
    assert old == call("a2-dual", hosts=HOSTS, set=["args.max-num-seqs=7"])


def test_load_takes_the_old_spelling_by_position():
    with pytest.warns(DeprecationWarning, match="`sets` is deprecated"):
        assert api.load("a2-dual", ["args.max-num-seqs=7"]).recipe.args["max-num-seqs"] == 7


def test_the_command_line_uses_nothing_deprecated(cli):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli("plan", "a2-dual", "--set", "args.max-num-seqs=7").exit_code == 0
        api.make_plan("a2-dual", set=["args.max-num-seqs=7"])
        api.tune("a2-dual", set=["args.max-num-seqs=7"])


@pytest.mark.parametrize("settings", ["parallel.data=4", {"args.x": object()}, {"args.x": {1, 2}}])
def test_settings_of_another_kind_are_refused(settings):
    with pytest.raises(RecipeError):
        raylaunch.plan("a2-dual", set=settings)


def test_settings_change_recipes_that_are_read_only():
    values = read("a2-dual").recipe.model_dump(exclude_unset=True)
    assert raylaunch.load(values).name == "custom"
    with pytest.raises(RecipeError, match="by name or path"):
        raylaunch.load(values, set={"args.x": 1})


def test_render_files_are_those_of_the_verb(cli, tmp_path):
    loaded, plan, _ = raylaunch.make_plan("a2-dual", hosts=HOSTS)
    for form in ("bash", "docker", "json"):
        files = raylaunch.render_files(loaded, plan, form)
        assert files
        assert all(isinstance(text, str) for text in files.values())
