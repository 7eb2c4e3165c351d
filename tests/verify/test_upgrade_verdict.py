"""The verdict of an upgrade's command on new groups, its gate; and new API keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raylaunch.api import change_verbs
from raylaunch.deployment import Deployment, deployment_handle
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read


def interrupt(group):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("verify", "verdict"),
    [
        (None, ""),
        (lambda _: "", ""),
        (lambda group: f"{group}: wrong", "serve-0.g2: wrong; serve-1.g2: wrong"),
        (interrupt, "the command that verifies them was interrupted"),
    ],
)
def test_a_verdict_names_each_problem_and_an_interrupt_refuses(verify, verdict):
    assert deployment_handle._verdict(("serve-0.g2", "serve-1.g2"), verify) == verdict


def test_checks_of_a_group_stop_at_the_first_problem():
    def benchmark(_):
        pytest.fail("a group that answers wrongly is not measured")

    assert change_verbs._first_problem([lambda _: "wrong", benchmark])("serve-0") == "wrong"
    assert change_verbs._first_problem([])("serve-0") == ""


def test_a_gate_without_a_benchmark_of_what_runs_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    group = SimpleNamespace(name="serve-0", created_at=0.0)
    monkeypatch.setattr(Deployment, "status", lambda _: SimpleNamespace(groups=[group]))
    with pytest.raises(RecipeError, match="no benchmark of what runs") as refusal:
        change_verbs._gate_check(Deployment("prod"), read("local-replicas"), "small:+5%")
    assert refusal.value.todo.startswith("`raylaunch bench prod --scenario small`")


@pytest.fixture
def prod(monkeypatch):
    """A deployment whose gateway checks the keys A and B; what is rotated."""
    loaded = read("local-replicas", ["secrets=[A,B]", "gateway.api_keys=[A,B]"])
    rotated: dict[str, str] = {}
    handle = SimpleNamespace(recipe=lambda: loaded, rotate_keys=rotated.update)
    monkeypatch.setattr(change_verbs, "attach", lambda *_: handle)
    monkeypatch.setenv("A", "a2")
    monkeypatch.delenv("B", raising=False)
    return rotated


def test_keys_come_from_the_environment_by_name(prod, monkeypatch):
    assert change_verbs.rotate_keys("prod", ["A"]) == ("A",)
    assert prod == {"A": "a2"}
    monkeypatch.setenv("B", "b2")
    assert change_verbs.rotate_keys("prod") == ("A", "B")
    assert prod == {"A": "a2", "B": "b2"}


@pytest.mark.parametrize(
    ("names", "what"), [((), "new API key B is not set"), (("C",), "checks no API key C")]
)
def test_keys_without_a_value_or_that_no_gateway_checks_are_refused(prod, names, what):
    with pytest.raises(RecipeError, match=what):
        change_verbs.rotate_keys("prod", names)
    assert prod == {}
