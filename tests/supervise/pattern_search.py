"""Every regular expression of a module: in its tables, objects and closures, and in its calls of re.

A pattern may be compiled, or a string that `re` compiles when it is used. A string counts when it
repeats something or has alternatives. So a few texts for a person count too, which does no harm.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from re import _constants as ops, _parser  # type: ignore[attr-defined]
from types import FunctionType, ModuleType

OWN = "raylaunch"
Pattern = re.Pattern[str] | re.Pattern[bytes]
Found = tuple[str, Pattern]
_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
_PLAIN = (str, bytes, int, float, type(None))
_FOR_A_PERSON = ("cause", "remedy")
_CALLS = ("search", "match", "fullmatch", "findall", "finditer", "split", "sub", "subn")


def patterns_of(module: ModuleType) -> Iterator[Found]:
    """Yield all patterns of a module with a name for each."""
    name = module.__name__.rpartition(".")[2]
    seen: set[int] = set()
    for attribute, value in vars(module).items():
        if not attribute.startswith("__"):
            yield from _patterns_in(value, f"{name}.{attribute}", seen)
    for line, text in literals_in_calls(inspect.getsource(module)):
        yield f"{name}:{line}", re.compile(text)


def patterns_in(value: object, name: str) -> Iterator[Found]:
    """Yield the patterns that a value holds, however deep."""
    return _patterns_in(value, name, set())


def literals_in_calls(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the patterns that a source gives to functions of re as a literal.

    Those of re.compile are left out: what it returns is found with its flags.
    """
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        of_re = isinstance(call.func.value, ast.Name) and call.func.value.id == "re"
        text = _literal(call.args[0])
        if of_re and call.func.attr in _CALLS and text is not None:
            yield call.lineno, text


def _literal(node: ast.expr) -> str | None:
    """Return the text of a literal, with `x` for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) or "x" for part in node.values)
    return None


def _patterns_in(value: object, name: str, seen: set[int]) -> Iterator[Found]:
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(value, str):
        if _is_expression(value):
            yield name, re.compile(value)
    elif not isinstance(value, _PLAIN) and id(value) not in seen:
        seen.add(id(value))
        for part, held in _parts(value):
            yield from _patterns_in(held, f"{name}{part}", seen)


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield what a table, an object or a function of ours holds."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield f"[{key!s:.20}]", held
            yield f"[{key!s:.20}].key", key
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from _named(zip(value._fields, value, strict=True))
    elif isinstance(value, Collection):
        for index, held in enumerate(value):
            yield f"[{index}]", held
    elif isinstance(value, FunctionType):
        for index, held in enumerate(_held_by(value)):
            yield f"()[{index}]", held
    elif type(value).__module__.partition(".")[0] == OWN or _is_own_class(value):
        yield from _named(_attributes(value).items())


def _named(attributes: Iterable[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    return ((f".{name}", held) for name, held in attributes if name not in _FOR_A_PERSON)


def _held_by(function: FunctionType) -> list[object]:
    """Return what a function has from its closure and as defaults."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    by_name = (function.__kwdefaults__ or {}).values()
    return [*cells, *(function.__defaults__ or ()), *by_name]


def _is_own_class(value: object) -> bool:
    return isinstance(value, type) and value.__module__.partition(".")[0] == OWN


def _attributes(value: object) -> Mapping[str, object]:
    slots = getattr(type(value), "__slots__", ())
    in_slots = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    own = {name: held for name, held in getattr(value, "__dict__", {}).items() if name[:2] != "__"}
    return {**in_slots, **own}


def _is_expression(text: str) -> bool:
    """Whether a string is an expression that repeats something or has alternatives."""
    try:
        return _may_be_slow(_parser.parse(text))
    except re.error:
        return False


def _may_be_slow(parsed: object) -> bool:
    if not isinstance(parsed, _parser.SubPattern | list | tuple) or not len(parsed):
        return False
    operation = parsed[0]
    if operation is ops.BRANCH or (operation in _REPEATS and parsed[1][1] > 1):
        return True
    return any(_may_be_slow(part) for part in parsed)
