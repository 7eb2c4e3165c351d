"""Walks through launch scripts as a shell would; nothing is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from raylaunch.importer.compound_commands import CompoundCommands
from raylaunch.importer.launch_commands import ENGINES, SHELLS, serve_words
from raylaunch.importer.markdown_blocks import Block as TextBlock, scripts_of
from raylaunch.importer.script_model import Reading, Setting, Sources, shown
from raylaunch.importer.shell.expansion import BETWEEN, Limits
from raylaunch.importer.shell.shell_parser import Statement
from raylaunch.importer.shell.shell_process import ASSIGNMENT, DECLARATIONS, Call, mentions_vllm
from raylaunch.importer.shell.wrappers import Command, unwrap
from raylaunch.importer.unit_files import kind_of, read_compose, read_pods, read_unit

_OF_INTEREST = re.compile(
    r"vllm[ .](?:serve|entrypoints)|docker (?:run|exec)|^\s*(?:export\s|sysctl\s|\w+=|--)"
    r"|scaling_governor|serve",
    re.MULTILINE,
)
"""What a block of a document must hold to be read."""


def read_scripts(sources: Sources) -> Reading:
    """Read the texts of some files.

    Arbitrary text is fine: what is no launch script is reported.
    """
    out = Reading()
    limits = Limits()
    ordered = sorted(sources.texts, key=sources.is_named_elsewhere)
    for name in ordered:
        # A file that another one has read (`source common.sh`) is no script of its own.
        if name not in sources.consumed:
            _Walk(name, out, sources, limits).document(sources.texts[name])
    if limits.exceeded:
        what = "words that expand beyond 131072 characters are left as they are written"
        out.note("shell", "warning", f"not followed: {what}", next(iter(sources.texts), ""))
    order = {name: number for number, name in enumerate(sources.texts)}
    out.servers.sort(key=lambda server: order.get(server.where.rpartition(":")[0], 0))
    return out


class _Walk(CompoundCommands):
    """One file, statement by statement."""

    def __init__(self, name: str, out: Reading, sources: Sources, limits: Limits) -> None:
        super().__init__(name, out, sources, limits)
        self.handlers = self._handlers()

    def document(self, text: str) -> None:
        """Read a file of any kind."""
        kind = kind_of(self.name, text)
        if kind == "unit":
            return self._unit(text)
        if kind == "compose":
            return self._containers_of(read_compose(text))
        if kind == "pods":
            return self._containers_of(read_pods(text))
        if kind == "data":
            return self._note("not-placed", "info", "not a script: read only if one names it", 1)
        return self._scripts(text)

    def _scripts(self, text: str) -> None:
        blocks, skipped = scripts_of(text)
        for line, words in skipped:
            what = "not read: no command stands before it"
            self._note("not-placed", "info", what, line, seen=words)
        for block in blocks:
            if len(blocks) > 1 and not _OF_INTEREST.search(block.text):
                first = next(iter(block.text.strip().splitlines()), "")
                what = "a block of other commands is no part of a recipe"
                self._note("not-placed", "info", what, block.offset + 1, seen=first)
            else:
                self._block(block)
        self._leftover(self.pending)

    def _block(self, block: TextBlock) -> None:
        before = len(self.out.servers)
        self.shell.exported = {}
        self.host = []
        self._script(block.text, block.offset)
        self._uncalled(before)
        self._unrun(before)
        served = self.out.servers[before:]
        if served:
            served = [replace(server, host=tuple(self.host)) for server in served]
        else:
            self.out.host += self.host
        if served and self.pending and not any(server.env for server in served):
            served = [replace(server, env=self.pending) for server in served]
            self.pending = {}
        self.out.servers[before:] = served
        exported = self.shell.exported
        if served:
            last = served[-1].env
            late = {name: each for name, each in exported.items() if name not in last}
            self._leftover(late)
        else:
            again = {name: self.pending[name] for name in self.pending if name in exported}
            self._leftover(again)
            self.pending = {**self.pending, **exported}

    def _uncalled(self, before: int) -> None:
        """Read the functions that nothing in the script calls, if no server was found without."""
        for name, block in list(self.shell.functions.items()):
            if len(self.out.servers) > before or name in self.called:
                continue
            if mentions_vllm(block.arms[0].body if block.arms else []):
                what = f"the function {name} is called by nothing here; read as if it were"
                self._note("shell", "warning", what, block.line)
                self._call(block, [])
                self.signal = ""

    def _unrun(self, before: int) -> None:
        """Read the scripts that the script writes and never starts, if no server was found."""
        for path, text in list(self.written.items()):
            if len(self.out.servers) == before and "vllm" in text:
                what = f"{path} is written here and started elsewhere; read as if it ran here"
                self._note("shell", "info", what, 1)
                self._child(text, 0, self.shell.exported)

    def _leftover(self, settings: dict[str, Setting]) -> None:
        for name, setting in settings.items():
            seen = shown(name, setting.text)
            if name not in self.used:
                what = f"{name} is exported where no `vllm serve` follows"
                self.out.note("not-placed", "warning", what, setting.where, seen=seen)
            else:
                what = f"{name} only serves the script itself"
                self.out.note("not-needed", "info", what, setting.where, seen=seen)

    # Simple commands

    def _statement(self, statement: Statement) -> None:
        where = f"{self.name}:{statement.line + self.offset}"
        words = self._words(statement)
        if statement.array:
            self.kind = "assign"
            self.status = True
            return self._array(statement.array, words)
        before = len(self.out.servers)
        self.tested = False
        self.status = None
        kind = self._command(words, statement, where)
        if statement.negated:
            self._negate()
        started = len(self.out.servers) > before
        if statement.redirections and not statement.heredocs and kind in ("serve", "docker"):
            seen = " ".join(statement.redirections)
            what = "raylaunch keeps the logs itself"
            self.out.note("set-by-raylaunch", "info", what, where, seen=seen)
        if statement.background and (kind == "serve" or started):
            what = "raylaunch runs the servers in the background itself"
            self.out.note("set-by-raylaunch", "info", what, where, seen="&")
        if self.uncertain and kind in ("serve", "export"):
            what = f"stands in a {self.uncertain[-1]}: read once, as if it ran once"
            self.out.note("shell", "warning", what, where, seen=" ".join(words[:4]))
        self.kind = kind
        return None

    def _negate(self) -> None:
        if self.status is not None:
            self.status = not self.status

    def _words(self, statement: Statement) -> list[str]:
        """Expand a statement's words; assignments are not split into several."""
        expander = self._expander()
        found: list[str] = []
        declares = bool(statement.words) and statement.words[0].raw in DECLARATIONS
        leading = not statement.array
        for word in statement.words:
            assigns = ASSIGNMENT.match(word.raw) is not None
            if assigns and (leading or declares):
                found.append(expander.text(word))
            elif word.raw.startswith("(("):
                found.append(word.text)
            else:
                leading = False
                found += expander.expand(word)
        return found

    def _array(self, assignment: str, words: list[str]) -> None:
        name = assignment.rstrip("+=")
        variables = self.shell.variables
        keyed = [re.fullmatch(r"\[([^\]]*)\]=(.*)", word, re.DOTALL) for word in words]
        for found in keyed:
            if found:
                variables[f"{name}[{found[1]}]"] = found[2]
        plain = [found[2] if found else word for found, word in zip(keyed, words, strict=True)]
        before = variables.get(f"{name}[@]")
        if assignment.endswith("+=") and before is not None:
            plain = [before, *plain]
        joined = BETWEEN.join(plain)
        if self.limits.allow(len(joined)):
            variables[f"{name}[@]"] = joined

    def _command(self, words: list[str], statement: Statement, where: str) -> str:
        command = unwrap(words)
        own = {
            name: Setting(value, where, f"{name}={value}") for name, value in command.own.items()
        }
        if not command.words:
            return self._assign(own)
        before = len(self.out.servers)
        if command.clears or command.unset or not command.keeps_env:
            kind = self._with_less(command.words, command, own, statement, where)
        else:
            kind = self._take(command.words, own, statement, where)
        if len(self.out.servers) > before:
            for seen in command.lost:
                name = seen.partition(" ")[0]
                what = f"what `{name}` asks for is no part of a recipe"
                self.out.note("not-placed", "warning", what, where, seen=seen)
        return kind

    def _with_less(
        self,
        words: list[str],
        command: Command,
        own: dict[str, Setting],
        statement: Statement,
        where: str,
    ) -> str:
        """Take a command whose wrapper takes variables away."""
        outer = self.shell
        self.shell = self._copy()
        exported = self.shell.exported
        for name in list(exported) if command.clears else command.unset:
            exported.pop(name, None)
        before = len(self.out.servers)
        kind = self._take(words, own, statement, where)
        if not command.keeps_env and exported and len(self.out.servers) > before:
            what = "sudo without -E drops exported variables on most systems; they are kept here"
            seen = ", ".join(exported)
            self.out.note("assumed", "warning", what, where, seen=seen)
        self.shell = outer
        return kind

    def _assign(self, own: dict[str, Setting]) -> str:
        self.status = True
        for name, setting in own.items():
            self.shell.variables[name] = setting.value
            if self.shell.allexport or name in self.shell.exported:
                self.shell.exported[name] = setting
        return "assign"

    def _handlers(self) -> dict[str, Callable[[Call], str]]:
        """Map the names of commands to what they do; each returns a kind."""
        return {
            **dict.fromkeys(ENGINES, self._engine),
            **dict.fromkeys(DECLARATIONS, self._declare),
            **dict.fromkeys(SHELLS, self._bash),
            **dict.fromkeys(("source", "."), self._source),
            **dict.fromkeys(("[", "[[", "test"), self._test),
            **dict.fromkeys(("true", ":", "false"), self._constant),
            **dict.fromkeys(("exit", "return", "break", "continue"), self._leave),
            **dict.fromkeys(("kubectl", "oc"), self._kubectl),
            **dict.fromkeys(("su", "runuser", "tmux", "screen"), self._quoted_command),
            "ssh": self._ssh,
            "eval": self._eval,
            "set": self._set,
            "shift": self._shift,
            "let": self._let,
            "unset": self._unset,
            "sysctl": self._sysctl,
            "tee": self._tee,
            "cat": self._cat,
            "ray": self._ray,
            "echo": self._echo,
        }

    def _take(
        self, words: list[str], own: dict[str, Setting], statement: Statement, where: str
    ) -> str:
        serve = serve_words(words)
        if serve is not None:
            self.serve(serve, own, where)
            return "serve"
        name = words[0].rpartition("/")[2]
        if words[0].startswith("(("):
            self._arithmetic(words[0])
            return "test"
        if words[0] in self.shell.functions:
            self.called.add(words[0])
            self.status = True
            self._call(self.shell.functions[words[0]], words[1:])
            return "call"
        appended = ASSIGNMENT.fullmatch(words[0])
        if appended and len(words) == 1:
            self._declare(Call(["", words[0]], where, statement))
            return "assign"
        handler = self.handlers.get(name)
        if handler is None:
            call = Call(words, where, statement)
            return self._script_file(words) or self._unknown(call)
        outer = self.shell.exported
        if own:
            self.copies += len(outer)
            self.shell.exported = {**outer, **own}
        kind = handler(Call([name, *words[1:]], where, statement))
        if own:
            self.shell.exported = outer
        return kind

    # Unit files, compose files and pods

    def _unit(self, text: str) -> None:
        unit = read_unit(text)
        for line, path in unit.env_files:
            env = self._container_env((), (path,), f"{self.name}:{line}")
            self.shell.exported.update(env)
        for line, name, value in unit.variables:
            where = f"{self.name}:{line}"
            self._set_variable(name, value, f"{name}={value}", where, exports=True)
        for line, words in unit.commands:
            expander = self._expander()
            expanded = [each for word in words for each in expander.expand(word)]
            self._command(expanded, Statement(line, ()), f"{self.name}:{line}")
        for line, seen in unit.others:
            what = "a unit's setting that is no part of a recipe"
            self._note("not-placed", "info", what, line, seen=seen)

    def _containers_of(self, runs: Sequence[tuple[int, list[str], list[str]]]) -> None:
        """Read containers that were turned into the words of `docker run`."""
        for line, words, lost in runs:
            where = f"{self.name}:{line}"
            self.docker(words, where)
            for seen in lost:
                what = "a container's setting that is no part of a recipe"
                self.out.note("not-placed", "warning", what, where, seen=seen)
