"""What launch scripts contain: servers, their variables, containers, host settings, oddities."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from raylaunch.checks.findings import Finding, Level
from raylaunch.importer.docker_run import ContainerRun
from raylaunch.importer.serve_flags import Given


@dataclass(frozen=True)
class Setting:
    """A variable given to a server. `text` is how it stands in the script."""

    value: str
    where: str
    text: str


@dataclass(frozen=True)
class HostSetting:
    """A setting of the host: `name` is "governor", or a sysctl."""

    name: str
    value: str
    where: str
    text: str


@dataclass(frozen=True)
class Server:
    """One `vllm serve` command."""

    where: str
    model: str | None
    flags: tuple[Given, ...]
    env: dict[str, Setting]
    extra: tuple[str, ...] = ()
    """Words behind the model that belong to no flag."""
    helpers: frozenset[str] = frozenset()
    """Names of variables that the script itself uses."""
    host: tuple[HostSetting, ...] = ()
    """Settings of the host that its script makes."""

    def flag(self, name: str) -> Given | None:
        """The last flag of that name, as vLLM takes it."""
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)

    def value(self, name: str) -> str | None:
        """Value of a flag; "" when it is bare, None when it is not given."""
        flag = self.flag(name)
        return None if flag is None else flag.value or ""

    @property
    def headless(self) -> bool:
        """Whether it has no API."""
        return self.flag("headless") is not None


@dataclass
class Reading:
    """All that some scripts say."""

    servers: list[Server] = field(default_factory=list)
    containers: list[ContainerRun] = field(default_factory=list)
    host: list[HostSetting] = field(default_factory=list)
    """Settings of the host in scripts without a server."""
    ray_nodes: list[str] = field(default_factory=list)
    """Where `ray start` is called: the nodes of the cluster."""
    ray_devices: list[int] = field(default_factory=list)
    """How many devices are listed where `ray start` is called."""
    findings: list[Finding] = field(default_factory=list)

    def note(
        self, id_: str, level: Level, what: str, where: str, *, seen: str = "", todo: str = ""
    ) -> None:
        """Report something."""
        self.findings.append(Finding(id_, level, what, todo, where, seen))


Beside = Callable[[str, str], str | None]
"""Given the name of a file and a path in it: the text of the file of that path beside it."""


@dataclass
class Sources:
    """The texts that were given, by file name, and those that lie beside them."""

    texts: dict[str, str]
    beside: Beside | None = None
    consumed: set[str] = field(default_factory=set)
    """Names of the texts that another one has read."""

    def find(self, reader: str, path: str) -> str | None:
        """Return the text of a file that `reader` names, None if it was not given."""
        base = path.rpartition("/")[2]
        if not base or base == reader or "$" in base:
            return None
        if base in self.texts:
            self.consumed.add(base)
            return self.texts[base]
        return self.beside(reader, path) if self.beside is not None else None

    def is_named_elsewhere(self, name: str) -> bool:
        """Return whether another text names this one: it may be read as a part of that one."""
        others = (text for other, text in self.texts.items() if other != name)
        return any(name in text for text in others)


def is_secret(name: str) -> bool:
    """Return whether a variable holds a secret."""
    return re.search(r"(?i)(?:api_?key|token|secret|passw(?:or)?d|credential)s?$", name) is not None


def shown(name: str, text: str) -> str:
    """An assignment as a report may show it."""
    return f"{name}=..." if is_secret(name) else text
