"""The dashboards fit Grafana's types: no field that they do not know, and no value of another type.

The types are those of grafana-foundation-sdk, which Grafana generates from the schemas of its
dashboards, panels and queries. The JSON schemas themselves are in no package; `python
tools/dashboards.py --schema` checks the dashboards against a clone of them.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).parent.parent.parent / "raylaunch" / "monitoring" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))


def problems(raw: dict) -> list[str]:
    """Return the fields that Grafana's types do not know, and the values of another type."""
    register_default_plugins()
    try:
        read = Dashboard.from_json(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [f"cannot be read: {error!r}"]
    known = json.loads(JSONEncoder().encode(read))
    return [*lost_fields(raw, known, "$"), *wrong_types(read, Dashboard, "$")]


def lost_fields(raw: object, known: object, place: str) -> Iterator[str]:
    """Yield what reading and writing again has lost: the types do not know it."""
    if isinstance(raw, dict) and isinstance(known, dict):
        for name, value in raw.items():
            if name not in known:
                yield f"{place}.{name}: no such field"
            else:
                yield from lost_fields(value, known[name], f"{place}.{name}")
    elif isinstance(raw, list) and isinstance(known, list) and len(raw) == len(known):
        for index, value in enumerate(raw):
            yield from lost_fields(value, known[index], f"{place}[{index}]")
    elif raw != known:
        yield f"{place}: {raw!r} was read as {known!r}"


def wrong_types(value: object, hint: object, place: str) -> Iterator[str]:
    """Yield where a value is not what the type hint of the SDK says."""
    if not fits(value, hint):
        yield f"{place}: {value!r} is not {hint}"
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from wrong_types(one, item_hint(hint), f"{place}[{index}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk") and not isinstance(
        value, enum.Enum
    ):
        for name, part in typing.get_type_hints(type(value)).items():
            yield from wrong_types(getattr(value, name), part, f"{place}.{name}")


def fits(value: object, hint: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind in (typing.Any, object):
        return True
    assert isinstance(kind, type), hint
    if issubclass(kind, enum.Enum):
        # The SDK reads JSON without making its enumerations.
        return value in [one.value for one in kind] or isinstance(value, kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def item_hint(hint: object) -> object:
    """Return the hint of the items of a list, which may be optional."""
    options = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
    lists = [one for one in options if typing.get_origin(one) is list]
    return typing.get_args(lists[0])[0] if lists else object


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_fits_the_types_of_grafana(file):
    raw = json.loads(file.read_text(encoding="utf-8"))
    assert problems(raw) == []
    assert raw["panels"]
    for panel in raw["panels"]:
        # Grafana's JSON schema requires these, and the SDK reads a panel without them.
        assert {"type", "gridPos", "targets", "options", "fieldConfig"} <= set(panel)
        assert panel["options"]


def test_there_are_three():
    assert [file.stem for file in FILES] == [
        "raylaunch-deployment",
        "raylaunch-node",
        "raylaunch-rank",
    ]


def set_in(raw: dict, path: tuple, value: object) -> None:
    for step in path[:-1]:
        raw = raw[step]
    raw[path[-1]] = value


FIRST = ("panels", 0)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("titel",), "x", "$.titel: no such field"),
        (("title",), 5, "$.title: 5"),
        (("graphTooltip",), 7, "$.graph_tooltip: 7"),
        (("time", "from"), None, "$.time.from_val: None"),
        ((*FIRST, "gridPos", "width"), 12, "$.panels[0].gridPos.width: no such field"),
        ((*FIRST, "gridPos", "w"), "12", "$.panels[0].grid_pos.w: '12'"),
        ((*FIRST, "options", "colourMode"), "value", "options.colourMode: no such field"),
        ((*FIRST, "options", "colorMode"), "red", "options.color_mode: 'red'"),
        ((*FIRST, "targets", 0, "query"), "up", "targets[0].query: no such field"),
        ((*FIRST, "targets", 0, "expr"), True, "targets[0].expr: True"),
        ((*FIRST, "fieldConfig", "defaults", "unit"), 1, "defaults.unit: 1"),
        (("templating", "list", 0, "refresh"), "often", "refresh: 'often'"),
        (("panels",), "none", "cannot be read"),
    ],
)
def test_a_field_or_a_value_that_grafana_does_not_know_is_found(path, value, named):
    raw = json.loads((FOLDER / "raylaunch-deployment.json").read_text(encoding="utf-8"))
    assert raw["panels"][0]["type"] == "stat"
    set_in(raw, path, value)
    assert any(named in problem for problem in problems(raw)), problems(raw)
