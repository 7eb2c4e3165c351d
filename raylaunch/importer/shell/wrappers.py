"""Programs that start another program: `nohup`, `sudo -E`, `numactl`, `env A=1`, `timeout 60`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wrapper:
    """The syntax of one wrapper. `lost`: what it asks for cannot be part of a recipe."""

    with_value: tuple[str, ...] = ()
    """Its options whose value is the next word."""
    positional: int = 0
    """Its own words before the wrapped command."""
    lost: bool = False


_PLAIN = Wrapper()
_WRAPPERS = {
    "exec": Wrapper(("-a",)),
    "nohup": _PLAIN,
    "command": _PLAIN,
    "builtin": _PLAIN,
    "setsid": _PLAIN,
    "unbuffer": _PLAIN,
    "time": Wrapper(("-f", "-o")),
    "$": _PLAIN,
    "sudo": Wrapper(("-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T", "--user", "--group")),
    "doas": Wrapper(("-u", "-C")),
    "env": Wrapper(("-u", "--unset", "-C", "--chdir")),
    "stdbuf": Wrapper(("-i", "-o", "-e")),
    "nice": Wrapper(("-n", "--adjustment"), lost=True),
    "ionice": Wrapper(("-c", "-n", "--class", "--classdata"), lost=True),
    "chrt": Wrapper(("-T", "-P", "-D"), positional=1, lost=True),
    "numactl": Wrapper(
        (
            *("-i", "-N", "-m", "-C", "-p", "--interleave", "--cpunodebind"),
            *("--membind", "--physcpubind", "--preferred"),
        ),
        lost=True,
    ),
    "taskset": Wrapper(positional=1, lost=True),
    "timeout": Wrapper(("-k", "-s", "--kill-after", "--signal"), positional=1, lost=True),
    "prlimit": Wrapper(lost=True),
    "cgexec": Wrapper(("-g",), lost=True),
    "systemd-run": Wrapper(("-p", "-u", "--property", "--unit"), lost=True),
    "flock": Wrapper(("-w", "-E"), positional=1, lost=True),
    "chroot": Wrapper(positional=1, lost=True),
    "strace": Wrapper(("-o", "-e", "-p"), lost=True),
    "tini": Wrapper(("-e",)),
    "dumb-init": _PLAIN,
    "gosu": Wrapper(positional=1, lost=True),
    "su-exec": Wrapper(positional=1, lost=True),
    "sshpass": Wrapper(("-p", "-f", "-e")),
}
"""Wrappers by name, from their manual pages."""

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?=)(.*)", re.DOTALL)
_TAKES_ASSIGNMENTS = ("env", "sudo", "doas")


@dataclass
class Command:
    """A command without its wrappers."""

    words: list[str]
    own: dict[str, str] = field(default_factory=dict)
    """Variables of this command alone: `A=1 vllm serve`, `env A=1 vllm serve`."""
    unset: list[str] = field(default_factory=list)
    """Variables that `env -u` takes away."""
    lost: list[str] = field(default_factory=list)
    """The wrappers that ask for something no recipe holds, with their words."""
    clears: bool = False
    """`env -i`: nothing is inherited."""
    keeps_env: bool = True
    """False behind `sudo` without `-E`, which drops the exports by default."""


def unwrap(words: Sequence[str]) -> Command:
    """Take assignments and wrappers off the front of a command."""
    command = Command(list(words))
    at = 0
    while at < len(words):
        found = _ASSIGNMENT.fullmatch(words[at])
        if found and found[2] == "=":
            command.own[found[1]] = found[3]
            at += 1
            continue
        name = words[at].rpartition("/")[2]
        wrapper = _WRAPPERS.get(name)
        if wrapper is None or (at + 1 == len(words) and name != "$"):
            break
        end = _end_of(words, at, name, wrapper, command)
        if wrapper.lost:
            command.lost.append(" ".join(words[at:end]))
        at = end
    command.words = list(words[at:])
    return command


def _end_of(words: Sequence[str], at: int, name: str, wrapper: Wrapper, command: Command) -> int:
    """Return the position behind the wrapper's own words."""
    options: list[str] = []
    at += 1
    while at < len(words) and words[at].startswith("-") and len(words[at]) > 1:
        option = words[at]
        options.append(option)
        at += 1
        if option == "--":
            break
        if option in wrapper.with_value and at < len(words):
            if name == "env" and option in ("-u", "--unset"):
                command.unset.append(words[at])
            at += 1
        elif name == "env" and option.startswith("--unset="):
            command.unset.append(option.partition("=")[2])
    if name == "env" and {"-i", "-", "--ignore-environment"} & set(options):
        command.clears = True
    if name == "sudo":
        keeps = any(re.match(r"-[A-Za-z]*E|--preserve-env", option) for option in options)
        command.keeps_env = command.keeps_env and keeps
    if name in _TAKES_ASSIGNMENTS:
        return at
    return min(len(words), at + wrapper.positional)
