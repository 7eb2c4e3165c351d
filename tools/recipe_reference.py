"""Write docs/recipes.md from the recipe model and the shipped recipes. `--check` only compares."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raylaunch.recipe import reserved
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.model import Recipe

TARGET = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"

HEAD = """# Recipes

<!-- Written by `python tools/recipe_reference.py` from raylaunch/recipe/ and configs/; change those instead. -->

A recipe says what you want: a model, the hardware, the parallel sizes, vLLM's own flags and variables. The program
never rewrites it. `raylaunch list` shows the shipped ones; `raylaunch show a2-dual` prints one whole, with the file and
line of each value.

```yaml
# yaml-language-server: $schema=./recipe.schema.json
extends: a2-dual             # a shipped recipe by name, or a file beside this one
description: our M2.5, 64 sequences
model:
  path: /data/models/MiniMax-M2.5
args:
  max-num-seqs: 64
  async-scheduling: null     # takes the base recipe's flag out
env:
  HCCL_BUFFSIZE: 512
```

- `extends` takes another recipe as the base: mappings merge, anything else replaces, `null` removes. Values of single
  flags (`args.compilation-config`) are replaced whole.
- `--set KEY=VALUE` changes one value on the command line, by dotted path: `--set parallel.data=4`,
  `--set args.max-num-seqs=64`, `--set env.HCCL_BUFFSIZE=512`. The value is read as YAML and checked by the schema.
  A flag may be spelt with `-` or `_`; within one file only once.
- `fallback` names smaller recipes that serve while a node is lost; see
  [Supervision](supervision.md#while-a-node-is-lost-and-no-spare-one-is-there).
- `configs/recipe.schema.json` lets editors complete and check recipes (the first line of the example).
- An unknown key is an error that names file, line and the nearest valid key.
"""

TAIL = """## Flags that raylaunch sets itself

They follow from the recipe's own fields and from the nodes. Under `args` they are refused, with the field to use:
"""


def main() -> int:
    text = "\n".join(reference()).rstrip() + "\n"
    if sys.argv[1:] == ["--check"]:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print(
            f"{TARGET.name} is {'current' if current else 'stale: run `python tools/recipe_reference.py`'}"
        )
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


def reference() -> Iterator[str]:
    yield HEAD
    yield from shipped()
    yield "## Fields"
    yield ""
    yield "A field without a default must be given, here or by a recipe that is extended."
    yield ""
    yield from section("", Recipe)
    yield TAIL
    yield from owned_names("Flag", "`--{}`", vars(reserved)["_ARGS"])
    yield ""
    yield "The same for variables under `env`:"
    yield ""
    yield from owned_names("Variable", "`{}`", vars(reserved)["_ENV"])


def shipped() -> Iterator[str]:
    yield "## Shipped recipes"
    yield ""
    yield "| Name | What | Good for | Source |"
    yield "| --- | --- | --- | --- |"
    for name in recipe_names():
        recipe = read(name).recipe
        yield f"| `{name}` | {cell(recipe.description)} | {cell(recipe.good_for)} | {cell(recipe.source)} |"
    yield ""


def section(path: str, model: type[BaseModel]) -> Iterator[str]:
    """A table of one part's fields, then the parts below it."""
    if path:
        yield f"### {path.removesuffix('[]')}"
        yield ""
        yield " ".join((model.__doc__ or "").split())
        yield ""
    yield "| Field | Type | Default | Meaning |"
    yield "| --- | --- | --- | --- |"
    below = []
    for name, field in model.model_fields.items():
        full = f"{path}.{name}" if path else name
        inner = part_of(field.annotation)
        if inner is not None:
            # A field of an entry of a list: groups[].name.
            is_list = get_origin(field.annotation) is tuple
            below.append((f"{full}[]" if is_list else full, inner))
            kind = "list of sections" if is_list else "section"
            about = meaning(field.description if is_list else inner.__doc__)
            shown = f"[`{full}`](#{full.replace('.', '')})"  # the anchor of a heading has no dots
        else:
            kind, about = (
                cell(type_text(field.annotation)) + bounds(field),
                meaning(field.description),
            )
            shown = f"`{full}`"
        yield f"| {shown} | {kind} | {default(field)} | {about} |"
    yield ""
    for full, inner in below:
        yield from section(full, inner)


def part_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a type form
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := part_of(arg))), None)


def type_text(form: Any) -> str:  # noqa: ANN401 - a type form
    """`int | None` -> "number"; `dict[EnvName, EnvValue]` -> "mapping of text to text"."""
    origin, arguments = get_origin(form), get_args(form)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(each) for each in arguments if each is not type(None))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    return {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Any: "anything",
        object: "anything",
    }[form]


def bounds(field: FieldInfo) -> str:
    """The limits of a field, also those that stand inside `Annotated` below `| None`."""
    inner = [
        meta for arg in get_args(field.annotation) for meta in getattr(arg, "__metadata__", ())
    ]
    limits = [
        f"{sign} {getattr(each, word):g}"
        for meta in [*field.metadata, *inner]
        for each in [meta, *getattr(meta, "metadata", ())]
        for word, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"))
        if getattr(each, word, None) is not None
    ]
    return f", {', '.join(dict.fromkeys(limits))}" if limits else ""


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default()
    if value is None or value in ("", (), {}) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def meaning(text: str | None) -> str:
    """Docstring text as a table cell; `<think>` would be read as HTML."""
    words = " ".join((text or "").split())
    return cell(re.sub(r"(?<!`)<(\w+)>", r"`<\1>`", words))


def owned_names(title: str, form: str, names: dict[str, str]) -> Iterator[str]:
    yield f"| {title} | Use instead |"
    yield "| --- | --- |"
    for name, field in names.items():
        yield f"| {form.format(name)} | {cell(field)} |"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    raise SystemExit(main())
