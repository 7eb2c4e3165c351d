"""Reads YAML into plain values with the line of each key, within limits for hostile input.

A recipe holds what JSON holds: mappings with text keys, lists, text, numbers, booleans and null.
Everything else that YAML can express (bytes, dates, sets, merge keys, other tags) is refused,
because vLLM's flags and the environment have no form for it.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from raylaunch.errors import RecipeError
from raylaunch.recipe.yaml_limits import (
    LIMITS,
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_SCALAR,
    MAX_VALUES,
    TooLargeError,
    bounded,
    line_of,
)

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
"""A value of a recipe."""

_INT_RANGE = (-(2**63), 2**64 - 1)
"""JSON readers of vLLM and the kernel hold integers in 64 bits."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that YAML refuses or that drive a terminal; tab and newline are allowed."""

_SHOWN = 60
_STRING = "tag:yaml.org,2002:str"


@dataclass
class Document:
    """The values of one YAML mapping, and the origin of each key by its dotted path."""

    values: dict[str, Json] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """Return the text of a recipe file.

    The file is opened without blocking: /proc/kmsg looks like a regular file, but a read of it
    waits for ever.

    Raises:
        OSError: The file cannot be read, is not a regular file, or is larger than MAX_FILE_BYTES.
        UnicodeDecodeError: It is not UTF-8 text.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = bytearray()
        # One byte more than allowed shows that a file is too large; st_size of files in /proc is 0.
        while len(content) <= MAX_FILE_BYTES:
            chunk = file.read(MAX_FILE_BYTES + 1 - len(content))
            if chunk is None:
                raise OSError(errno.EAGAIN, "it has no end and no data at the moment")
            if not chunk:
                return content.decode("utf-8")
            content += chunk
    raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 20} MiB")


def read_document(text: str, file: str) -> Document:
    """Read a recipe file's text; `file` is its name in messages and origins.

    Raises:
        RecipeError: Not YAML, not a mapping, too large, or a value that a recipe cannot hold.
    """
    node = _compose(text, f"recipe {file}")
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"recipe {file} is not a mapping of keys to values")
    reader = _NodeReader(file)
    reader.read_mapping(node, "", 0)
    return Document(reader.root, reader.origins)


def read_value(text: str, path: str, label: str) -> Json:
    """Read the value of one assignment to `path`; `label` names the assignment in messages.

    Raises:
        RecipeError: As for `read_document`.
    """
    node = _compose(text, label)
    if node is None:
        return None
    return _NodeReader(label, has_lines=False).read(node, path, 1)


def check_values(values: Mapping[str, object], origin: str) -> None:
    """Check values that did not come from YAML against the same limits.

    Raises:
        RecipeError: A key that is not text, a value that a recipe cannot hold, or too many of them.
    """
    budget = MAX_VALUES
    open_values: list[tuple[str, object, int]] = [("", values, 0)]
    while open_values:
        path, value, depth = open_values.pop()
        budget -= 1
        if budget < 0 or depth > MAX_DEPTH:
            raise _too_large(f"{origin}: {shorten(path) or 'the recipe'}")
        if isinstance(value, Mapping):
            for key in value:
                _check_key(key, origin)
                open_values.append((f"{path}.{key}" if path else key, value[key], depth + 1))
        elif isinstance(value, list | tuple):
            open_values += [(path, item, depth + 1) for item in value]
        else:
            check_scalar(value, path, origin)


def check_scalar(value: object, path: str, where: str) -> None:
    """Refuse a scalar that cannot become a flag or a variable.

    Raises:
        RecipeError: Bytes, a date, an integer over 64 bits, a number that is not finite, or
            unprintable text.
    """
    problem = ""
    if isinstance(value, str):
        problem = describe_unprintable(value)
    elif isinstance(value, bool) or value is None:
        problem = ""
    elif isinstance(value, int):
        if not _INT_RANGE[0] <= value <= _INT_RANGE[1]:
            problem = "the integer does not fit into 64 bits"
    elif isinstance(value, float):
        if not math.isfinite(value):
            problem = f"{value} is not a finite number"
    else:
        problem = f"a value of type {type(value).__name__} cannot become a flag or a variable"
    if problem:
        raise RecipeError(
            f"{where}: {shorten(path)}: {problem}",
            todo="write a number or text; quotes turn a date or number into text",
        )


def describe_unprintable(text: str) -> str:
    """Name the first control character or surrogate of `text`; "" when there is none."""
    found = _UNPRINTABLE.search(text)
    if not found:
        return ""
    return f"the text holds the unprintable character U+{ord(found[0]):04X}"


def shorten(text: str) -> str:
    """Return `text` on one line, printable, and short enough for a message."""
    shown = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)


def _compose(text: str, label: str) -> yaml.Node | None:
    """Parse `text` into nodes, after a pass over its events that bounds their number and depth."""
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        for _ in bounded(yaml.parse(text, Loader=loader)):
            pass
        return yaml.compose(text, Loader=loader)
    except TooLargeError as error:
        raise _too_large(label, str(error)) from error
    except yaml.MarkedYAMLError as error:
        raise _malformed(label, error) from error
    # ValueError: a NUL byte or a lone surrogate in the text.
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{label} is not valid YAML", why=str(error)) from error


def _tag(node: yaml.Node) -> str:
    return shorten(node.tag.removeprefix("tag:yaml.org,2002:"))


def _too_large(where: str, why: str = "") -> RecipeError:
    return RecipeError(f"{where}: too many or too deeply nested values", why=why or LIMITS)


def _malformed(label: str, error: yaml.MarkedYAMLError) -> RecipeError:
    what = error.problem or error.context
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return RecipeError(f"{label} is not valid YAML: {what}")
    return RecipeError(
        f"{label} is not valid YAML, line {mark.line + 1}, column {mark.column + 1}: {what}",
        evidence=mark.get_snippet() or "",
        todo="fix this line: quote values that start with { [ * & or @ or hold ': '",
    )


def _check_key(key: object, where: str) -> None:
    if not isinstance(key, str):
        raise RecipeError(
            f"{where}: the key {shorten(repr(key))} is not text",
            todo=f"write it in quotes: '{shorten(str(key))}'",
        )
    if problem := describe_unprintable(key):
        raise RecipeError(f"{where}: the key {shorten(key)!r}: {problem}")


class _NodeReader:
    """Builds the values of one document and remembers where each key is written."""

    def __init__(self, file: str, *, has_lines: bool = True) -> None:
        self.root: dict[str, Json] = {}
        self.origins: dict[str, str] = {}
        self._file = file
        self._has_lines = has_lines
        self._budget = MAX_VALUES
        # Only its scalar constructors are used: collections are built here, where depth and number
        # are bounded.
        self._scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: str, depth: int) -> Json:
        """Return the value of `node`, which stands at the dotted `path`."""
        self._spend(node, depth)
        if isinstance(node, yaml.MappingNode):
            self._refuse_other_tag(node, "map", path)
            return self._fill({}, node, f"{path}.", depth)
        if isinstance(node, yaml.SequenceNode):
            self._refuse_other_tag(node, "seq", path)
            return [self._read_item(*item, path, depth) for item in enumerate(node.value)]
        return self._read_scalar(node, path)

    def _read_item(self, index: int, node: yaml.Node, path: str, depth: int) -> Json:
        if isinstance(node, yaml.MappingNode):
            path = f"{path}.{index}"
            self.origins.setdefault(path, self._origin(node))
        return self.read(node, path, depth + 1)

    def read_mapping(self, node: yaml.MappingNode, prefix: str, depth: int) -> None:
        """Read the document's own mapping into `root`."""
        self._refuse_other_tag(node, "map", "the recipe")
        self._fill(self.root, node, prefix, depth)

    def _fill(
        self, target: dict[str, Json], node: yaml.MappingNode, prefix: str, depth: int
    ) -> dict[str, Json]:
        for key_node, value_node in node.value:
            key = self._read_key(key_node, prefix)
            if key in target:
                raise RecipeError(
                    f"{self._where(key_node)}: the key {shorten(prefix + key)} is given twice"
                )
            # An alias can repeat a mapping elsewhere: the first origin of a path is the one of its
            # own key.
            self.origins.setdefault(prefix + key, self._origin(key_node))
            target[key] = self.read(value_node, prefix + key, depth + 1)
        return target

    def _read_key(self, node: yaml.Node, prefix: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise RecipeError(
                f"{self._where(node)}: a key below {shorten(prefix) or 'the recipe'} is not text",
                todo="keys are names",
            )
        key = self._read_scalar(node, prefix.rstrip("."))
        _check_key(key, self._where(node))
        return str(key)

    def _read_scalar(self, node: yaml.Node, path: str) -> Json:
        text: str = node.value
        if node.tag == _STRING:
            # Most scalars are text, and most text is printable: the message is made for the others
            # only.
            if _UNPRINTABLE.search(text):
                check_scalar(text, path, self._where(node))
            return text
        if len(text) > MAX_SCALAR:
            raise RecipeError(
                f"{self._where(node)}: {shorten(path)}: a {_tag(node)} of {len(text)} characters",
                why=f"numbers may have {MAX_SCALAR}",
                todo="put text into quotes",
            )
        value = self._construct(node, path)
        check_scalar(value, path, self._where(node))
        return value

    def _construct(self, node: yaml.Node, path: str) -> Json:
        """Let PyYAML turn a number, boolean, null or tagged text into its value."""
        try:
            value: Json = self._scalars.construct_object(node)
        except yaml.MarkedYAMLError as error:
            raise _malformed(self._label, error) from error
        # PyYAML's constructors fail in these ways on a text that its tag does not fit: `!!int x`,
        # `!!bool x`, `!!timestamp x`, `!!int ''`, the 31st of June.
        except (ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise RecipeError(
                f"{self._label} is not valid YAML{self._line(node)}: {shorten(path)}: "
                f"{shorten(node.value)!r} is not a valid {_tag(node)}",
                todo="put text into quotes",
            ) from error
        return value

    def _refuse_other_tag(self, node: yaml.Node, tag: str, path: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{tag}":
            raise RecipeError(
                f"{self._where(node)}: {shorten(path)}: "
                f"a value with the YAML tag {shorten(node.tag)}"
                " cannot become a flag or a variable",
                todo="write a plain mapping or list",
            )

    def _spend(self, node: yaml.Node, depth: int) -> None:
        """Count one value. An alias costs what it stands for: few lines can expand to gigabytes."""
        self._budget -= 1
        if self._budget < 0:
            raise _too_large(self._where(node))
        if depth > MAX_DEPTH:
            raise RecipeError(
                f"{self._label} is not valid YAML{self._line(node)}: more than {MAX_DEPTH} levels",
                why="an alias may stand inside itself",
            )

    @property
    def _label(self) -> str:
        return f"recipe {self._file}" if self._has_lines else self._file

    def _line(self, node: yaml.Node) -> str:
        return f", {line_of(node)}" if self._has_lines else ""

    def _where(self, node: yaml.Node) -> str:
        return self._label + self._line(node)

    def _origin(self, node: yaml.Node) -> str:
        return f"{self._label}:{line_of(node).removeprefix('line ')}"
