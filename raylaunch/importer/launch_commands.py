"""The commands that start servers: `vllm serve`, containers, other hosts, other scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from raylaunch.importer.builtin_commands import BuiltinCommands
from raylaunch.importer.config_file import config_flags
from raylaunch.importer.docker_run import command_inside, read_docker, read_exec
from raylaunch.importer.script_model import Server, Setting
from raylaunch.importer.serve_flags import Given, is_flag, read_words
from raylaunch.importer.shell.shell_blocks import Node, nest
from raylaunch.importer.shell.shell_parser import Statement, parse
from raylaunch.importer.shell.shell_process import DEEPEST, Call, Shell
from raylaunch.importer.shell.wrappers import unwrap

SHELLS = ("bash", "sh", "zsh", "dash", "ash")
MOST_SERVERS = 256
"""Servers of one import; grouping compares each with each."""

ENGINES = ("docker", "podman", "nerdctl")
_SERVE = (
    re.compile(r"(?:\S*/)?vllm serve"),
    re.compile(
        r"(?:\S*/)?python[\d.]*(?: -[uIBOE]+)* -m vllm\.entrypoints\."
        r"(?:openai\.api_server|cli\.main serve)"
    ),
)


class LaunchCommands(BuiltinCommands):
    """What starts something else; the statements of nested scripts are run by a subclass."""

    def _run(self, nodes: Iterable[Node]) -> None:
        raise NotImplementedError

    def _command(self, words: list[str], statement: Statement, where: str) -> str:
        raise NotImplementedError

    def _script(self, text: str, offset: int) -> None:
        """Run a text in this shell; its first line is line `offset` + 1 of the file."""
        parsed = parse(text)
        for oddity in parsed.oddities:
            what = f"not followed: {oddity.what}"
            self._note("shell", "warning", what, oddity.line + offset, seen=oddity.text)
        outer = self.offset
        self.offset = offset
        self._run(nest(parsed.statements))
        self.offset = outer
        if self.signal in ("exit", "return"):
            self.signal = ""

    def _file(self, path: str, text: str) -> None:
        """Run the text of another file in this shell; reports name that file."""
        outer = self.name
        base = path.rpartition("/")[2]
        if base in self.sources.texts:
            self.name = base
        self._script(text, 0)
        self.name = outer

    def _child(self, text: str, offset: int, env: dict[str, Setting]) -> None:
        """Run a text in a shell of its own that inherits only `env`."""
        if self.depth >= DEEPEST:
            return self._note(
                "shell", "warning", "not followed: too many nested scripts", offset + 1
            )
        with self._fresh(env):
            self._script(text, offset)
        return None

    @contextmanager
    def _fresh(self, env: dict[str, Setting]) -> Iterator[None]:
        outer = self.shell
        self.copies += 2 * len(env)
        variables = {name: setting.value for name, setting in env.items()}
        self.shell = Shell(variables, dict(env))
        self.depth += 1
        yield
        self.depth -= 1
        self.shell = outer

    def serve(self, words: list[str], own: dict[str, Setting], where: str) -> None:
        """Record a server from the words behind `vllm serve`."""
        self.status = True
        if len(self.out.servers) >= MOST_SERVERS:
            what = f"not followed: over {MOST_SERVERS} servers; the rest is not read"
            self.out.note("shell", "warning", what, where)
            self.signal = "exit"
            return
        if "$@" in words or "$*" in words:
            what = "the script's own arguments are taken as none"
            self.out.note("assumed", "warning", what, where, seen="$@")
            words = [word for word in words if word not in ("$@", "$*")]
        positional, flags = read_words(words)
        config = next((flag for flag in reversed(flags) if flag.name == "config"), None)
        if config is not None and config.value:
            flags = self._with_config(config, flags, where)
        named = next((flag for flag in reversed(flags) if flag.name == "model"), None)
        model = named.value if named else None
        if positional:
            model = positional.pop(0)
        env = {**self.shell.exported, **own}
        self.copies += len(env) + len(self.used)
        helpers = frozenset(self.used)
        self.out.servers.append(Server(where, model, tuple(flags), env, tuple(positional), helpers))

    def _with_config(self, config: Given, flags: list[Given], where: str) -> list[Given]:
        """Put the values of `--config FILE` before the flags, which override them."""
        path = config.value or ""
        text = self.sources.find(self.name, path)
        read = config_flags(text) if text is not None else None
        if read is None:
            what = f"--config {path} was not given: its values are unknown, sizes and model too"
            todo = f"give the file too: raylaunch import {self.name} {path.rpartition('/')[2]}"
            self.out.note("placeholder", "warning", what, where, seen=path, todo=todo)
            return flags
        given = {flag.name for flag in flags}
        return [
            *(flag for flag in read if flag.name not in given),
            *(flag for flag in flags if flag is not config),
        ]

    def _engine(self, call: Call) -> str:
        if call.words[1:2] == ["run"]:
            self.docker(call.words[2:], call.where, call.statement)
            return "docker"
        at = next((number for number, word in enumerate(call.words[:4]) if word == "exec"), 0)
        if at:
            return self._docker_exec(call, call.words[at + 1 :])
        if call.words[1:2] == ["container"] and call.words[2:3] == ["run"]:
            self.docker(call.words[3:], call.where, call.statement)
            return "docker"
        return self._unknown(call)

    def docker(self, words: list[str], where: str, statement: Statement | None = None) -> None:
        """Read the words behind `docker run`: the container, and the server in it."""
        self.status = True
        run = read_docker(words, where)
        if run is None:
            seen = " ".join(words)
            what = "a `docker run` without an image"
            return self.out.note("not-placed", "warning", what, where, seen=seen)
        env = self._container_env(run.values("--env"), run.values("--env-file"), where)
        before = len(self.out.servers)
        self._inside(command_inside(run), env, where, statement)
        serves = len(self.out.servers) > before
        self.out.containers.append(replace(run, serves=serves))
        for name in run.values("--name"):
            self.containers[name] = env
        shells = (("bash",), ("/bin/bash",), ("sh",))
        if not serves and run.command and run.command not in shells:
            seen = " ".join(run.command)
            what = "the container's own command is no part of a recipe"
            self.out.note("not-placed", "info", what, where, seen=seen)
        return None

    def _docker_exec(self, call: Call, words: list[str]) -> str:
        found = read_exec(words)
        if found is None:
            return self._unknown(call)
        container, variables, files, command = found
        env = dict(self.containers.get(container, {}))
        env.update(self._container_env(variables, files, call.where))
        before = len(self.out.servers)
        self._inside(command, env, call.where, call.statement)
        self.status = True
        if len(self.out.servers) == before:
            return "other"
        names = [container]
        self.out.containers[:] = [
            replace(run, serves=True) if run.values("--name") == names else run
            for run in self.out.containers
        ]
        return "docker"

    def _inside(
        self,
        command: str | Sequence[str],
        env: dict[str, Setting],
        where: str,
        statement: Statement | None,
    ) -> None:
        """Read what runs in a container or on another host, whose environment is `env`."""
        line = int(where.rpartition(":")[2])
        if isinstance(command, str):
            return self._child(command, line - 1, env)
        heredoc = statement.heredocs[0] if statement and statement.heredocs else None
        if heredoc and (not command or command[0].rpartition("/")[2] in SHELLS):
            text = self._expander().substitute(heredoc.text) if heredoc.expands else heredoc.text
            return self._child(text.replace("\\$", "$"), heredoc.line - 1 + self.offset, env)
        if not command or self.depth >= DEEPEST:
            return None
        with self._fresh(env):
            unwrapped = Statement(line, ())
            known = serve_words(unwrap(command).words) is not None
            runs = unwrap(command).words[:1]
            if known or (runs and runs[0].rpartition("/")[2] in (*SHELLS, *ENGINES)):
                self._command(list(command), unwrapped, where)
        return None

    def _container_env(
        self, variables: Sequence[str], files: Sequence[str], where: str
    ) -> dict[str, Setting]:
        """Return the variables of a container; `docker` lets `-e` override `--env-file`."""
        env: dict[str, Setting] = {}
        for path in files:
            text = self.sources.find(self.name, path)
            if text is None:
                what = f"--env-file {path} was not given: its variables are unknown"
                todo = f"give the file too: raylaunch import {self.name} {path}"
                self.out.note("not-placed", "warning", what, where, seen=path, todo=todo)
            for line in (text or "").splitlines():
                name, equals, value = line.strip().partition("=")
                if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
                    env[name] = Setting(value, where, f"{name}={value}")
        for assignment in variables:
            name, equals, value = assignment.partition("=")
            inherited = self.shell.exported.get(name)
            if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
                env[name] = Setting(value, where, f"-e {assignment}")
            elif inherited is not None:
                env[name] = replace(inherited, text=f"{name}={inherited.value}")
                self.used.add(name)
        return env

    def _ssh(self, call: Call) -> str:
        rest = call.words[1:]
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            if re.fullmatch(r"-[bcDEeFIiJLlmOopQRSWw]", option) and rest:
                rest.pop(0)
        command = rest[1:]
        before = len(self.out.servers)
        if command and command[0].rpartition("/")[2] in SHELLS and call.statement.heredocs:
            self._inside(command, {}, call.where, call.statement)
        elif command:
            self._inside(" ".join(command), {}, call.where, call.statement)
        else:
            self._inside((), {}, call.where, call.statement)
        self.status = True
        if len(self.out.servers) > before:
            return "ssh"
        return self._unknown(call)

    def _kubectl(self, call: Call) -> str:
        if "exec" not in call.words or "--" not in call.words:
            return self._unknown(call)
        command = call.words[call.words.index("--") + 1 :]
        self._inside(self._shell_text(command) or command, {}, call.where, call.statement)
        self.status = True
        return "docker"

    def _quoted_command(self, call: Call) -> str:
        """Read `su USER -c '...'` and `tmux new -d '...'`."""
        text = self._shell_text(call.words) or next(
            (word for word in reversed(call.words) if "vllm" in word and " " in word), None
        )
        if text is None:
            at = next((n for n, word in enumerate(call.words) if word in SHELLS), 0)
            if at:
                return self._bash(Call(call.words[at:], call.where, call.statement))
            return self._unknown(call)
        self._child(text, call.line - 1, self.shell.exported)
        self.status = True
        return "shell"

    @staticmethod
    def _shell_text(words: Sequence[str]) -> str | None:
        """Return the script behind `-c`, None if there is none."""
        for number, word in enumerate(words[:-1]):
            if re.fullmatch(r"-[a-z]*c|--command", word):
                return words[number + 1]
        return None

    def _bash(self, call: Call) -> str:
        text = self._shell_text(call.words)
        line = call.line
        exported = self.shell.exported
        files = [word for word in call.words[1:] if not is_flag(word)]
        self.status = None
        if text is not None:
            self._child(text, line - 1, exported)
            self.status = True
        elif call.statement.heredocs and not [word for word in files if word not in ("-", "-s")]:
            self._inside(("bash",), exported, call.where, call.statement)
        elif files:
            return self._script_file(files) or self._unknown(call)
        return "shell"

    def _script_file(self, words: Sequence[str]) -> str:
        """Run another script that was given too, or that this one wrote; "" if it is unknown."""
        path = words[0]
        text = self.written.get(path) or self.written.get(path.removeprefix("./"))
        if text is None and path.endswith((".sh", ".bash")):
            text = self.sources.find(self.name, path)
        if text is None or self.depth >= DEEPEST:
            return ""
        with self._fresh(self.shell.exported):
            self._set_arguments(words[1:])
            self._file(path, text)
        self.status = True
        return "shell"

    def _source(self, call: Call) -> str:
        path = call.words[1] if len(call.words) > 1 else ""
        text = self.written.get(path) or self.sources.find(self.name, path)
        self.status = True
        if text is not None and self.depth < DEEPEST:
            self.depth += 1
            self._file(path, text)
            self.depth -= 1
            return "shell"
        if "set_env.sh" in path or "/activate" in path or "bashrc" in path or not path:
            what = "left to the environment Ray is started in"
            self.out.note("not-needed", "info", what, call.where, seen=" ".join(call.words))
        else:
            what = f"{path} was not given: what it sets is unknown"
            todo = f"give the file too: raylaunch import {self.name} {path.rpartition('/')[2]}"
            seen = " ".join(call.words)
            self.out.note("not-placed", "warning", what, call.where, seen=seen, todo=todo)
        return "source"

    def _eval(self, call: Call) -> str:
        if self.depth < DEEPEST:
            self.depth += 1
            self._script(" ".join(call.words[1:]), call.line - 1)
            self.depth -= 1
        return "shell"

    def _cat(self, call: Call) -> str:
        """Keep the scripts that are written by `cat > FILE <<EOF`."""
        for redirection in call.statement.redirections:
            found = re.fullmatch(r">>?\|?[\"']?([^\"'&]+)[\"']?", redirection)
            if found and call.statement.heredocs:
                self._write(self._expander().substitute(found[1]), call.statement)
        self.status = True
        return "other"


def serve_words(words: Sequence[str]) -> list[str] | None:
    """Return the words behind `vllm serve`; None when the command is another one."""
    for count in (2, 3, 4, 5, 6):
        head = " ".join(words[:count])
        if len(words) >= count and any(pattern.fullmatch(head) for pattern in _SERVE):
            return list(words[count:])
    return None
