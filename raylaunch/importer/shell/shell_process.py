"""The state of one shell process, and what its commands are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from raylaunch.importer.script_model import Setting
from raylaunch.importer.shell.shell_blocks import Block, Node
from raylaunch.importer.shell.shell_parser import Statement

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[[^\]=]*\])?(\+?=)(.*)", re.DOTALL)
"""NAME[index]=value or NAME+=value."""

DECLARATIONS = ("export", "declare", "typeset", "local", "readonly")

DEEPEST = 8
"""Scripts within scripts (`bash -c`, `ssh`, functions) that are followed, one in the other."""


@dataclass(frozen=True)
class Call:
    """A simple command: its words, without wrappers, where it stands, and its statement."""

    words: list[str]
    where: str
    statement: Statement

    @property
    def line(self) -> int:
        """Line of the file."""
        return int(self.where.rpartition(":")[2])


@dataclass
class Shell:
    """The variables of one shell process."""

    variables: dict[str, str] = field(default_factory=dict)
    exported: dict[str, Setting] = field(default_factory=dict)
    functions: dict[str, Block] = field(default_factory=dict)
    allexport: bool = False

    def copy(self) -> Shell:
        """Return a shell with the same state, as a subshell has."""
        return Shell(
            dict(self.variables), dict(self.exported), dict(self.functions), self.allexport
        )

    @property
    def size(self) -> int:
        """Number of variables a copy has to copy."""
        return len(self.variables) + len(self.exported)


def positional(variables: dict[str, str]) -> Iterator[str]:
    """Yield the names of the positional parameters that are set."""
    yield from (key for key in ("@[@]", *map(str, range(1, 65))) if key in variables)


def first_word(node: Node) -> str:
    """Return the first word of a simple command as written, "" for a block."""
    return node.words[0].raw if isinstance(node, Statement) and node.words else ""


def has_effect(nodes: Sequence[Node]) -> bool:
    """Return whether nodes set a variable or may start a server."""
    for node in nodes:
        if isinstance(node, Block):
            if any(has_effect(arm.body) for arm in node.arms):
                return True
        elif node.array or _sets_variable(first_word(node)) or starts_server(node):
            return True
    return False


def _sets_variable(word: str) -> bool:
    return word in DECLARATIONS or ASSIGNMENT.match(word) is not None


def starts_server(statement: Statement) -> bool:
    """Return whether a statement may start a server."""
    prints = first_word(statement) in ("echo", "printf")
    return not prints and any("vllm" in word.raw for word in statement.words)


def mentions_vllm(nodes: Sequence[Node]) -> bool:
    """Return whether vllm occurs in one of these nodes."""
    for node in nodes:
        if isinstance(node, Block):
            if any(mentions_vllm(arm.body) for arm in node.arms):
                return True
        elif any("vllm" in word.raw for word in node.words):
            return True
    return False
