"""Write configs/recipe.schema.json, by which editors complete recipes (`--check` compares).

The schema comes from the pydantic model; docstrings of fields become descriptions. Two things
differ from pydantic's own: a recipe that `extends` another may leave out anything, and null (which
removes a base value) is always allowed. What an entry of `groups` changes has the keys of the
section itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from raylaunch.recipe.layers import GROUP_SECTIONS
from raylaunch.recipe.model import Recipe

FILE = Path(__file__).resolve().parent.parent / "configs" / "recipe.schema.json"
EXTENDS = {
    "type": "string",
    "description": "Name or path of the recipe this one builds on: mappings merge, null removes.",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the file is stale"
    )
    if parser.parse_args().check:
        current = FILE.is_file() and FILE.read_text() == render()
        print(f"{FILE.name} is {'current' if current else 'stale: run python tools/schema.py'}")
        return 0 if current else 1
    FILE.write_text(render())
    print(f"wrote {FILE}")
    return 0


def render() -> str:
    return json.dumps(build(), indent=2) + "\n"


def build() -> dict[str, Any]:
    """Return the schema of a recipe file."""
    schema = Recipe.model_json_schema()
    parts: list[dict[str, Any]] = [schema, *schema["$defs"].values()]
    needs = _required(schema, schema["$defs"])
    group = schema["$defs"]["Group"]
    _refer_to_sections(group, schema["properties"])
    for part in parts:
        if part is group:
            continue
        part.pop("required", None)
        part["properties"] = {name: _loosen(value) for name, value in part["properties"].items()}
    schema["properties"] = {"extends": EXTENDS, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "raylaunch recipe",
        "if": {"not": {"required": ["extends"]}},
        "then": {
            "required": needs.pop(""),
            "properties": {name: {"required": keys} for name, keys in needs.items()},
        },
    }


def _refer_to_sections(group: dict[str, Any], sections: dict[str, Any]) -> None:
    """Give each section of a group the keys of the recipe's; the entry itself is never merged."""
    for name in GROUP_SECTIONS:
        own = {key: sections[name][key] for key in sections[name] if key != "default"}
        about = group["properties"][name]["description"]
        group["properties"][name] = {**_loosen(own), "description": about}


def _required(schema: dict[str, Any], parts: dict[str, Any]) -> dict[str, list[str]]:
    """Return the required keys of the recipe ("") and of its sections, before they become optional."""
    found = {"": list(schema.get("required", []))}
    for name, value in schema["properties"].items():
        refs = [value, *value.get("anyOf", [])]
        part: dict[str, Any] = next(
            (parts[ref["$ref"].rpartition("/")[2]] for ref in refs if "$ref" in ref), {}
        )
        if part.get("required"):
            found[name] = list(part["required"])
    return found


def _loosen(value: dict[str, Any]) -> dict[str, Any]:
    """Allow null, and numbers where an environment value is wanted."""
    inner = value.get("additionalProperties")
    if isinstance(inner, dict):
        kinds = (
            ["string", "integer", "null"]
            if inner.get("type") == "string"
            else [inner["type"], "null"]
        )
        value = {**value, "additionalProperties": {"type": kinds}}
    if "anyOf" in value:
        null = {"type": "null"}
        return {**value, "anyOf": [*(option for option in value["anyOf"] if option != null), null]}
    about: dict[str, Any] = {
        key: value[key] for key in ("description", "default", "title") if key in value
    }
    rule = {key: value[key] for key in value if key not in about}
    return {**about, "anyOf": [rule, {"type": "null"}]}


if __name__ == "__main__":
    sys.exit(main())
