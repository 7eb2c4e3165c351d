"""Servers that no shell script starts: systemd units, compose files, pods and LeaderWorkerSets.

Containers become the words of a `docker run`, so that one reader places them all.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

from raylaunch.importer.shell.expansion import Word
from raylaunch.importer.shell.shell_parser import parse

Kind = Literal["script", "unit", "compose", "pods", "data"]
Run = tuple[int, list[str], list[str]]
"""A container: its line, the words behind `docker run`, and settings that found no place."""

_MAX_LENGTH = 500_000
_MOST_WORKERS = 64
_POD_KINDS = re.compile(
    r"^kind:\s*(?:Pod|Deployment|StatefulSet|DaemonSet|Job|ReplicaSet|LeaderWorkerSet|VCJob)\b",
    re.MULTILINE,
)


def kind_of(name: str, text: str) -> Kind:
    """Return what a file is, by its name and its content."""
    if re.search(r"^\[Service\]\s*$", text, re.MULTILINE):
        return "unit"
    if not name.endswith((".yaml", ".yml")):
        return "data" if name.endswith((".env", ".json")) else "script"
    if _POD_KINDS.search(text):
        return "pods"
    if re.search(r"^services:", text, re.MULTILINE):
        return "compose"
    return "data"


# systemd


@dataclass
class Unit:
    """What a unit's [Service] says, each with its line."""

    variables: list[tuple[int, str, str]] = field(default_factory=list)
    env_files: list[tuple[int, str]] = field(default_factory=list)
    commands: list[tuple[int, tuple[Word, ...]]] = field(default_factory=list)
    others: list[tuple[int, str]] = field(default_factory=list)


_HANDLED_BY_SYSTEMD = (
    *("Type", "Restart", "RestartSec", "User", "Group", "WorkingDirectory", "StandardOutput"),
    *("StandardError", "TimeoutStartSec", "TimeoutStopSec", "KillMode", "KillSignal"),
)


def read_unit(text: str) -> Unit:
    """Read the [Service] section of a unit (systemd.exec, systemd.service)."""
    unit = Unit()
    section = ""
    for line, entry in _logical_lines(text):
        header = re.fullmatch(r"\[(\w+)\]", entry)
        if header:
            section = header[1]
            continue
        key, equals, value = entry.partition("=")
        if section == "Service" and equals:
            _read_entry(unit, line, key.strip(), value.strip())
    return unit


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a unit, joined at backslashes, without comments."""
    joined = ""
    start = 1
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if raw.lstrip().startswith(("#", ";")):
            continue
        if not joined:
            start = number
        if raw.endswith("\\"):
            joined += raw[:-1] + " "
            continue
        entry = (joined + raw).strip()
        joined = ""
        if entry:
            yield start, entry


def _read_entry(unit: Unit, line: int, key: str, value: str) -> None:
    if key == "Environment":
        for assignment in _words(value):
            name, equals, text = assignment.partition("=")
            if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
                unit.variables.append((line, name, text))
    elif key == "EnvironmentFile":
        unit.env_files.append((line, value.removeprefix("-")))
    elif key in ("ExecStart", "ExecStartPre"):
        # `-`, `@`, `:`, `+` and `!` change how systemd starts it, not what it starts.
        command = value.lstrip("-@:+!").replace("%%", "%")
        statements = parse(command.replace(";", "\\;")).statements
        if statements:
            unit.commands.append((line, statements[0].words))
    elif key not in _HANDLED_BY_SYSTEMD:
        unit.others.append((line, f"{key}={value}"))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


# Containers


def read_compose(text: str) -> list[Run]:
    """Return the containers of a compose file."""
    runs: list[Run] = []
    for document in _documents(text):
        services = document.get("services")
        named = services if isinstance(services, dict) else {}
        runs += [
            _compose_run(text, str(name), service)
            for name, service in named.items()
            if isinstance(service, dict) and service.get("image")
        ]
    return runs


_COMPOSE_PLAIN = {
    "network_mode": "--net",
    "ipc": "--ipc",
    "shm_size": "--shm-size",
    "user": "--user",
    "container_name": "--name",
}
_COMPOSE_LISTS = {
    "devices": "--device",
    "volumes": "-v",
    "env_file": "--env-file",
    "cap_add": "--cap-add",
    "security_opt": "--security-opt",
}
_COMPOSE_IGNORED = ("image", "command", "entrypoint", "environment", "privileged", "restart")


def _compose_run(text: str, name: str, service: dict[str, object]) -> Run:
    words: list[str] = []
    lost: list[str] = []
    environment = service.get("environment")
    for variable, value in _pairs(environment):
        words += ["-e", f"{variable}={_interpolate(value)}" if value is not None else variable]
    for key, setting in service.items():
        if key in _COMPOSE_PLAIN:
            words.append(f"{_COMPOSE_PLAIN[key]}={_interpolate(str(setting))}")
        elif key in _COMPOSE_LISTS:
            for item in _strings(setting):
                words += [_COMPOSE_LISTS[key], _interpolate(item)]
        elif key not in _COMPOSE_IGNORED:
            lost.append(f"{key}: {json.dumps(setting, default=str)[:200]}")
    if service.get("privileged") is True:
        words.append("--privileged")
    words.append(_interpolate(str(service["image"])))
    words += [_interpolate(word) for word in _command(service.get("entrypoint"))]
    words += [_interpolate(word) for word in _command(service.get("command"))]
    return _line_of(text, rf"^\s+{re.escape(name)}:"), words, lost


def _interpolate(text: str) -> str:
    """Compute `${A:-default}` as compose does when A is unset; `$$` is a dollar."""
    defaults = re.sub(r"(?<!\$)\$\{\w+:?-([^{}]*)\}", r"\1", text)
    return defaults.replace("$$", "$")


def read_pods(text: str) -> list[Run]:
    """Return the containers of pods, of their controllers, and of LeaderWorkerSets."""
    runs: list[Run] = []
    for document in _documents(text):
        spec = document.get("spec")
        if isinstance(spec, dict):
            for template, variables in _pod_specs(spec):
                runs += _pod_runs(text, template, variables)
    return runs


Mapping = dict[str, object]


def _pod_specs(spec: Mapping) -> Iterator[tuple[Mapping, dict[str, str]]]:
    """Yield each pod's spec with the variables that its controller adds."""
    group = spec.get("leaderWorkerTemplate")
    if isinstance(group, dict):
        size = group.get("size")
        count = min(size, _MOST_WORKERS) if isinstance(size, int) else 1
        leader = group.get("leaderTemplate") or group.get("workerTemplate")
        for index in range(count):
            template = leader if index == 0 else group.get("workerTemplate")
            inner = template.get("spec") if isinstance(template, dict) else None
            if isinstance(inner, dict):
                yield inner, {"LWS_WORKER_INDEX": str(index), "LWS_GROUP_SIZE": str(count)}
        return
    template = spec.get("template")
    inner = template.get("spec") if isinstance(template, dict) else spec
    if isinstance(inner, dict):
        yield inner, {}


def _pod_runs(text: str, spec: Mapping, variables: dict[str, str]) -> Iterator[Run]:
    containers = spec.get("containers")
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, dict) and container.get("image"):
            yield _pod_run(text, spec, container, variables)


def _pod_run(text: str, spec: Mapping, container: Mapping, variables: dict[str, str]) -> Run:
    lost: list[str] = []
    env = dict(variables)
    words: list[str] = []
    listed = container.get("env")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and "name" in entry and "value" in entry:
            value = _with_variables(str(entry["value"]), env)
            env[str(entry["name"])] = value
            words += ["-e", f"{entry['name']}={value}"]
        elif isinstance(entry, dict):
            lost.append(f"env {json.dumps(entry, default=str)[:200]}")
    words += [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
    if spec.get("hostNetwork") is True:
        words.append("--net=host")
    lost += [
        f"{key}: {json.dumps(container[key], default=str)[:200]}"
        for key in ("envFrom", "resources", "volumeMounts")
        if container.get(key)
    ]
    words.append(str(container["image"]))
    command = [*_strings(container.get("command")), *_strings(container.get("args"))]
    words += [_with_variables(word, env) for word in command]
    where = _line_of(text, rf"^\s*(?:- )?image:\s*[\"']?{re.escape(str(container['image']))}")
    return where, words, lost


def _with_variables(text: str, env: dict[str, str]) -> str:
    """Replace `$(NAME)`, the kubelet's own syntax."""
    return re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), text)


def _documents(text: str) -> list[Mapping]:
    if len(text) > _MAX_LENGTH or re.search(r"[:\-\[,]\s*\*\w", text):
        # An alias may repeat itself exponentially.
        return []
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return [each for each in documents if isinstance(each, dict)]


def _pairs(environment: object) -> Iterator[tuple[str, str | None]]:
    if isinstance(environment, dict):
        for name, value in environment.items():
            yield str(name), None if value is None else _scalar(value)
    for entry in _strings(environment) if isinstance(environment, list) else ():
        name, equals, value = entry.partition("=")
        yield name, value if equals else None


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _strings(value: object) -> list[str]:
    if isinstance(value, list):
        return [_scalar(each) for each in value if not isinstance(each, dict | list)]
    return [value] if isinstance(value, str) else []


def _command(value: object) -> list[str]:
    """Return a command's words; compose splits a string as a shell does."""
    return _words(value) if isinstance(value, str) else _strings(value)


def _line_of(text: str, pattern: str) -> int:
    found = re.search(pattern, text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1
