"""Nests the statements of a script into its conditions, loops, functions and groups.

Any order of reserved words is accepted: one that closes nothing is dropped, and what never closes
ends with the script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raylaunch.importer.shell.expansion import Word
from raylaunch.importer.shell.shell_parser import Statement

_MAX_NESTING = 40
"""Blocks within blocks; deeper ones are read as if they stood in the outermost one."""


@dataclass
class Arm:
    """One branch: the nodes of its condition (or the patterns of a case), and its body."""

    condition: list[Node] = field(default_factory=list)
    body: list[Node] = field(default_factory=list)
    patterns: tuple[str, ...] = ()
    otherwise: bool = False
    """The `else` branch."""


@dataclass
class Block:
    """A compound command.

    `kind`: if, while, until, for, select, case, group, subshell, function.
    """

    kind: str
    line: int
    words: tuple[Word, ...] = ()
    joined: str = ""
    arms: list[Arm] = field(default_factory=list)


Node = Statement | Block

_STOPS = {
    "if": ("then", "elif", "else", "fi"),
    "while": ("do", "done"),
    "until": ("do", "done"),
    "for": ("do", "done"),
    "select": ("do", "done"),
    "case": ("pattern", "esac"),
    "group": ("}",),
    "subshell": (")",),
}
_KINDS = {"{": "group", "(": "subshell"}


def nest(statements: Sequence[Statement]) -> list[Node]:
    """Return the statements as a tree."""
    return _Nester(statements).nodes(())


class _Nester:
    """Walks the list once; `at` is the next statement."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = statements
        self.at = 0
        self.depth = 0

    def nodes(self, stops: tuple[str, ...]) -> list[Node]:
        """Read nodes up to one of the reserved words in `stops`, which is left in place."""
        found: list[Node] = []
        while self.at < len(self.statements):
            statement = self.statements[self.at]
            control = statement.control
            if control in stops:
                break
            self.at += 1
            if not control:
                found.append(statement)
            elif self.depth < _MAX_NESTING:
                block = self._block(control, statement)
                if block is not None:
                    found.append(block)
        return found

    def _block(self, control: str, statement: Statement) -> Block | None:
        kind = _KINDS.get(control, control)
        if kind == "function":
            return self._function(statement)
        if kind not in _STOPS:
            return None
        block = Block(kind, statement.line, statement.words, statement.joined)
        self.depth += 1
        if kind == "if":
            self._if(block)
        elif kind == "case":
            self._case(block)
        elif kind in ("group", "subshell"):
            block.arms = [Arm(body=self.nodes(_STOPS[kind]))]
            self._skip(_STOPS[kind])
        else:
            self._loop(block)
        self.depth -= 1
        return block

    def _skip(self, controls: tuple[str, ...]) -> str:
        """Step over the next statement if it is one of these reserved words; return which."""
        if self.at < len(self.statements) and self.statements[self.at].control in controls:
            self.at += 1
            return self.statements[self.at - 1].control
        return ""

    def _if(self, block: Block) -> None:
        stop = "if"
        while stop in ("if", "elif", "else"):
            arm = Arm(otherwise=stop == "else")
            if not arm.otherwise:
                arm.condition = self.nodes(_STOPS["if"])
                self._skip(("then",))
            arm.body = self.nodes(("elif", "else", "fi"))
            block.arms.append(arm)
            stop = self._skip(("elif", "else", "fi"))

    def _loop(self, block: Block) -> None:
        arm = Arm(condition=self.nodes(("do", "done")))
        if self._skip(("do",)):
            arm.body = self.nodes(("done",))
        self._skip(("done",))
        block.arms = [arm]

    def _case(self, block: Block) -> None:
        self.nodes(_STOPS["case"])
        while self._skip(("pattern",)):
            text = self.statements[self.at - 1].words[0].text
            patterns = tuple(part.strip().strip("\"'") for part in text.split("|"))
            block.arms.append(Arm(body=self.nodes(_STOPS["case"]), patterns=patterns))
        self._skip(("esac",))

    def _function(self, statement: Statement) -> Block:
        block = Block("function", statement.line, statement.words, statement.joined)
        self.depth += 1
        opened = self._skip(("{", "("))
        closing = ("}",) if opened == "{" else (")",)
        if opened:
            block.arms = [Arm(body=self.nodes(closing))]
            self._skip(closing)
        self.depth -= 1
        return block
