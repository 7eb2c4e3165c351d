"""Reads what a recipe asks of vLLM and vllm-ascend, in whichever of its spellings it was written."""

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
    """Whether the recipe is for NPUs."""
    return recipe.hardware.platform != "cpu"


def given_args(recipe: Recipe) -> dict[str, Any]:
    """The recipe's flags by their canonical names."""
    return {normalise_flag(name): value for name, value in recipe.args.items()}


def read_config(recipe: Recipe, flag: str) -> dict[str, Any]:
    """A flag whose value is JSON, with its dotted forms (`additional-config.enable_flashcomm1: true`)."""
    args = given_args(recipe)
    whole = args.get(flag)
    if isinstance(whole, str):
        try:
            whole = json.loads(whole)
        except ValueError:
            whole = None
    dotted = {
        name.partition(".")[2]: value for name, value in args.items() if name.startswith(f"{flag}.")
    }
    top = {name.partition(".")[0]: {} if "." in name else value for name, value in dotted.items()}
    return {**(whole if isinstance(whole, dict) else {}), **top}


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
    """Whether a switch, as text, number or bool, is on."""
    return str(value).lower() not in ("none", "", "0", "false")


def version_number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: "0.23.0.post1" -> (0, 23)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
