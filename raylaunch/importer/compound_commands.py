"""Conditions, loops, groups and functions, as far as a script alone decides them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raylaunch.importer.launch_commands import LaunchCommands
from raylaunch.importer.script_model import shown
from raylaunch.importer.shell.conditions import matches
from raylaunch.importer.shell.expansion import BETWEEN
from raylaunch.importer.shell.placeholders import is_open
from raylaunch.importer.shell.shell_blocks import Arm, Block, Node
from raylaunch.importer.shell.shell_parser import Statement
from raylaunch.importer.shell.shell_process import (
    DEEPEST,
    Shell,
    first_word,
    has_effect,
    positional,
)

_MOST_ROUNDS = 1024
"""Rounds of one loop that are followed."""

_MOST_STEPS = 20_000
"""Statements that are followed in one file; a step takes up to 60 microseconds."""

_MOST_COPIES = 1_000_000
"""Variables that may be copied in one file, for branches, child shells and servers."""


class CompoundCommands(LaunchCommands):
    """Runs the blocks of a script; its simple commands are run by a subclass."""

    def _statement(self, statement: Statement) -> None:
        raise NotImplementedError

    def _run(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if self.signal:
                break
            self.steps += 1
            if self.steps > _MOST_STEPS or self.copies > _MOST_COPIES:
                self._give_up(node.line)
                break
            if not self._skipped(node):
                if isinstance(node, Block):
                    self._compound(node)
                else:
                    self._statement(node)

    def _give_up(self, line: int) -> None:
        if self.signal != "exit":
            what = f"not followed: the script takes over {_MOST_STEPS} steps; the rest is not read"
            self._note("shell", "warning", what, line + self.offset)
        self.signal = "exit"
        self.steps = _MOST_STEPS

    def _skipped(self, node: Node) -> bool:
        """Return whether `&&` or `||` keeps a node from running."""
        if node.joined not in ("&&", "||"):
            return False
        if self.status is not None:
            return self.status is (node.joined == "||")
        if self.tested:
            harmless = isinstance(node, Statement) and first_word(node) in (
                "exit",
                "return",
                "echo",
            )
            if not harmless and has_effect([node]):
                self._unclear(node, "runs on a condition that is not known; read as if it held")
            return harmless
        if node.joined == "&&":
            # A program is taken to succeed.
            return False
        if has_effect([node]):
            self._unclear(node, "only runs when the command before it fails: not read")
        return True

    def _unclear(self, node: Node, what: str) -> None:
        words = node.words if isinstance(node, Statement) else ()
        seen = " ".join(word.raw for word in words[:4])
        self._note("shell", "warning", f"not followed: {what}", node.line + self.offset, seen=seen)

    def _compound(self, block: Block) -> None:
        if block.kind == "if":
            self._if(block)
        elif block.kind == "case":
            self._case(block)
        elif block.kind in ("for", "select"):
            self._for(block)
        elif block.kind in ("while", "until"):
            self._while(block)
        elif block.kind == "function":
            self.shell.functions[block.words[0].text] = block
        elif block.kind == "subshell":
            self._subshell(block)
        else:
            self._run(block.arms[0].body)

    def _subshell(self, block: Block) -> None:
        outer = self.shell
        self.shell = self._copy()
        self._run(block.arms[0].body)
        self.shell = outer
        if self.signal in ("exit", "return"):
            self.signal = ""

    def _if(self, block: Block) -> None:
        unknown: list[Arm] = []
        for arm in block.arms:
            result: bool | None = True
            if not arm.otherwise:
                result = self._result(arm)
            if result is True and not unknown:
                return self._run(arm.body)
            if result is not False:
                unknown.append(arm)
            if result is True:
                break
        self.status = True
        if unknown:
            self._branches(block, unknown)
        return None

    def _result(self, arm: Arm) -> bool | None:
        """Run the condition of an arm and return its status, None if it is unknown."""
        self.status = None
        self._run(arm.condition)
        return self.status

    def _case(self, block: Block) -> None:
        expander = self._expander()
        value = expander.text(block.words[0]) if block.words else ""
        unknown: list[Arm] = []
        for arm in block.arms:
            result = matches(value, arm.patterns)
            if result is True and not unknown:
                return self._run(arm.body)
            if result is None:
                unknown.append(arm)
        if unknown:
            self._branches(block, unknown)
        return None

    def _branches(self, block: Block, arms: Sequence[Arm]) -> None:
        """Read the branches of an unknown condition; the first that does not exit counts."""
        if any(has_effect(arm.body) for arm in arms):
            what = (
                f"not followed: a condition ({block.kind}) that the script alone does not decide; "
                "all branches are read, the first counts for what follows"
            )
            self._note("shell", "warning", what, block.line + self.offset)
        start = self.shell
        kept: Shell | None = None
        self.uncertain.append("condition")
        for arm in arms:
            self.shell = self._copy_of(start)
            self._run(arm.body)
            leaves = self.signal != ""
            self.signal = ""
            if kept is not None:
                self._later_branch(start, kept)
            elif not leaves:
                kept = self.shell
        self.uncertain.pop()
        self.shell = kept or start

    def _copy_of(self, shell: Shell) -> Shell:
        self.copies += shell.size
        return shell.copy()

    def _later_branch(self, start: Shell, first: Shell) -> None:
        """Report the exports of a branch that does not count."""
        for name, setting in self.shell.exported.items():
            kept = first.exported.get(name)
            differs = kept is None or kept.value != setting.value
            if setting != start.exported.get(name) and differs:
                what = f"{name} is exported in a branch that is not the first: left out"
                seen = shown(name, setting.text)
                self.out.note("not-placed", "warning", what, setting.where, seen=seen)

    def _for(self, block: Block) -> None:
        if block.words and block.words[0].raw.startswith("(("):
            return self._counting_loop(block)
        raw = [word.raw for word in block.words]
        name = raw[0] if raw else ""
        items: list[str] = []
        expander = self._expander()
        if raw[1:2] == ["in"]:
            items = [each for word in block.words[2:] for each in expander.expand(word)]
        elif "@[@]" in self.shell.variables:
            items = [each for each in self.shell.variables["@[@]"].split(BETWEEN) if each]
        known = block.kind == "for" and not any(is_open(item) or "*" in item for item in items)
        if not known:
            return self._once(block, f"a loop ({block.kind}) over words that are not known", name)
        for item in items[:_MOST_ROUNDS]:
            self.shell.variables[name] = item
            if not self._round(block):
                break
        if len(items) > _MOST_ROUNDS:
            self._note("shell", "warning", "not followed: a loop of over 1024 rounds", block.line)
        return None

    def _round(self, block: Block) -> bool:
        """Run a loop's body once; return whether the loop goes on."""
        self._run(block.arms[0].body)
        signal = self.signal
        if signal in ("break", "continue"):
            self.signal = ""
        return signal in ("", "continue")

    def _once(self, block: Block, what: str, name: str = "") -> None:
        """Read a loop's body once, because its rounds are unknown."""
        if has_effect(block.arms[0].body):
            text = f"not followed: {what}; read once"
            self._note("shell", "warning", text, block.line + self.offset)
        self.shell.variables.pop(name, None)
        self.uncertain.append("loop")
        self._round(block)
        self.uncertain.pop()

    def _counting_loop(self, block: Block) -> None:
        parts = block.words[0].text.removeprefix("((").removesuffix("))").split(";")
        if len(parts) != 3:
            return self._once(block, "a loop (for)")
        expander = self._expander()
        expander.number(parts[0])
        for _ in range(_MOST_ROUNDS):
            held = expander.number(parts[1])
            if held is None:
                return self._once(block, "a loop (for)")
            if not held or not self._round(block):
                return None
            expander = self._expander()
            expander.number(parts[2])
        return self._note(
            "shell", "warning", "not followed: a loop of over 1024 rounds", block.line
        )

    def _while(self, block: Block) -> None:
        arm = block.arms[0]
        for _ in range(_MOST_ROUNDS):
            held = self._result(arm)
            endless = len(arm.condition) == 1 and first_word(arm.condition[0]) in ("true", ":")
            if held is None or endless:
                return self._once(block, f"a loop ({block.kind})")
            if held is (block.kind == "until") or not self._round(block):
                self.status = True
                return None
        return self._note(
            "shell", "warning", "not followed: a loop of over 1024 rounds", block.line
        )

    def _call(self, block: Block, arguments: Sequence[str]) -> None:
        """Run a function with its arguments."""
        if self.depth >= DEEPEST:
            return self._note("shell", "warning", "not followed: nested calls", block.line)
        variables = self.shell.variables
        outer = {key: variables.pop(key) for key in list(positional(variables))}
        self._set_arguments(arguments)
        self.depth += 1
        self._run(block.arms[0].body if block.arms else [])
        self.depth -= 1
        for key in list(positional(variables)):
            del variables[key]
        variables.update(outer)
        if self.signal == "return":
            self.signal = ""
        return None
