"""The shell's own commands, and those whose words alone say what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylaunch.checks.findings import Level
from raylaunch.importer.script_model import HostSetting, Reading, Setting, Sources, shown
from raylaunch.importer.serve_flags import is_flag
from raylaunch.importer.shell.conditions import evaluate
from raylaunch.importer.shell.expansion import BETWEEN, Expander, Limits
from raylaunch.importer.shell.shell_parser import Statement
from raylaunch.importer.shell.shell_process import ASSIGNMENT, Call, Shell, positional

_NO_PART = {
    *("set", "cd", "echo", "mkdir", "source", ".", "ulimit", "sleep", "exit", "true", ":"),
    *("wait", "printf", "shift", "trap", "shopt", "rm", "local", "cat", "return"),
}
"""Commands that say nothing about a deployment; they are not reported."""


class BuiltinCommands:
    """The state of a walk through one file, and the commands that need nothing but it.

    Each command returns its kind: "export", "assign", "test", "echo", "other".
    """

    def __init__(self, name: str, out: Reading, sources: Sources, limits: Limits) -> None:
        self.name = name
        self.out = out
        self.sources = sources
        self.limits = limits
        self.shell = Shell()
        self.pending: dict[str, Setting] = {}
        """Exports of earlier blocks that had no server."""
        self.used: set[str] = set()
        self.host: list[HostSetting] = []
        self.governor: str | None = None
        self.kind = ""
        """Kind of the statement before."""
        self.status: bool | None = True
        self.tested = False
        """Whether `status` is that of a test rather than of a program."""
        self.signal = ""
        """"exit", "return", "break" or "continue" while one takes effect."""
        self.uncertain: list[str] = []
        """The blocks around the statement that may run never, or more than once."""
        self.offset = 0
        """Lines of the file before the script that is read."""
        self.depth = 0
        self.steps = 0
        self.copies = 0
        self.called: set[str] = set()
        self.written: dict[str, str] = {}
        """Scripts that the script itself writes, by path."""
        self.containers: dict[str, dict[str, Setting]] = {}
        """Variables of the containers that were started, by name."""

    def _note(self, id_: str, level: Level, what: str, line: int, *, seen: str = "") -> None:
        self.out.note(id_, level, what, f"{self.name}:{line}", seen=seen)

    def _expander(self) -> Expander:
        return Expander(self.shell.variables, self.used, self.limits)

    def _copy(self) -> Shell:
        self.copies += self.shell.size
        return self.shell.copy()

    def _set_arguments(self, arguments: Sequence[str]) -> None:
        """Bind `$1`, `$2`, ... and `$@`."""
        self.shell.variables["@[@]"] = BETWEEN.join(arguments)
        for number, argument in enumerate(arguments[:64], 1):
            self.shell.variables[str(number)] = argument

    def _write(self, path: str, statement: Statement) -> None:
        """Remember a script that the script itself writes."""
        heredoc = statement.heredocs[0]
        text = self._expander().substitute(heredoc.text) if heredoc.expands else heredoc.text
        if heredoc.expands:
            text = text.replace("\\$", "$")
        self.written[path.removeprefix("./")] = text

    def _test(self, call: Call) -> str:
        self.status = evaluate(
            [word for word in call.words[1:] if word not in ("]", "]]")],
            patterns=call.words[0] == "[[",
        )
        self.tested = True
        return "test"

    def _arithmetic(self, text: str) -> None:
        value = self._expander().number(text.removeprefix("((").removesuffix("))"))
        self.status = None if value is None else value != 0
        self.tested = True

    def _let(self, call: Call) -> str:
        for word in call.words[1:]:
            self._arithmetic(word)
        return "assign"

    def _constant(self, call: Call) -> str:
        self.status = call.words[0] != "false"
        return "other"

    def _leave(self, call: Call) -> str:
        self.signal = call.words[0]
        self.status = call.words[1:2] in ([], ["0"])
        return "other"

    def _set(self, call: Call) -> str:
        self.status = True
        for number, word in enumerate(call.words[1:], 1):
            if word == "--":
                self._set_arguments(call.words[number + 1 :])
                break
            named = word in ("-o", "+o") and call.words[number + 1 : number + 2] == ["allexport"]
            if named or re.fullmatch(r"[-+][a-z]*a[a-z]*", word):
                self.shell.allexport = word.startswith("-")
        return "other"

    def _shift(self, _call: Call) -> str:
        variables = self.shell.variables
        if "@[@]" in variables:
            rest = [each for each in variables["@[@]"].split(BETWEEN) if each][1:]
            for key in list(positional(variables)):
                del variables[key]
            self._set_arguments(rest)
        self.status = True
        return "other"

    def _echo(self, call: Call) -> str:
        self.status = True
        self.governor = call.words[1] if len(call.words) > 1 else None
        if any("scaling_governor" in each for each in call.statement.redirections):
            seen = " ".join(call.words)
            self.host.append(HostSetting("governor", self.governor or "", call.where, seen))
        elif "vllm serve" in " ".join(call.words):
            what = "the command `echo` is no part of a recipe"
            self.out.note("not-placed", "info", what, call.where, seen=" ".join(call.words))
        return "echo"

    def _tee(self, call: Call) -> str:
        self.status = True
        if any(word.endswith("scaling_governor") for word in call.words):
            text = f"echo {self.governor or ''} | {' '.join(call.words)}"
            self.host.append(HostSetting("governor", self.governor or "", call.where, text))
            return "governor"
        if call.statement.heredocs and len(call.words) > 1:
            self._write(call.words[-1], call.statement)
            return "other"
        if call.statement.joined == "|" and self.kind == "serve":
            what = "raylaunch keeps the logs itself"
            self.out.note("set-by-raylaunch", "info", what, call.where, seen=" ".join(call.words))
        else:
            self._unknown(call)
        return "other"

    def _ray(self, call: Call) -> str:
        self.status = True
        if call.words[1:2] == ["start"]:
            self.out.ray_nodes.append(call.where)
        listed = self.shell.exported.get("ASCEND_RT_VISIBLE_DEVICES")
        if listed is not None:
            self.out.ray_devices.append(len(listed.value.split(",")))
            self.used.add("ASCEND_RT_VISIBLE_DEVICES")
        what = "raylaunch uses the Ray cluster that you start, or starts one itself"
        self.out.note("set-by-raylaunch", "info", what, call.where, seen=" ".join(call.words))
        return "other"

    def _unknown(self, call: Call) -> str:
        seen = " ".join(call.words)
        if is_flag(call.words[0]):
            what = (
                "these words belong to no command: the line before ends without a backslash, "
                "or with a comment"
            )
            todo = "fix the script, or add them to the recipe"
            self.out.note("not-placed", "warning", what, call.where, seen=seen, todo=todo)
        elif call.words[0] not in _NO_PART or "vllm" in seen:
            what = f"the command `{call.words[0]}` is no part of a recipe"
            level: Level = "warning" if re.search(r"\bvllm serve\b", seen) else "info"
            self.out.note("not-placed", level, what, call.where, seen=seen)
        elif call.words[0] == "ulimit":
            what = "left to the environment Ray is started in"
            self.out.note("not-needed", "info", what, call.where, seen=seen)
        return "other"

    def _declare(self, call: Call) -> str:
        options = "".join(word[1:] for word in call.words[1:] if re.fullmatch(r"-[A-Za-z]+", word))
        exports = call.words[0] == "export" or "x" in options or self.shell.allexport
        self.status = True
        for word in call.words[1:]:
            if is_flag(word):
                continue
            found = ASSIGNMENT.fullmatch(word)
            if found:
                name = found[1] + (found[2] or "")
                before = self.shell.variables.get(name, "") if found[3] == "+=" else ""
                self._set_variable(name, before + found[4], word, call.where, exports=exports)
            elif exports:
                self._export_named(word, call.where)
        return "export" if exports else "assign"

    def _set_variable(self, name: str, value: str, word: str, where: str, *, exports: bool) -> None:
        if not self.limits.allow(len(value)):
            return
        self.shell.variables[name] = value
        before = self.shell.exported.get(name)
        if not exports and before is None:
            return
        if before is not None and before.value != value and not self.uncertain:
            what = f"{name} is exported twice: the later value counts"
            seen = shown(name, before.text)
            self.out.note("not-placed", "info", what, before.where, seen=seen)
        self.shell.exported[name] = Setting(value, where, word)

    def _export_named(self, name: str, where: str) -> None:
        if re.fullmatch(r"[A-Za-z_]\w*", name) and name in self.shell.variables:
            value = self.shell.variables[name]
            self.shell.exported[name] = Setting(value, where, f"{name}={value}")
        else:
            what = "exports something that is not set in the script"
            self.out.note("not-placed", "warning", what, where, seen=name)

    def _unset(self, call: Call) -> str:
        self.status = True
        for name in (word for word in call.words[1:] if not is_flag(word)):
            gone = self.shell.exported.pop(name, None)
            self.shell.variables.pop(name, None)
            self.shell.functions.pop(name, None)
            what = f"{name} is unset"
            if "proxy" in name.lower():
                what += "; raylaunch itself keeps proxies away from the servers"
            seen = shown(name, gone.text) if gone else name
            self.out.note("not-needed", "info", what, call.where, seen=seen)
        return "unset"

    def _sysctl(self, call: Call) -> str:
        self.status = True
        for word in call.words[1:]:
            name, equals, value = word.partition("=")
            if equals and not is_flag(word):
                setting = HostSetting(name.strip(), value.strip(), call.where, f"sysctl {word}")
                self.host.append(setting)
            elif not is_flag(word):
                what = "a sysctl without a value"
                self.out.note("not-placed", "info", what, call.where, seen=word)
        return "sysctl"
