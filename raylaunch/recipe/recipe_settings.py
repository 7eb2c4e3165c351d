"""Reads what a recipe asks of vLLM and vllm-ascend, in whichever spelling it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from raylaunch.recipe.model import Recipe
from raylaunch.recipe.reserved import normalise_flag

Versions = Mapping[str, str]
"""Name -> version, as in `Facts.versions`; empty while nothing is known."""


def on_ascend(recipe: Recipe) -> bool:
    """Return whether the recipe is for NPUs."""
    return recipe.hardware.platform != "cpu"


def given_args(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's flags by their canonical names."""
    return {normalise_flag(name): value for name, value in recipe.args.items()}


def read_config(recipe: Recipe, flag: str) -> dict[str, Any]:
    """Return the value of a JSON flag as a mapping, together with the flag's dotted forms.

    A dotted form is `additional-config.enable_flashcomm1: true`. Text that is not JSON counts as an
    empty mapping.
    """
    args = given_args(recipe)
    config = _as_mapping(args.get(flag))
    for name, value in args.items():
        if not name.startswith(f"{flag}."):
            continue
        key = name.partition(".")[2]
        top, dot, _ = key.partition(".")
        # What stands below a deeper key matters to no check: its presence does.
        config[top] = {} if dot else value
    return config


def _as_mapping(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        # RecursionError: JSON nested too deep for Python's parser.
        except (ValueError, RecursionError):
            return {}
    return dict(value) if isinstance(value, dict) else {}


def is_switched_on(recipe: Recipe, variable: str, key: str) -> bool:
    """Return whether a feature of vllm-ascend is on, by its key of additional-config or variable.

    vllm-ascend reads the key first: `enable_flashcomm1: false` turns the feature off even with
    the variable set to 1.
    """
    config = read_config(recipe, "additional-config")
    if config.get(key) is not None:
        return is_on(config[key])
    return is_on(recipe.env.get(variable))


def is_on(value: object) -> bool:
    """Return whether a switch, as text, number or bool, is on."""
    return str(value).lower() not in ("none", "", "0", "false")


def image_versions(recipe: Recipe) -> dict[str, str]:
    """Return the versions in the recipe's own image, by its tag; empty for a tag without one.

    "v0.23.0.post1-openeuler" holds vllm-ascend 0.23.0.post1 and vLLM 0.23.0: vllm-ascend pairs
    each release with the vLLM of the same three numbers (its versioning policy).
    """
    if recipe.container is None:
        return {}
    found = re.match(r"v(\d+\.\d+\.\d+)((?:rc|\.post)\d+)?(?=-|$)", recipe.container.tag)
    if found is None:
        return {}
    return {"vllm": found[1], "vllm-ascend": found[0].removeprefix("v")}


def version_number(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: "0.23.0.post1" -> (0, 23)."""
    numbers = re.findall(r"\d+", version)
    return tuple(int(number) for number in numbers[:2])
