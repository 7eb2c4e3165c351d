"""Reads the names that the installed vLLM and vllm-ascend know, from their own modules and sources.

Part of `ask_vllm.py`: runs in vLLM's own Python, and needs only the standard library.

Variables come from the tables in `envs.py` (vllm and vllm_ascend keep theirs under these names from
0.6 to 0.32), and from calls such as `os.getenv("NAME")`. vllm-ascend has no table of the keys of
additional-config: it asks for each key where it needs it, so they are read from its sources.
"""

import ast
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator

CONFIG = "additional_config"


def read_installed_names() -> dict[str, object]:
    """Return variables, keys of additional-config, and the vLLM versions that belong together."""
    variables = set(_table("vllm.envs", "environment_variables"))
    variables |= set(_table("vllm_ascend.envs", "env_variables"))
    keys: set[str] = set()
    below: dict[str, list[str]] = {}
    versions: set[str] = set()
    for text in _sources("vllm_ascend"):
        if not re.search(rf"{CONFIG}|environ|getenv|vllm_version_is", text):
            continue
        tree = ast.parse(text)
        variables |= set(read_variables(tree))
        keys |= set(read_keys(tree))
        versions |= set(_first_texts(tree, {"vllm_version_is"}))
        below.update(read_keys_below(tree))
    return {
        "variables": sorted(variables),
        "config_keys": sorted(keys),
        "config_keys_below": below,
        "vllm_versions": sorted(versions),
    }


def _table(module: str, name: str) -> list[str]:
    try:
        return list(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError):
        return []


def _sources(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    for top in (spec.submodule_search_locations or ()) if spec else ():
        for folder, _, files in os.walk(top):
            for file in files:
                if file.endswith(".py"):
                    path = os.path.join(folder, file)  # noqa: PTH118 - as os.walk returns it
                    with open(path, encoding="utf-8", errors="replace") as opened:  # noqa: PTH123
                        yield opened.read()


def read_variables(tree: ast.AST) -> Iterator[str]:
    """Yield the names in `os.getenv(...)`, `os.environ.get(...)` and `os.environ[...]`."""
    for name in _first_texts(tree, {"getenv", "environ.get", "environ.setdefault", "environ.pop"}):
        if name.isupper():
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _dotted(node.value).endswith("environ"):
            name = _text(node.slice)
            if name.isupper():
                yield name


def read_keys(tree: ast.AST) -> Iterator[str]:
    """Yield the keys that a source reads from additional-config.

    The forms are `x.additional_config.get("key")`, `["key"]`, `"key" in additional_config`, and a
    call such as `read(additional_config, "key", ...)`.
    """
    yield from _first_texts(tree, {f"{CONFIG}.get"})
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_config(node.value):
            yield from filter(None, [_text(node.slice)])
        elif isinstance(node, ast.Compare) and _is_config(node.comparators[0]):
            yield from filter(None, [_text(node.left)])
        elif isinstance(node, ast.Call) and len(node.args) > 1 and _is_config(node.args[0]):
            yield from filter(None, [_text(node.args[1])])


def read_keys_below(tree: ast.AST) -> dict[str, list[str]]:
    """Return the keys of those entries of additional-config that become an object of a class.

    `value = additional_config.get("eplb_config")`, then `EplbConfig(value)` or `Config(**value)`.
    """
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    entries: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            key = next(_first_texts(node.value, {f"{CONFIG}.get"}), "")
            if key:
                entries[node.targets[0].id] = key
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        given = [*node.args[:1], *(word.value for word in node.keywords if word.arg is None)]
        names = [entries.get(_dotted(value), "") for value in given]
        if names and names[0] and node.func.id in classes:
            found[names[0]] = sorted(_keys_of_class(classes[node.func.id]))
    return found


def _keys_of_class(class_: ast.ClassDef) -> set[str]:
    keys: set[str] = set()
    for node in ast.walk(class_):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [one.arg for one in (*node.args.args[1:], *node.args.kwonlyargs)]
            # A parameter that is the whole entry is no key of it.
            keys |= {name for name in names if not name.endswith("_config")}
        elif isinstance(node, ast.Dict):
            keys |= {_text(key) for key in node.keys if key is not None}
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith(".get") and node.args:
            keys.add(_text(node.args[0]))
    return {key for key in keys if key.isidentifier()}


def _first_texts(tree: ast.AST, functions: set[str]) -> Iterator[str]:
    """Yield the first argument, where it is a text, of calls of these functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = _dotted(node.func)
            text = _text(node.args[0])
            if text and any(called == name or called.endswith(f".{name}") for name in functions):
                yield text


def _is_config(node: ast.AST) -> bool:
    return _dotted(node).rpartition(".")[2] == CONFIG


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ""


def _dotted(node: ast.AST) -> str:
    """Return `a.b.c` of names and attributes; what stands before them is left out."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""
