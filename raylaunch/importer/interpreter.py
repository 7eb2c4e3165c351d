"""A walk through launch scripts as a shell would go: variables and words are followed, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from raylaunch.importer.docker_run import command_inside, read_docker
from raylaunch.importer.expansion import BETWEEN, expand
from raylaunch.importer.markdown_blocks import Block, scripts_of
from raylaunch.importer.script_model import HostSetting, Reading, Server, Setting, shown
from raylaunch.importer.serve_flags import is_flag, read_words
from raylaunch.importer.shell_parser import Statement, parse

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?=)(.*)", re.DOTALL)
_WRAPPERS = ("exec", "nohup", "sudo", "command", "time", "env", "$")
_SERVE = (
    re.compile(r"(?:\S*/)?vllm serve$"),
    re.compile(
        r"(?:\S*/)?python[\d.]* -m vllm\.entrypoints\.(?:openai\.api_server|cli\.main serve)$"
    ),
)
_OF_INTEREST = re.compile(
    r"vllm[ .](?:serve|entrypoints)|docker run|^\s*(?:export\s|sysctl\s|\w+=|--)|scaling_governor|serve",
    re.MULTILINE,
)
"""What a block of a document must hold to be read."""

_OF_NO_ACCOUNT = {
    "set",
    "cd",
    "echo",
    "mkdir",
    "source",
    ".",
    "ulimit",
    "sleep",
    "exit",
    "true",
    ":",
    "wait",
    "printf",
}
_DEEPEST = 3
"""How many `bash -c` are looked into, one in the other."""


def read_scripts(files: dict[str, str]) -> Reading:
    """Read the texts of some files, by name. Arbitrary text is fine: what is no launch script is reported."""
    out = Reading()
    for name, text in files.items():
        _Walk(name, out).document(text)
    return out


_State = tuple[dict[str, str], dict[str, Setting]]


class _Walk:
    """One file, statement by statement, as a shell would go through it; only variables and words are followed."""

    def __init__(self, name: str, out: Reading) -> None:
        self.name, self.out = name, out
        self.variables: dict[str, str] = {}
        self.exported: dict[str, Setting] = {}
        self.pending: dict[str, Setting] = {}
        """Exports of earlier blocks that had no server."""
        self.used: set[str] = set()
        self.host: list[HostSetting] = []
        self.governor: str | None = None
        self.branches: list[tuple[_State, _State | None]] = []
        """Open conditions: the state before, and the state behind the first branch."""
        self.last = ""
        """What the statement before was."""

    def document(self, text: str) -> None:
        blocks, skipped = scripts_of(text)
        for line, words in skipped:
            self.out.note(
                "not-placed",
                "info",
                "not read: no command stands before it",
                f"{self.name}:{line}",
                seen=words,
            )
        for block in blocks:
            if len(blocks) > 1 and not _OF_INTEREST.search(block.text):
                first = next(iter(block.text.strip().splitlines()), "")
                what = "a block of other commands is no part of a recipe"
                self.out.note(
                    "not-placed", "info", what, f"{self.name}:{block.offset + 1}", seen=first
                )
            else:
                self._block(block)
        self._leftover(self.pending)

    def _block(self, block: Block) -> None:
        before = len(self.out.servers)
        self.exported, self.host = {}, []
        self._script(block.text, block.offset, 0)
        served = self.out.servers[before:]
        if served:
            served = [replace(server, host=tuple(self.host)) for server in served]
            self.out.servers[before:] = served
        else:
            self.out.host += self.host
        if served and not any(server.env for server in served) and self.pending:
            served = [replace(server, env=self.pending) for server in served]
            self.out.servers[before:] = served
            self.pending = {}
        late = {
            name: setting
            for name, setting in self.exported.items()
            if served and name not in served[-1].env
        }
        if served:
            self._leftover(late)
        else:
            self._leftover(
                {name: self.pending[name] for name in self.pending if name in self.exported}
            )
            self.pending = {**self.pending, **self.exported}

    def _leftover(self, settings: dict[str, Setting]) -> None:
        for name, setting in settings.items():
            if name not in self.used:
                what = f"{name} is exported where no `vllm serve` follows"
                self.out.note(
                    "not-placed", "warning", what, setting.where, seen=shown(name, setting.text)
                )
            else:
                what = f"{name} only serves the script itself"
                self.out.note(
                    "not-needed", "info", what, setting.where, seen=shown(name, setting.text)
                )

    def _script(self, text: str, offset: int, depth: int) -> None:
        parsed = parse(text)
        for oddity in parsed.oddities:
            where = f"{self.name}:{oddity.line + offset}"
            self.out.note(
                "shell", "warning", f"not followed: {oddity.what}", where, seen=oddity.text
            )
        for statement in parsed.statements:
            self._statement(statement, f"{self.name}:{statement.line + offset}", depth)

    def _statement(self, statement: Statement, where: str, depth: int) -> None:
        words = [
            each for word in statement.words for each in expand(word, self.variables, self.used)
        ]
        if statement.control or statement.array:
            return (
                self._branch(statement.control)
                if statement.control
                else self._array(statement.array, words)
            )
        words, own = self._prefix(words, where)
        kind = self._take(words, own, where, statement, depth)
        if statement.redirections and kind in ("serve", "docker"):
            seen = " ".join(statement.redirections)
            self.out.note(
                "set-by-raylaunch", "info", "raylaunch keeps the logs itself", where, seen=seen
            )
        if statement.background and kind == "serve":
            self.out.note(
                "set-by-raylaunch",
                "info",
                "raylaunch runs the servers in the background itself",
                where,
                seen="&",
            )
        if statement.inside and kind in ("serve", "export"):
            what = f"stands in a {statement.inside}: read once, as if it ran once"
            self.out.note("shell", "warning", what, where, seen=" ".join(words[:4]))
        self.last = kind
        return None

    def _branch(self, control: str) -> None:
        """Read every branch of a condition; behind it, what the first branch has set holds."""
        here = (dict(self.variables), dict(self.exported))
        if control == "if":
            self.branches.append((here, None))
        elif self.branches:
            start, first = self.branches.pop()
            if first:
                self._later_branch(start, first)
            first = first or here
            if control == "else":
                self.branches.append((start, first))
            variables, exported = start if control == "else" else first
            self.variables, self.exported = dict(variables), dict(exported)

    def _later_branch(self, start: _State, first: _State) -> None:
        """Report the exports of a branch that does not count."""
        for name, setting in self.exported.items():
            kept = first[1].get(name)
            if setting != start[1].get(name) and (kept is None or kept.value != setting.value):
                what = f"{name} is exported in a branch that is not the first: not taken for what follows"
                self.out.note(
                    "not-placed", "warning", what, setting.where, seen=shown(name, setting.text)
                )

    def _array(self, assignment: str, words: list[str]) -> None:
        name = assignment.rstrip("+=") + "[@]"
        before = (
            [self.variables[name]] if assignment.endswith("+=") and name in self.variables else []
        )
        self.variables[name] = BETWEEN.join([*before, *words])

    def _prefix(self, words: list[str], where: str) -> tuple[list[str], dict[str, Setting]]:
        """Take `nohup`, `exec`, `env` and `A=1` off the front of a command."""
        own: dict[str, Setting] = {}
        rest = list(words)
        while rest:
            found = _ASSIGNMENT.fullmatch(rest[0])
            if found and found[2] == "=":
                own[found[1]] = Setting(found[3], where, rest[0])
            elif rest[0] not in _WRAPPERS:
                break
            rest.pop(0)
        return rest, own

    def _take(
        self,
        words: list[str],
        own: dict[str, Setting],
        where: str,
        statement: Statement,
        depth: int,
    ) -> str:
        if not words:
            self.variables.update({name: setting.value for name, setting in own.items()})
            self._reexport(own)
            return "assign"
        serve = _serve_words(words)
        if serve is not None:
            self._serve(serve, own, where)
            return "serve"
        if words[:2] in (["docker", "run"], ["podman", "run"], ["nerdctl", "run"]):
            self._docker(words[2:], where, depth)
            return "docker"
        if words[0] in ("bash", "sh") and "-c" in words[:-1] and depth < _DEEPEST:
            self._script(words[words.index("-c") + 1], 0, depth + 1)
            return "shell"
        return self._other(words, where, statement)

    def _other(self, words: list[str], where: str, statement: Statement) -> str:
        if words[0] in ("export", "declare", "typeset"):
            self._export(words[1:], where)
            return "export"
        if words[0] == "unset":
            self._unset([word for word in words[1:] if not is_flag(word)], where)
            return "unset"
        if words[0] == "sysctl":
            self._sysctl(words[1:], where)
            return "sysctl"
        if words[0] == "tee" and any(word.endswith("scaling_governor") for word in words):
            text = f"echo {self.governor or ''} | {' '.join(words)}"
            self.host.append(HostSetting("governor", self.governor or "", where, text))
            return "governor"
        if words[0] == "tee" and statement.joined == "|" and self.last == "serve":
            self.out.note(
                "set-by-raylaunch",
                "info",
                "raylaunch keeps the logs itself",
                where,
                seen=" ".join(words),
            )
            return "serve"
        self.governor = words[1] if words[0] == "echo" and len(words) == 2 else None
        self._unknown(words, where, statement)
        return "other"

    def _unknown(self, words: list[str], where: str, statement: Statement) -> None:
        seen = " ".join(words)
        if is_flag(words[0]):
            what = "these words belong to no command: the line before ends without a backslash, or with a comment"
            self.out.note(
                "not-placed",
                "warning",
                what,
                where,
                seen=seen,
                todo="mend the script, or add them to the recipe",
            )
        elif words[0] == "echo" and any(
            "scaling_governor" in each for each in statement.redirections
        ):
            self.host.append(
                HostSetting("governor", words[1] if len(words) > 1 else "", where, seen)
            )
        elif words[0] not in _OF_NO_ACCOUNT or "vllm" in seen:
            self.out.note(
                "not-placed",
                "info",
                f"the command `{words[0]}` is no part of a recipe",
                where,
                seen=seen,
            )
        elif words[0] in ("source", ".", "ulimit"):
            self.out.note(
                "not-needed", "info", "left to the environment Ray is started in", where, seen=seen
            )

    def _serve(self, words: list[str], own: dict[str, Setting], where: str) -> None:
        positional, flags = read_words(words)
        named = next((flag for flag in reversed(flags) if flag.name == "model"), None)
        model = positional.pop(0) if positional else named.value if named else None
        env = {**self.exported, **own}
        self.out.servers.append(
            Server(where, model, tuple(flags), env, tuple(positional), frozenset(self.used))
        )

    def _docker(self, words: list[str], where: str, depth: int) -> None:
        run = read_docker(words, where)
        if run is None:
            return self.out.note(
                "not-placed",
                "warning",
                "a `docker run` without an image",
                where,
                seen=" ".join(words),
            )
        self.out.containers.append(run)
        inside = command_inside(run)
        if isinstance(inside, str) and depth < _DEEPEST:
            return self._script(inside, 0, depth + 1)
        serve = _serve_words(list(inside)) if inside and not isinstance(inside, str) else None
        if serve is not None:
            return self._serve(serve, {}, where)
        if run.command and run.command not in (("bash",), ("/bin/bash",), ("sh",)):
            seen = " ".join(run.command)
            self.out.note(
                "not-placed",
                "info",
                "the container's own command is no part of a recipe",
                where,
                seen=seen,
            )
        return None

    def _export(self, words: Sequence[str], where: str) -> None:
        for word in words:
            found = _ASSIGNMENT.fullmatch(word)
            if found:
                name = found[1]
                value = self.variables.get(name, "") + found[3] if found[2] == "+=" else found[3]
                self.variables[name] = value
            elif re.fullmatch(r"[A-Za-z_]\w*", word) and word in self.variables:
                name, value = word, self.variables[word]
            else:
                if not is_flag(word):
                    what = "exports something that is not set in the script"
                    self.out.note("not-placed", "warning", what, where, seen=word)
                continue
            if name in self.exported and self.exported[name].value != value:
                before = self.exported[name]
                what = f"{name} is exported twice: the later value counts"
                self.out.note(
                    "not-placed", "info", what, before.where, seen=shown(name, before.text)
                )
            self.exported[name] = Setting(value, where, word if found else f"{name}={value}")

    def _reexport(self, own: dict[str, Setting]) -> None:
        for name in own.keys() & self.exported.keys():
            self.exported[name] = own[name]

    def _unset(self, names: Sequence[str], where: str) -> None:
        for name in names:
            gone = self.exported.pop(name, None)
            self.variables.pop(name, None)
            what = f"{name} is unset; raylaunch itself keeps proxies away from the servers"
            seen = shown(name, gone.text) if gone else name
            self.out.note(
                "not-needed",
                "info",
                what if "proxy" in name.lower() else f"{name} is unset",
                where,
                seen=seen,
            )

    def _sysctl(self, words: Sequence[str], where: str) -> None:
        for word in words:
            name, equals, value = word.partition("=")
            if equals and not is_flag(word):
                self.host.append(HostSetting(name.strip(), value.strip(), where, f"sysctl {word}"))
            elif not is_flag(word):
                self.out.note("not-placed", "info", "a sysctl without a value", where, seen=word)


def _serve_words(words: list[str]) -> list[str] | None:
    """The words behind `vllm serve`; None when the command is another one."""
    for count in (2, 3, 4):
        head = " ".join(words[:count])
        if len(words) >= count and any(pattern.match(head) for pattern in _SERVE):
            return words[count:]
    return None
