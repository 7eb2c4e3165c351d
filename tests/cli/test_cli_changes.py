"""The verbs that change a running deployment: what `upgrade` shows, and `keys`."""

from __future__ import annotations

import json

import pytest

from raylaunch.errors import RecipeError
from raylaunch.recipe.recipe_changes import Change
from raylaunch.supervise.plan_changes import PlanChange

SETTING = Change("args.max-num-seqs", "32", "64")
FLAG = PlanChange(("serve-0", "serve-1"), "--max-num-seqs", "32", "64")


@pytest.fixture
def upgraded(api, monkeypatch):
    """What `api.upgrade` was given; it reports one setting and one flag that differ."""
    asked: dict[str, object] = {}

    def upgrade(name, recipe, *, on_changes, on_update, **given):
        asked.update(name=name, recipe=recipe, **given)
        on_changes([SETTING], [FLAG])
        return api.ready()

    monkeypatch.setattr(api, "upgrade", upgrade, raising=False)
    return asked


def test_upgrade_shows_settings_and_the_flags_that_they_change(cli, upgraded):
    result = cli("upgrade", "prod", "--set", "args.max-num-seqs=64", "--gate", "small:+5%")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["args.max-num-seqs", "32", "64"] in lines
    assert ["serve-0,", "serve-1", "--max-num-seqs", "32", "64"] in lines
    assert (upgraded["gate"], upgraded["dry_run"]) == ("small:+5%", False)
    assert result.stdout.splitlines()[-1] == "prod is ready"


def test_a_dry_run_shows_the_same_and_says_nothing_of_a_phase(cli, upgraded):
    result = cli("upgrade", "prod", "--dry-run")
    assert "--max-num-seqs" in result.stdout
    assert "is ready" not in result.output
    assert upgraded["dry_run"] is True
    data = json.loads(cli("upgrade", "prod", "--dry-run", "-o", "json").stdout)
    assert data["settings"] == [{"path": "args.max-num-seqs", "old": "32", "new": "64"}]
    assert data["plans"][0]["where"] == ["serve-0", "serve-1"]


def test_keys_names_what_was_replaced(cli, api, monkeypatch):
    monkeypatch.setattr(
        api, "rotate_keys", lambda name, names, address: tuple(names) or ("A", "B"), raising=False
    )
    assert cli("keys", "prod").stdout == "prod: replaced A, B\n"
    assert json.loads(cli("keys", "prod", "A", "-o", "json").stdout) == {"replaced": ["A"]}


def test_keys_without_a_value_exit_with_the_code_of_the_recipe(cli, api, monkeypatch):
    def refuse(*_, **__):
        raise RecipeError("the new API key A is not set")

    monkeypatch.setattr(api, "rotate_keys", refuse, raising=False)
    result = cli("keys", "prod")
    assert result.exit_code == 3
    assert "the new API key A is not set" in result.output
